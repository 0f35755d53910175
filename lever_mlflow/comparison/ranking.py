"""Ranks the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lever_mlflow.comparison.differences import LEVEL, Records
from lever_mlflow.comparison.facts import RankedRun
from lever_mlflow.comparison.results import RunResult
from lever_mlflow.evaluation.policies import epoch_policy
from lever_mlflow.evaluation.records import images_of
from lever_mlflow.evaluation.statistics import interval, resampled_means

__all__ = ["ranked"]


def ranked(runs: Sequence[RunResult], records: Records, size: int, seed: int) -> list[RankedRun]:
    """Ranks the best epochs, or the last ones that were evaluated where none was chosen.

    They are ranked by accuracy on the selection questions where all have one, else by the
    mean on ``size`` questions, which is 0 where no accuracy is known.
    """
    intervals = _intervals(runs, records, size, seed)
    rows = []
    for run in runs:
        epoch = run.best_or_last
        cells = list(epoch.accuracy.get(size, {}).values())
        rows.append(
            RankedRun(
                run=run.label,
                epoch=epoch.epoch,
                selection=run.selection_accuracy.get(epoch.epoch),
                accuracy=float(np.mean(cells)) if cells else None,
                interval=intervals.get(run.label),
                kl=epoch.metrics.get("kl"),
                size=size or None,
                registered=run.registered,
            )
        )
    selected = all(row.selection is not None for row in rows)

    def merit(row: RankedRun) -> float:
        value = row.selection if selected else row.accuracy
        return -1.0 if value is None else value

    return sorted(rows, key=merit, reverse=True)


def _intervals(runs: Sequence[RunResult], records: Records, size: int, seed: int) -> dict[str, tuple[float, float]]:
    """Returns the intervals of the mean accuracy over shots in percent, by label, of those runs that have records."""
    if not size:
        return {}
    means = {
        run.label: mean_Q
        for run in runs
        if run.label in records
        and (mean_Q := records[run.label].by_question(epoch_policy(run.best_or_last.epoch), size=size)) is not None
    }
    values, images = [mean_Q.to_numpy() for mean_Q in means.values()], [images_of(mean_Q) for mean_Q in means.values()]
    ends = [interval(means_R, 1.0 - LEVEL) for means_R in resampled_means(values, seed, images)]
    return {label: (100.0 * low, 100.0 * high) for label, (low, high) in zip(means, ends, strict=True)}
