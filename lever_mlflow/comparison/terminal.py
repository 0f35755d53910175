"""Writes a comparison as plain tables for the terminal, in the words of one language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.page import choice, verdict
from lever_mlflow.comparison.results import Accuracies, RunResult
from lever_mlflow.comparison.wording import Wording, policy_label
from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.files.tables import Align, aligned
from lever_mlflow.settings import Language

__all__ = ["summary"]


def summary(facts: Comparison, language: Language) -> str:
    """Writes accuracies in percent, gains over the strongest baselines, the verdict and the choice.

    The accuracies are those on the number of questions that claims rest on: a row per baseline and per evaluated epoch of each
    run, and a column per shot count.
    """
    words = Wording.of(facts, language)
    lines = [
        *_accuracies(facts, words),
        *_oracle(facts.runs, words),
        *_registered(facts.runs, words),
        *_strongest(facts, words),
    ]
    lines += [f"{words['verdict']} {verdict(facts, language)}", f"{words['choice']} {choice(facts, language)}"]
    return "\n".join(lines)


def _accuracies(facts: Comparison, words: Wording) -> list[str]:
    """Writes the table of accuracies; nothing where no epoch was evaluated."""
    size = facts.claimed_size
    if not size:
        return []
    shots = sorted({0, *facts.shots})
    rows = [
        ["", *map(words.shots, shots)],
        *_baseline_rows(facts.runs, size, shots),
        *_epoch_rows(facts, size, shots, words),
    ]
    right: Sequence[Align] = ["right"] * len(shots)
    return [words.say("terminal_title", size=size), aligned(rows, align=["left", *right])]


def _baseline_rows(runs: Sequence[RunResult], size: int, shots: Sequence[int]) -> list[list[str]]:
    """Writes a row per baseline; one that several runs share is shown once."""
    shown: dict[str, Accuracies] = {}
    rows = []
    for run in runs:
        for name, accuracy in run.baselines.items():
            if shown.get(name) != accuracy:
                shown[name] = accuracy
                rows.append([policy_label(run, name), *_cells(accuracy.get(size, {}), shots)])
    return rows


def _epoch_rows(facts: Comparison, size: int, shots: Sequence[int], words: Wording) -> list[list[str]]:
    """Writes a row per evaluated epoch; the best ones have a star, and those whose gains are shown."""
    gains = {row.run for row in facts.against_strongest}
    return [
        [
            words.say("terminal_epoch", run=words.run(run.label, short=True), epoch=epoch.epoch)
            + (" *" if epoch.epoch == run.best_epoch or (run.label in gains and epoch == run.best_or_only) else ""),
            *_cells(epoch.accuracy.get(size, {}), shots),
        ]
        for run in facts.runs
        for epoch in run.evaluated
    ]


def _cells(row: Mapping[int, float], shots: Sequence[int]) -> list[str]:
    return [decimals(row[k]) if k in row else "-" for k in shots]


def _oracle(runs: Sequence[RunResult], words: Wording) -> list[str]:
    """Writes what there is to win with one demonstration of each pool; nothing where that was not measured."""
    best_single = next((run.best_single for run in runs if run.best_single), None)
    if best_single is None:
        return []
    figures = {name: decimals(100 * getattr(best_single, name)) for name in ("oracle", "random")}
    winnable = decimals(100 * best_single.winnable, 0)
    return [words.say("terminal_oracle", **figures, winnable=winnable, questions=best_single.questions)]


def _registered(runs: Sequence[RunResult], words: Wording) -> list[str]:
    """Writes a line for each best epoch: the version that it is, or that it is not registered."""
    return [
        words.say(
            "terminal_registered" if run.registered else "terminal_not_registered",
            run=words.run(run.label, short=True),
            epoch=run.best_epoch,
            **dict(run.registered or {}),
        )
        for run in runs
        if run.best_epoch is not None and (run.registered or run.run_id)  # runs of a results file are registered nowhere
    ]


def _strongest(facts: Comparison, words: Wording) -> list[str]:
    """Writes a table of how far the best epochs are ahead of the strongest baseline at each shot count; nothing without one."""
    if not facts.against_strongest:
        return []
    rows = [
        [
            words.run(row.run, short=True),
            words.shots(row.shots),
            words.difference(row.points),
            words.interval(row.interval),
            f"{decimals(row.accuracies[1])} {row.baseline}",
        ]
        for row in facts.against_strongest
    ]
    return [words["terminal_gains"], aligned(rows, align=["left", "left", "right", "right", "left"])]
