"""Shows what is to be seen first: origin of the numbers, verdict, choice, and the largest size at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Line, Link, Paragraph, SideBySide, Table
from lever_mlflow.comparison.facts import AgainstStrongest, Comparison, LinkedRun
from lever_mlflow.comparison.fields import aspect_of
from lever_mlflow.comparison.results import RunResult
from lever_mlflow.comparison.sections.conclusion import choice, verdict
from lever_mlflow.comparison.wording import NOTHING, Wording

__all__ = ["overview", "unevaluated"]

_SHORT = 10  # characters of a git commit or run id that are shown; the whole ids are in the test configuration
_UNKNOWN_COMMITS = ("", "unknown")


def overview(facts: Comparison, words: Wording) -> list[Block]:
    """Returns what is seen first."""
    origin = [*_origin(facts, words), *(_run(run, words) for run in facts.mlflow_runs)]
    return [
        *([Line(origin)] if origin else []),
        Paragraph(verdict(facts, words), strong=True, label=words["verdict"]),
        Paragraph(choice(facts, words), label=words["choice"]),
        *_also_differs(facts, words),
        *(_largest_size(facts, words) if facts.sizes else [words.figure("training_curves.png", "curves")]),
        *unevaluated(facts, words),
    ]


def _origin(facts: Comparison, words: Wording) -> list[str]:
    """Names date, commits, data set and VLM, as far as they are known."""
    trained = dict.fromkeys(run.git_commit for run in facts.runs if run.git_commit not in (*_UNKNOWN_COMMITS, facts.git_commit))
    commits = [words.say("commit", commit=facts.git_commit[:_SHORT])] if facts.git_commit else []
    commits += [words.say("commit_trained", commit=commit[:_SHORT]) for commit in trained]
    named = [words.say(f"{name}_named", name=value) for name in ("dataset", "vlm") if (value := getattr(facts, name))]
    return [*([facts.created_at] if facts.created_at else []), *commits, *named]


def _run(run: LinkedRun, words: Wording) -> str | Link:
    return Link(run.name, run.url) if run.url else words.say("run_named", name=run.name, run_id=run.run_id[:_SHORT])


def _also_differs(facts: Comparison, words: Wording) -> list[Block]:
    """Says what else the runs are, where a single aspect beside beta tells them apart; nothing elsewhere."""
    telling = [row for row in facts.fields if row.mark == "confounding" and len(set(row.values)) == len(facts.runs)]
    if not facts.by_beta or not telling or len(set(map(aspect_of, facts.confounders))) > 1:
        return []
    values = words.join(
        f"{words.value(value)} ({words.run(run.label)})" for value, run in zip(telling[0].values, facts.runs, strict=True)
    )
    return [Paragraph(words.say("also_differs", field=aspect_of(telling[0].field), values=values))]


def _largest_size(facts: Comparison, words: Wording) -> list[Block]:
    """Shows, at the size that claims rest on, the strongest baselines and what each best epoch gains over them."""
    size = facts.claimed_size
    figure = words.figure("intervals.png", "intervals")
    if not any(size in epoch.accuracy for run in facts.runs for epoch in run.epochs):
        return []
    gains = {(row.run, row.shots): row for row in facts.against_strongest if row.size == size}
    head = ["", *(words.shots(k) for k in facts.shots)]
    rows = [*_strongest_rows(facts, gains, words), *(_run_row(run, size, gains, facts.shots, words) for run in facts.runs)]
    note = words.say("top_gains_note" if gains else "top_note", size=size)
    return [Paragraph(note), SideBySide([Table(head, rows), figure])]


def _strongest_rows(facts: Comparison, gains: dict[tuple[str, int], AgainstStrongest], words: Wording) -> list[list[str]]:
    """Returns a row with the strongest baselines, or a row for each run where they are not the same for all."""
    rows: dict[str, list[str]] = {}
    for run in facts.runs:
        known = [gains.get((run.label, k)) for k in facts.shots]
        if any(known):
            rows[run.label] = [f"{words.accuracy(row.accuracies[1])}\n{row.baseline}" if row else NOTHING for row in known]
    if len({tuple(row) for row in rows.values()}) == 1:
        return [[words["strongest"], *next(iter(rows.values()))]]
    return [[words.say("strongest_of", run=words.run(label)), *row] for label, row in rows.items()]


def _run_row(
    run: RunResult,
    size: int,
    gains: dict[tuple[str, int], AgainstStrongest],
    shots: Sequence[int],
    words: Wording,
) -> list[str]:
    """Returns the accuracies of the best epoch, or of the last one that was evaluated, each with its gain below."""
    epoch = run.best_or_last
    cells = []
    for k in shots:
        lines = [words.accuracy(epoch.accuracy_at(size, k))]
        row = gains.get((run.label, k))
        if row:
            lines += [f"{words.difference(row.points)} {words.arrow(row)}".rstrip(), words.interval(row.interval)]
        cells.append("\n".join(lines))
    return [words.run_epoch(run.label, epoch.epoch), *cells]


def unevaluated(facts: Comparison, words: Wording) -> list[Block]:
    """Says which epochs were trained but not evaluated, once for all runs that share them; nothing where all or none were."""
    if not facts.sizes:
        return []
    runs: dict[tuple[int, ...], list[str]] = {}
    for label, epochs in facts.unevaluated.items():
        runs.setdefault(tuple(epochs), []).append(label)
    return [
        Paragraph(words.say("unevaluated", runs=words.runs(labels), epochs=words.epochs(epochs)))
        for epochs, labels in runs.items()
    ]
