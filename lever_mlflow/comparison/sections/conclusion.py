"""Says what a comparison comes to: verdict, findings, the choice of a beta, what is missing and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison import findings as found
from lever_mlflow.comparison.blocks import Block, Bullets, Code, Heading, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison, Difference, primary
from lever_mlflow.comparison.findings import Finding
from lever_mlflow.comparison.rules import FEW_POSITIVE, LITTLE_CONTRAST
from lever_mlflow.comparison.wording import NOTHING, Wording, decimals
from lever_mlflow.settings import format_beta

__all__ = ["conclusion", "findings", "missing", "reproduce", "verdict"]


def verdict(facts: Comparison, words: Wording) -> str:
    """Says what the comparison comes to, in one sentence."""
    betas = words.join(format_beta(run.kl_beta) for run in facts.runs)
    rows = primary(facts.differences)
    if len(facts.runs) == 1:
        return words.say("verdict_alone", betas=betas)
    if not facts.comparable:
        return words.say("verdict_not_comparable", betas=betas, fields=words.join(facts.confounders))
    if not rows:
        return words.say("verdict_unknown", betas=betas)
    parts = [_better(row, words) for row in rows if row.significant]
    if not parts:
        return words.say("verdict_none", betas=betas, questions=max(row.size for row in rows))
    return words.say("verdict_shown", betas=betas, parts=words.join(parts), kind=_kind(rows, words), tests=len(rows))


def _better(row: Difference, words: Wording) -> str:
    better, other = (row.beta, row.reference) if row.points > 0 else (row.reference, row.beta)
    points = words.say("points", value=decimals(abs(row.points)))
    return words.say("part_better", better=format_beta(better), other=format_beta(other), shots=row.shots, points=points)


def _kind(rows: Sequence[Difference], words: Wording) -> str:
    return words["kind_paired" if all(row.kind == "paired" for row in rows) else "kind_bound"]


def findings(facts: Comparison, words: Wording) -> list[Block]:
    """Lists what the rules found."""
    sentences = [_sentence(finding, words) for finding in facts.findings]
    return [Heading(2, words["findings"]), Bullets(sentences or [words["no_findings"]])]


def _sentence(finding: Finding, words: Wording) -> str:
    match finding:
        case found.NotComparable():
            values = {"fields": words.join(finding.fields)}
        case found.FewPositive() | found.LittleContrast() | found.SameRewards() | found.KlTrend():
            values = _of_training(finding, words)
        case found.DifferenceFinding():
            values = _of_difference(finding, words)
        case found.BaselineFinding():
            values = _of_baseline(finding, words)
        case found.EqualEpochs():
            epochs = words.join(map(str, finding.epochs))
            values = {"kl_beta": format_beta(finding.kl_beta), "epochs": epochs, "cells": str(finding.cells)}
        case found.SamePicks():
            values = {"betas": words.join(finding.betas), "shots": words.join(map(str, finding.shots))}
        case found.OracleFinding():
            shares = {name: words.share(getattr(finding, name)) for name in ("oracle", "random", "winnable")}
            values = {**shares, "questions": str(finding.questions)}
        case found.MissingParts():
            values = {"cells": str(finding.cells)}
    return words.say(f"find_{finding.rule}", **values)


def _of_training(
    finding: found.FewPositive | found.LittleContrast | found.SameRewards | found.KlTrend, words: Wording
) -> dict[str, str]:
    beta = {"kl_beta": format_beta(finding.kl_beta)}
    match finding:
        case found.FewPositive(queries=queries, positive=positive):
            rate, few = words.share(positive / queries), words.share(FEW_POSITIVE)
            return {**beta, "queries": str(queries), "positive": str(positive), "rate": rate, "few": few}
        case found.LittleContrast():
            return {**beta, "advantage_std": words.value(finding.advantage_std), "little": f"{LITTLE_CONTRAST:g}"}
        case found.SameRewards():
            return {**beta, "share": words.share(finding.share)}
        case found.KlTrend():
            change = NOTHING if finding.change is None else words.percent_change(finding.change)
            return {**beta, "values": " → ".join(map(words.number, finding.values)), "change": change}


def _of_difference(finding: found.DifferenceFinding, words: Wording) -> dict[str, str]:
    needed = finding.questions_needed
    return {
        "beta": format_beta(finding.beta),
        "reference": format_beta(finding.reference),
        "word": words["better" if finding.points > 0 else "worse"],
        "size": str(finding.size),
        "shots": str(finding.shots),
        "points": words.percent(finding.points, signed=True),
        "interval_holm": words.interval(finding.interval_holm),
        "p_holm": f"{finding.p_holm:.3g}",
        "kind": words[f"kind_{finding.kind}"],
        "needed": words["needed_nothing"] if needed is None else words.say("needed_sentence", questions_needed=needed),
    }


def _of_baseline(finding: found.BaselineFinding, words: Wording) -> dict[str, str]:
    signed = finding.rule == "no_baseline_difference"  # the sentences of the others say which way it goes
    return {
        "beta": format_beta(finding.beta),
        "baseline": finding.baseline,
        "size": str(finding.size),
        "points": words.percent(finding.points if signed else abs(finding.points), signed=signed),
        "interval_holm": words.interval(finding.interval_holm),
        "accuracies": " / ".join(map(words.percent, finding.accuracies)),
    }


def conclusion(facts: Comparison, words: Wording) -> list[Block]:
    """Recommends a beta, and names the best model of each."""
    beta, rule = facts.choice.beta, facts.choice.rule
    key = "choice_better_reference" if rule == "better" and beta == facts.reference else f"choice_{rule}"
    text = words.say(key, beta="" if beta is None else format_beta(beta), reference=format_beta(facts.reference))
    rows = [
        [
            f"{format_beta(run.kl_beta)}{' *' if run.kl_beta == beta else ''}",
            words.value(run.best_epoch),
            words.accuracy_if_stated(run.selection_accuracy.get(run.best_epoch or 0)),
            words.registered(run.registered),
        ]
        for run in facts.runs
    ]
    return [
        Heading(2, words["conclusion"]),
        Heading(3, words["choice"]),
        Paragraph(text),
        Heading(3, words["best_model"]),
        Table(["KL_BETA", "Epoch", words["selection"], words["model"]], rows),
    ]


def missing(facts: Comparison, words: Wording) -> list[Block]:
    """Lists what is missing, with the commands that fill it."""
    rows = [[format_beta(part.beta), str(part.epoch), ", ".join(part.what), part.command] for part in facts.missing]
    head = ["KL_BETA", "Epoch", words["what"], words["command"]]
    return [
        Heading(2, words["missing_title"]),
        Table(head, rows) if rows else Paragraph(words["nothing_missing"]),
    ]


def reproduce(facts: Comparison, words: Wording) -> list[Block]:
    """Lists the commands that train, evaluate and compare again."""
    commands = [command for run in facts.runs for command in run.commands]
    notes = [] if commands else [Paragraph(words["no_commands"])]
    return [Heading(2, words["reproduce"]), Code([*commands, facts.command]), *notes]
