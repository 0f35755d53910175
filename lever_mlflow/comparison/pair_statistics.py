"""Summarizes the differences of a pair of runs over cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lever_mlflow.comparison.differences import Pair
from lever_mlflow.comparison.facts import CellStatistics, Difference, ExtremeCell, MissingCell, PairStatistics, known

__all__ = ["statistics_of"]


def statistics_of(pair: Pair, differences: Sequence[Difference | MissingCell]) -> PairStatistics:
    """Returns, by label, means, extremes and counts over the cells of a pair."""
    run, reference = pair.run.label, pair.reference.label
    cells = [cell for cell in differences if (cell.run, cell.reference) == (run, reference)]
    by_label = {
        str(label): _of_cells([cell for cell in cells if cell.label == label])
        for label in dict.fromkeys(cell.label for cell in cells)
    }
    return PairStatistics(run=run, reference=reference, by_label=by_label)


def _of_cells(cells: Sequence[Difference | MissingCell]) -> CellStatistics:
    directions = [cell.direction for cell in cells]
    differences = known(cells)
    return CellStatistics(
        cells=len(cells),
        up=directions.count("up"),
        tie=directions.count("tie"),
        down=directions.count("down"),
        missing=directions.count("missing"),
        mean=_mean(differences),
        largest_gain=_extreme([row for row in differences if row.points > 0], max),
        largest_drop=_extreme([row for row in differences if row.points < 0], min),
        by_shots={k: _mean([row for row in differences if row.shots == k]) for k in dict.fromkeys(c.shots for c in cells)},
        by_size={n: _mean([row for row in differences if row.size == n]) for n in dict.fromkeys(c.size for c in cells)},
    )


def _mean(rows: Sequence[Difference]) -> float | None:
    return float(np.mean([row.points for row in rows])) if rows else None


def _extreme(rows: Sequence[Difference], choose: Callable[..., Difference]) -> ExtremeCell | None:
    if not rows:
        return None
    row = choose(rows, key=lambda row: row.points)
    return ExtremeCell(points=row.points, size=row.size, shots=row.shots)
