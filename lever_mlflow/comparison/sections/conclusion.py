"""Says what a comparison comes to: the verdict, the choice of a beta, what is missing and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Code, Heading, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison, Difference, primary
from lever_mlflow.comparison.wording import Wording, decimals
from lever_mlflow.settings import format_beta

__all__ = ["conclusion", "missing", "reproduce", "verdict"]


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
