"""Reads the training curves of runs: metrics as they are shown, their changes and their trends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from lever_mlflow.comparison.facts import Curves, Trend
from lever_mlflow.comparison.results import EpochResult, RunResult

__all__ = ["CURVES", "DIGITS", "IN_PERCENT", "change", "curves_of", "present", "shown_metric", "trend"]

CURVES = ("train_loss", "val_loss", "ppo_loss", "kl", "advantage_std", "advantage_max", "beta")
IN_PERCENT = frozenset({"kl", "advantage_std", "advantage_max", "beta"})  # never negative, so that a percentage means something
DIGITS = 6  # of a metric that are shown; what these do not show is no change
_TRENDS: dict[tuple[int, ...], Trend] = {  # signs of the changes -> their trend
    (): "unknown",
    (1,): "rising",
    (-1,): "falling",
    (0,): "constant",
    (0, 1): "not_falling",
    (-1, 0): "not_rising",
}


def curves_of(run: RunResult) -> Curves:
    """Returns the metrics of a run by epoch, each with its changes and its trend."""
    names = [*CURVES, *sorted({name for epoch in run.epochs for name in epoch.metrics} - set(CURVES))]
    values = {name: tuple(shown_metric(run, epoch, name) for epoch in run.epochs) for name in names}
    return Curves(
        run=run.label,
        epochs=tuple(epoch.epoch for epoch in run.epochs),
        values=values,
        changes={name: tuple(change(name, *pair) for pair in itertools.pairwise(row)) for name, row in values.items()},
        trends={name: trend(row) for name, row in values.items()},
    )


def shown_metric(run: RunResult, epoch: EpochResult, name: str) -> float | None:
    """Returns a metric of an epoch with the digits that are shown; beta, where it was not logged, is that of the run."""
    fixed = run.kl_beta if name == "beta" and epoch.metrics and not run.config.get("adaptive_beta") else None
    value = epoch.metrics.get(name, fixed)
    return None if value is None else float(f"{value:.{DIGITS}g}")


def change(name: str, before: float | None, after: float | None) -> float | None:
    """Returns the change of a metric: in percent where the metric is one of ``IN_PERCENT``, else in its own unit.

    Losses may be negative or cross zero, where a percentage says nothing. The change is None where a value is missing or where
    there is nothing to divide by.
    """
    if before is None or after is None:
        return None
    if name not in IN_PERCENT:
        return after - before
    return 100.0 * (after - before) / before if before > 0.0 else None


def trend(values: Sequence[float | None]) -> Trend:
    """Says which way a metric goes from epoch to epoch.

    It is ``rising``, ``falling`` or ``constant`` throughout; ``not_falling`` or ``not_rising`` where it stays at times; else
    ``mixed``. With fewer than two values it is ``unknown``.
    """
    signs = {int(np.sign(after - before)) for before, after in itertools.pairwise(present(values))}
    return _TRENDS.get(tuple(sorted(signs)), "mixed")


def present(values: Sequence[float | None]) -> list[float]:
    """Returns the values that are not missing."""
    return [value for value in values if value is not None]
