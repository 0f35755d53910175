"""Puts what the rules found into words."""

from __future__ import annotations

from lever_mlflow.comparison.blocks import Block, Bullets
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.findings import (
    BaselineFinding,
    DifferenceFinding,
    EqualEpochs,
    FewPositive,
    Finding,
    IdenticalRuns,
    KlTrend,
    LittleContrast,
    MissingParts,
    NotComparable,
    OracleFinding,
    SamePicks,
    SameRewards,
)
from lever_mlflow.comparison.rules import FEW_POSITIVE, LITTLE_CONTRAST
from lever_mlflow.comparison.wording import Wording

__all__ = ["findings"]


def findings(facts: Comparison, words: Wording) -> list[Block]:
    """Lists what the rules found."""
    sentences = [_sentence(finding, words) for finding in facts.findings]
    return [Bullets(sentences or [words["no_findings"]])]


def _sentence(finding: Finding, words: Wording) -> str:
    """Fills the sentence of a rule with the figures that it rests on."""
    match finding:
        case NotComparable():
            values = {"fields": words.join(finding.fields)}
        case FewPositive() | LittleContrast() | SameRewards() | KlTrend():
            values = _of_training(finding, words)
        case DifferenceFinding():
            values = _of_difference(finding, words)
        case BaselineFinding():
            values = _of_baseline(finding, words)
        case EqualEpochs():
            epochs = words.epochs(finding.epochs)
            values = {"run": words.run(finding.run), "epochs": epochs, "cells": str(finding.cells)}
        case IdenticalRuns(picks=picks):
            unknown = words["identical_picks_unknown"]
            known = unknown if picks is None else words.say("identical_picks", share=words.share(picks))
            values = {"runs": words.runs(finding.runs), "cells": str(finding.cells), "picks": known}
        case SamePicks():
            values = {"runs": words.runs(finding.runs), "shots": words.shots(*finding.shots)}
        case OracleFinding():
            shares = {name: words.share(getattr(finding, name)) for name in ("oracle", "random", "winnable")}
            values = {**shares, "questions": str(finding.questions)}
        case MissingParts():
            values = {"cells": str(finding.cells)}
    return words.say(f"find_{finding.rule}", **values)


def _of_training(
    finding: FewPositive | LittleContrast | SameRewards | KlTrend,
    words: Wording,
) -> dict[str, str]:
    run = {"run": words.run(finding.run)}
    match finding:
        case FewPositive(queries=queries, positive=positive):
            rate, few = words.share(positive / queries), words.share(FEW_POSITIVE)
            return {**run, "queries": str(queries), "positive": str(positive), "rate": rate, "few": few}
        case LittleContrast():
            return {**run, "advantage_std": words.value(finding.advantage_std), "little": f"{LITTLE_CONTRAST:g}"}
        case SameRewards():
            return {**run, "share": words.share(finding.share)}
        case KlTrend():
            values = " → ".join(map(words.number, finding.values))
            return {**run, "values": values, "change": words.change("kl", finding.change)}


def _of_difference(finding: DifferenceFinding, words: Wording) -> dict[str, str]:
    needed = finding.questions_needed
    return {
        "run": words.run(finding.run),
        "reference": words.run(finding.reference),
        "word": words["better" if finding.points > 0 else "worse"],
        "size": str(finding.size),
        "shots": words.shots(finding.shots),
        "points": words.points(finding.points),
        "interval_holm": words.interval(finding.interval_holm),
        "p_holm": words.p_equals(finding.p_holm),
        "kind": words[f"kind_{finding.kind}"],
        "needed": words["needed_nothing"] if needed is None else words.say("needed_sentence", questions_needed=needed),
    }


def _of_baseline(finding: BaselineFinding, words: Wording) -> dict[str, str]:
    signed = finding.rule == "no_baseline_difference"  # the sentences of the others say which way it goes
    return {
        "run": words.run(finding.run),
        "baseline": finding.baseline,
        "size": str(finding.size),
        "points": words.points(finding.points if signed else abs(finding.points), signed=signed),
        "interval_holm": words.interval(finding.interval_holm),
        "accuracies": " / ".join(map(words.accuracy, finding.accuracies)),
    }
