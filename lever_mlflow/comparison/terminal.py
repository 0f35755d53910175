"""Writes a comparison as a plain table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.page import verdict
from lever_mlflow.comparison.results import Accuracies, RunResult
from lever_mlflow.comparison.wording import policy_label
from lever_mlflow.files.tables import Align, aligned
from lever_mlflow.settings import format_beta

__all__ = ["summary"]


def summary(facts: Comparison) -> str:
    """Writes the accuracies in percent at the largest size.

    There is a row per baseline and per epoch of each beta, and a column per shot count.
    """
    size = max(facts.sizes, default=0)
    shots = sorted({0, *facts.shots})
    head = ["", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]
    rows = [head, *_baseline_rows(facts.runs, size, shots), *_epoch_rows(facts.runs, size, shots)]
    right: Sequence[Align] = ["right"] * len(shots)
    table = aligned(rows, align=["left", *right])
    title = f"VQA accuracy in percent on {size} questions"
    return "\n".join([title, table, *_oracle(facts.runs), *_registered(facts.runs), *_strongest(facts), verdict(facts, "en")])


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


def _epoch_rows(runs: Sequence[RunResult], size: int, shots: Sequence[int]) -> list[list[str]]:
    """Writes a row per epoch; the best ones have a star."""
    return [
        [
            f"beta {format_beta(run.kl_beta)} epoch {epoch.epoch}{' *' if epoch.epoch == run.best_epoch else ''}",
            *_cells(epoch.accuracy.get(size, {}), shots),
        ]
        for run in runs
        for epoch in run.epochs
    ]


def _cells(row: Mapping[int, float], shots: Sequence[int]) -> list[str]:
    return [f"{row[k]:.2f}" if k in row else "-" for k in shots]


def _oracle(runs: Sequence[RunResult]) -> list[str]:
    """Writes what there is to win with one demonstration, which does not depend on beta; nothing where it was not measured."""
    best_single = next((run.best_single for run in runs if run.best_single), None)
    if best_single is None:
        return []
    return [
        f"oracle: {100 * best_single.oracle:.2f} with the best single demonstration of each pool, on the first "
        f"{best_single.questions} questions ({100 * best_single.random:.2f} with the mean one; it matters on "
        f"{100 * best_single.winnable:.0f} % of them)"
    ]


def _registered(runs: Sequence[RunResult]) -> list[str]:
    """Writes a line per registered version."""
    return [
        f"* beta {format_beta(run.kl_beta)}: epoch {run.best_epoch}, chosen on selection questions, is {run.registered.name} "
        f"version {run.registered.version}, alias {run.registered.alias}"
        for run in runs
        if run.registered and run.best_epoch is not None
    ]


def _strongest(facts: Comparison) -> list[str]:
    """Writes a table of how far the best epochs are ahead of the strongest baseline at each shot count; nothing without one."""
    if not facts.against_strongest:
        return []
    rows = [
        [
            f"beta {format_beta(row.beta)}",
            f"{row.shots} shot{'s' * (row.shots != 1)}",
            f"{row.points:+.2f}",
            f"[{row.interval[0]:+.2f}, {row.interval[1]:+.2f}]",
            f"{row.accuracies[1]:.2f} {row.baseline}",
        ]
        for row in facts.against_strongest
    ]
    title = "Gain of the starred epochs over the strongest baseline, in points with 95 % intervals"
    return [title, aligned(rows, align=["left", "left", "right", "right", "left"])]
