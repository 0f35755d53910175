"""Says what a comparison comes to: the verdict, the choice of a run, what is missing and how to do it again."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Code, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison, Difference, primary
from lever_mlflow.comparison.fields import aspect_of
from lever_mlflow.comparison.wording import NOTHING, Wording

__all__ = ["best_models", "choice", "missing", "reproduce", "verdict"]


def verdict(facts: Comparison, words: Wording) -> str:
    """Says what the comparison comes to, in a sentence or two."""
    sentences = [_outcome(facts, words)]
    sentences += [words.say("verdict_identical", runs=words.runs(finding.runs)) for finding in facts.identical]
    return words["sentences"].join(sentences)


def _outcome(facts: Comparison, words: Wording) -> str:
    """Says whether the runs are comparable, and what the differences between them show."""
    labels = words.join(run.label for run in facts.runs)
    rows = primary(facts.differences)
    if len(facts.runs) == 1:
        return words.say("verdict_alone", labels=labels)
    if not facts.comparable and facts.varied:
        return words.say("verdict_not_comparable", labels=labels, fields=words.join(facts.confounders))
    if not facts.comparable:
        aspects = [*dict.fromkeys(map(aspect_of, facts.confounders))]
        return words.say("verdict_undecided", labels=labels, fields=words.join(aspects), example=aspects[0])
    if not facts.sizes:
        return words.say("verdict_no_accuracy", labels=labels)
    if not rows:
        return words.say("verdict_unknown", labels=labels)
    questions = max(row.size for row in rows)
    parts = [_better(row, words) for row in rows if row.significant]
    if not parts:
        return words.say("verdict_none", labels=labels, questions=questions, reference=words.run(facts.reference))
    tests = words.tests(len(rows))
    return words.say(
        "verdict_shown", labels=labels, questions=questions, parts=words.join(parts), kind=_kind(rows, words), tests=tests
    )


def _better(row: Difference, words: Wording) -> str:
    better, other = (row.run, row.reference) if row.points > 0 else (row.reference, row.run)
    names = {"better": words.run(better, short=True), "other": words.run(other, short=True, second=True)}
    points, shots = words.points(abs(row.points), signed=False), words.shots(row.shots)
    return words.say("part_better", **names, shots=shots, points=points)


def _kind(rows: Sequence[Difference], words: Wording) -> str:
    return words["kind_paired" if all(row.kind == "paired" for row in rows) else "kind_bound"]


def choice(facts: Comparison, words: Wording) -> str:
    """Names the run to be taken, and says why."""
    label, rule = facts.choice.run, facts.choice.rule
    worse = [*dict.fromkeys(row.run for row in primary(facts.differences) if row.significant and row.points < 0)]
    key = f"choice_{rule}"
    if rule == "better" and label == facts.reference:
        key = "choice_better_reference"
    elif rule == "none" and worse:
        key = "choice_none_better"
    run = "" if label is None else words.run(label)
    return words.say(key, run=run, reference=words.run(facts.reference), worse=words.join(worse))


def best_models(facts: Comparison, words: Wording) -> list[Block]:
    """Names the best model of each run; the chosen run has a star. There is nothing to name where no epoch was evaluated."""
    if not facts.sizes:
        return []
    rows = [
        [
            f"{run.label}{' *' if run.label == facts.choice.run else ''}",
            words.value(run.best_epoch),
            words.accuracy_if_stated(run.selection_accuracy.get(run.best_epoch or 0)),
            words.registered(run.registered),
        ]
        for run in facts.runs
    ]
    return [Table([words.column(), "Epoch", words["selection"], words["model"]], rows)]


def missing(facts: Comparison, words: Wording) -> list[Block]:
    """Lists what is missing, with the commands that produce it."""
    rows = [[part.run, str(part.epoch), ", ".join(part.what), part.command or NOTHING] for part in facts.missing]
    head = [words.column(), "Epoch", words["what"], words["command"]]
    return [Table(head, rows) if rows else Paragraph(words["nothing_missing"])]


def reproduce(facts: Comparison, words: Wording) -> list[Block]:
    """Lists the commands that train, evaluate and compare again."""
    commands = [command for run in facts.runs for command in run.commands]
    notes = [] if commands else [Paragraph(words["no_commands"])]
    known = [*commands, *([facts.command] if facts.command else [])]
    return [*([Code(known)] if known else []), *notes]
