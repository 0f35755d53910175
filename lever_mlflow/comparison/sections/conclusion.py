"""Says what a comparison comes to: the verdict, the choice of a beta, what is missing and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Code, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison, Difference, primary
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.settings import format_beta

__all__ = ["best_models", "choice", "missing", "reproduce", "verdict"]


def verdict(facts: Comparison, words: Wording) -> str:
    """Says what the comparison comes to, in a sentence or two."""
    betas = words.join(format_beta(run.kl_beta) for run in facts.runs)
    rows = primary(facts.differences)
    if len(facts.runs) == 1:
        return words.say("verdict_alone", betas=betas)
    if not facts.comparable:
        return words.say("verdict_not_comparable", betas=betas, fields=words.join(facts.confounders))
    if not rows:
        return words.say("verdict_unknown", betas=betas)
    questions = max(row.size for row in rows)
    parts = [_better(row, words) for row in rows if row.significant]
    if not parts:
        return words.say("verdict_none", betas=betas, questions=questions)
    tests = words.tests(len(rows))
    return words.say(
        "verdict_shown", betas=betas, questions=questions, parts=words.join(parts), kind=_kind(rows, words), tests=tests
    )


def _better(row: Difference, words: Wording) -> str:
    better, other = (row.beta, row.reference) if row.points > 0 else (row.reference, row.beta)
    points, shots = words.points(abs(row.points), signed=False), words.shots(row.shots)
    return words.say("part_better", better=format_beta(better), other=format_beta(other), shots=shots, points=points)


def _kind(rows: Sequence[Difference], words: Wording) -> str:
    return words["kind_paired" if all(row.kind == "paired" for row in rows) else "kind_bound"]


def choice(facts: Comparison, words: Wording) -> str:
    """Names the beta to be taken, and says why."""
    beta, rule = facts.choice.beta, facts.choice.rule
    key = "choice_better_reference" if rule == "better" and beta == facts.reference else f"choice_{rule}"
    return words.say(key, beta="" if beta is None else format_beta(beta), reference=format_beta(facts.reference))


def best_models(facts: Comparison, words: Wording) -> list[Block]:
    """Names the best model of each beta; the chosen beta has a star."""
    rows = [
        [
            f"{format_beta(run.kl_beta)}{' *' if run.kl_beta == facts.choice.beta else ''}",
            words.value(run.best_epoch),
            words.accuracy_if_stated(run.selection_accuracy.get(run.best_epoch or 0)),
            words.registered(run.registered),
        ]
        for run in facts.runs
    ]
    return [Table(["KL_BETA", "Epoch", words["selection"], words["model"]], rows)]


def missing(facts: Comparison, words: Wording) -> list[Block]:
    """Lists what is missing, with the commands that produce it."""
    rows = [[format_beta(part.beta), str(part.epoch), ", ".join(part.what), part.command] for part in facts.missing]
    head = ["KL_BETA", "Epoch", words["what"], words["command"]]
    return [Table(head, rows) if rows else Paragraph(words["nothing_missing"])]


def reproduce(facts: Comparison, words: Wording) -> list[Block]:
    """Lists the commands that train, evaluate and compare again."""
    commands = [command for run in facts.runs for command in run.commands]
    notes = [] if commands else [Paragraph(words["no_commands"])]
    return [Code([*commands, facts.command]), *notes]
