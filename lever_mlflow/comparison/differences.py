"""Computes the differences between runs, and between best epochs and baselines, with their tests and intervals.

Tests and intervals of runs are corrected by Holm's method within two families: the primary cells, which are the best epochs at
the largest size and on which all claims rest, and all other cells. The tests against baselines are a family of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from lever_mlflow.comparison.facts import (
    BEST,
    AgainstBaseline,
    AgainstStrongest,
    Cell,
    Difference,
    Label,
    MissingCell,
    TestedDifference,
)
from lever_mlflow.comparison.findings import Interval, Kind
from lever_mlflow.comparison.results import RunResult
from lever_mlflow.evaluation.policies import epoch_policy
from lever_mlflow.evaluation.records import EvaluationRecords, images_of
from lever_mlflow.evaluation.statistics import (
    deviation_by_image,
    holm,
    interval,
    normal_quantile,
    questions_needed,
    resampled_means,
    sign_flip_p_value,
)
from lever_mlflow.evaluation.strongest import strongest

__all__ = ["LEVEL", "TIE", "Pair", "against_baselines", "against_strongest", "differences"]

TIE = 0.25  # points; a smaller difference is a tie whatever its interval
LEVEL = 0.05

Records = Mapping[str, EvaluationRecords]  # by label, of those runs that have any


class Pair(NamedTuple):
    """Holds a run and the reference that it is compared with."""

    run: RunResult
    reference: RunResult

    @property
    def same_questions(self) -> bool:
        """Whether an id names the same question in both runs, so that they can be compared question by question."""
        first, second = (run.config.get("dataset_digest") for run in self)
        return first == second


class _Untested(NamedTuple):
    """Holds a difference of means in points that is not tested yet.

    ``paired_Q`` holds the differences by question and image, in [-1, 1]. Where there are no records it is None, and
    ``deviation`` is the largest standard deviation that the differences may have.
    """

    points: float
    size: int
    deviation: float
    paired_Q: pd.Series | None

    @property
    def direction(self) -> Literal["up", "tie", "down"]:
        """Says which way the difference goes."""
        if abs(self.points) <= TIE + 1e-9:
            return "tie"
        return "up" if self.points > 0 else "down"


def differences(
    pairs: Sequence[Pair], records: Records, sizes: Sequence[int], shots: Sequence[int], seed: int
) -> tuple[Difference | MissingCell, ...]:
    """Compares every pair in every cell.

    Of two runs these are the cells of all epochs that were evaluated in both, and of the best epochs. Of more runs they are
    only the cells of the best epochs, or of the last epoch in common where a best epoch is not known.
    """
    cells: list[tuple[Cell, _Untested | None]] = []
    for pair in pairs:
        labels = _labels(pair, every_epoch=len(pairs) == 1)
        cells += _cells(pair, records, labels, list(itertools.product(labels, sizes, shots)))
    tested: dict[int, TestedDifference] = {}
    for family in (True, False):
        untested = {i: row for i, (cell, row) in enumerate(cells) if row is not None and cell.primary is family}
        tested |= dict(zip(untested, _test(list(untested.values()), seed), strict=True))
    return tuple(
        Difference(**dict(cell), **dict(tested[i])) if i in tested else MissingCell(**dict(cell))
        for i, (cell, _) in enumerate(cells)
    )


def against_baselines(runs: Sequence[RunResult], records: Records, size: int, seed: int) -> tuple[AgainstBaseline, ...]:
    """Compares each best epoch with each baseline of its run: means over shots, in pairs on so many questions.

    What has no records is left out.
    """
    rows: list[tuple[RunResult, str, tuple[float, float], _Untested]] = []
    for run in runs:
        if run.best_epoch is None or run.label not in records or not size:
            continue
        best = records[run.label].by_question(epoch_policy(run.best_epoch), size=size)
        for name in run.baselines:
            baseline = records[run.label].by_question(name, size=size)
            paired_Q = _paired(best, baseline)
            if paired_Q is None or best is None or baseline is None:
                continue
            accuracies = (100.0 * float(best.mean()), 100.0 * float(baseline.mean()))
            rows.append((run, name, accuracies, _untested(float(100.0 * paired_Q.mean()), paired_Q)))
    tested = _test([untested for *_, untested in rows], seed)
    return tuple(
        AgainstBaseline(run=run.label, baseline=name, size=size, accuracies=accuracies, **dict(test))
        for (run, name, accuracies, _), test in zip(rows, tested, strict=True)
    )


def against_strongest(
    runs: Sequence[RunResult], records: Records, size: int, shots: Sequence[int], seed: int
) -> tuple[AgainstStrongest, ...]:
    """Compares each best epoch with the strongest baseline of its run, at each shot count on so many questions.

    An epoch that was evaluated alone takes the place of the best epoch.
    Zero-shot is a baseline at every shot count. What has no accuracy is left out.
    """
    rows: list[tuple[dict[str, Any], _Untested]] = []
    for run, k in itertools.product(runs, shots):
        epoch = run.best_or_only
        best = epoch.accuracy_at(size, k) if epoch else None
        baseline = strongest(_of_baselines(run, size), k)
        if epoch is None or best is None or baseline is None:
            continue
        paired_Q = None
        if run.label in records:
            answered = ((epoch_policy(epoch.epoch), k), (baseline.policy, baseline.shots))
            by_question = (records[run.label].by_question(policy, shots=at, size=size) for policy, at in answered)
            paired_Q = _paired(*by_question)
        accuracies = (best, baseline.accuracy)
        place = {"run": run.label, "baseline": baseline.policy, "size": size, "shots": k, "accuracies": accuracies}
        rows.append((place, _points(*accuracies, size, paired_Q)))
    tested = _test([untested for _, untested in rows], seed)
    return tuple(AgainstStrongest(**place, **dict(test)) for (place, _), test in zip(rows, tested, strict=True))


def _of_baselines(run: RunResult, size: int) -> dict[tuple[str, int | None], float]:
    """Returns the accuracies of a run's baselines on so many questions, by baseline and shot count."""
    return {(name, k): accuracy for name, cells in run.baselines.items() for k, accuracy in cells.get(size, {}).items()}


def _labels(pair: Pair, *, every_epoch: bool) -> list[Label]:
    common = sorted({epoch.epoch for epoch in pair.run.evaluated} & {epoch.epoch for epoch in pair.reference.evaluated})
    best = all(run.best_epoch is not None for run in pair)
    both = best or (not common and all(run.best_or_only for run in pair))
    labels: list[Label] = list(common if every_epoch else [] if both else common[-1:])
    return [*labels, BEST] if both else labels


def _cells(
    pair: Pair, records: Records, labels: Sequence[Label], places: Sequence[tuple[Label, int, int]]
) -> list[tuple[Cell, _Untested | None]]:
    """Returns the cells of a pair; primary are those of the last label at the largest size with a known difference."""
    rows = [_difference(pair, records, *place) for place in places]
    claims = [size for (label, size, _), (_, untested) in zip(places, rows, strict=True) if untested and label == labels[-1]]
    largest = max(claims, default=None)
    return [
        (
            Cell(
                run=pair.run.label,
                reference=pair.reference.label,
                label=label,
                size=size,
                shots=shots,
                accuracies=accuracies,
                primary=label == labels[-1] and size == largest,
            ),
            untested,
        )
        for (label, size, shots), (accuracies, untested) in zip(places, rows, strict=True)
    ]


def _difference(
    pair: Pair, records: Records, label: Label, size: int, shots: int
) -> tuple[tuple[float | None, float | None], _Untested | None]:
    """Returns both accuracies of a cell in percent, and their difference where both are known."""
    epochs = [run.best_or_only if label == BEST else run.epoch(int(label)) for run in pair]
    first, second = (epoch.accuracy_at(size, shots) if epoch else None for epoch in epochs)
    if first is None or second is None:
        return (first, second), None
    by_question = [
        records[run.label].by_question(epoch_policy(epoch.epoch), shots=shots, size=size)
        if epoch and run.label in records and pair.same_questions
        else None
        for run, epoch in zip(pair, epochs, strict=True)
    ]
    return (first, second), _points(first, second, size, _paired(*by_question))


def _points(first: float, second: float, size: int, paired_Q: pd.Series | None) -> _Untested:
    """Returns the difference of two accuracies in percent, with a bound on its error where no paired differences are known."""
    if paired_Q is not None:
        return _untested(first - second, paired_Q)
    # The largest variance of values in [0, 1] with that mean; answers to the same questions are seldom opposed.
    bound = float(np.sqrt(first * (100.0 - first) + second * (100.0 - second)))
    return _Untested(first - second, size, bound, None)


def _paired(first: pd.Series | None, second: pd.Series | None) -> pd.Series | None:
    """Returns the differences on the same questions in the same order; None where the questions are not the same."""
    if first is None or second is None or not first.index.equals(second.index):
        return None
    return first - second


def _untested(points: float, paired_Q: pd.Series) -> _Untested:
    deviation = 100.0 * deviation_by_image(paired_Q.to_numpy(), images_of(paired_Q))
    return _Untested(points, len(paired_Q), deviation, paired_Q)


def _test(rows: Sequence[_Untested], seed: int) -> list[TestedDifference]:
    """Tests the differences of a family, paired where there are records, else with a bound on their error."""
    p_values = [_p_value(row) for row in rows]
    paired = {i: row.paired_Q for i, row in enumerate(rows) if row.paired_Q is not None}
    values, images = [row.to_numpy() for row in paired.values()], [images_of(row) for row in paired.values()]
    means = dict(zip(paired, resampled_means(values, seed, images), strict=True))
    tested = []
    for i, (row, p_value, p_holm, level) in enumerate(zip(rows, p_values, *holm(p_values), strict=True)):
        low, high = corrected = _interval(row, means.get(i), 1.0 - level)
        kind: Kind = "bound" if row.paired_Q is None else "paired"
        tested.append(
            TestedDifference(
                points=row.points,
                direction=row.direction,
                deviation=row.deviation,
                kind=kind,
                p=p_value,
                interval=_interval(row, means.get(i), 1.0 - LEVEL),
                interval_holm=corrected,
                p_holm=p_holm,
                significant=row.direction != "tie" and p_holm < LEVEL and (low > 0.0 or high < 0.0),
                questions_needed=questions_needed(row.points, row.deviation, level),
            )
        )
    return tested


def _p_value(row: _Untested) -> float:
    """Applies the sign-flip test to paired differences; without them, the normal test to two means of independent answers."""
    if row.paired_Q is not None:
        return sign_flip_p_value(row.paired_Q.to_numpy(), images_of(row.paired_Q))
    from scipy.special import ndtr

    error = row.deviation / np.sqrt(row.size)
    return float(2.0 * ndtr(-abs(row.points) / error)) if error else 1.0


def _interval(row: _Untested, means_R: np.ndarray | None, confidence: float) -> Interval:
    """Returns the interval in points: of the resampled means of paired differences, else by the bound."""
    if means_R is not None:
        low, high = interval(means_R, confidence)
        return 100.0 * low, 100.0 * high
    reach = -normal_quantile((1.0 - confidence) / 2.0) * row.deviation / float(np.sqrt(row.size))
    return row.points - reach, row.points + reach
