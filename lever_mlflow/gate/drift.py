"""Measures how two RL data sets differ, which decides whether runs trained on them can be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lever_mlflow.trials.columns import blocks
from lever_mlflow.trials.rl_data import RLData

if TYPE_CHECKING:
    from lever_mlflow.gate.totals import Totals

__all__ = ["Pair", "differences", "pairs", "partition_of", "reward_counts", "reward_partition", "shared"]

_BINS = 21  # the last one holds the largest reward alone


@dataclass(frozen=True)
class Pair:
    """Holds one figure of the data and of the reference, and whether it is printed in percent."""

    words: str
    value: float
    reference: float
    percent: bool

    def __str__(self) -> str:
        values = (f"{100 * v:.1f} %" if self.percent else f"{v:.4f}" for v in (self.value, self.reference))
        return f"{self.words} {' against '.join(values)}"


def pairs(data: Totals, reference: Totals) -> dict[str, Pair]:
    """Returns the figures of two data sets by name: reward mean, positive-trial and positive-query rate, zero-spread share."""
    sources = {
        "reward_mean": ("mean reward", data.reward, reference.reward, False),
        "positive_trial_rate": ("positive trials", data.correct, reference.correct, True),
        "positive_query_rate": ("positive queries", data.positive, reference.positive, True),
        "zero_spread_share": ("queries without reward spread", data.zero_spread, reference.zero_spread, True),
    }
    return {name: Pair(words, checked.mean, other.mean, percent) for name, (words, checked, other, percent) in sources.items()}


def shared(data: RLData, reference: RLData) -> dict[str, float]:
    """Returns how far two data sets overlap.

    ``shared_queries`` is the share of the smaller set's queries that the other set has too. ``same_pools`` is the share of
    these shared queries that have the same candidate pool in both sets.
    """
    pools, other_pools = (_pools(either) for either in (data, reference))
    both = pools.keys() & other_pools.keys()
    same = sum(pools[query] == other_pools[query] for query in both)
    return {
        "shared_queries": len(both) / min(len(pools), len(other_pools)),
        "same_pools": same / len(both) if both else 0.0,
    }


def _pools(data: RLData) -> dict[int, bytes]:
    """Returns a digest of the set of each query's candidates, by the query's train index."""
    return {
        query_id: hashlib.blake2b(np.unique(columns.pool(row)).tobytes(), digest_size=16).digest()
        for columns in blocks(data.groups)
        for row, query_id in enumerate(columns.query_ids_Q.tolist())
    }


def differences(figures: Mapping[str, Pair], overlap: Mapping[str, float]) -> pd.DataFrame:
    """Returns the one-row table of the suite ``rl_drift``: each figure's difference, data minus reference, and the overlap."""
    return pd.DataFrame([{name: pair.value - pair.reference for name, pair in figures.items()} | dict(overlap)])


def reward_partition(rewards: np.ndarray, bounds: tuple[float, float]) -> dict[str, Any]:
    """Returns the distribution of rewards as a partition object of Great Expectations.

    ``bounds`` are the smallest and the largest reward. A bin is a twentieth of the range between them wide, and the last one
    holds the largest reward alone. Without rewards the distribution is uniform, since Great Expectations needs one; the
    expectations on the other figures fail in that case.
    """
    return partition_of(reward_counts(rewards, bounds), bounds)


def reward_counts(rewards: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Returns how many rewards each bin of ``reward_partition`` holds, int64 [bins]."""
    values = np.clip(rewards[np.isfinite(rewards)], *bounds)
    return np.histogram(values, bins=_edges(bounds))[0]


def partition_of(counts: np.ndarray, bounds: tuple[float, float]) -> dict[str, Any]:
    """Returns the partition object of ``reward_partition`` from the number of rewards in each bin."""
    weights = counts / counts.sum() if counts.any() else np.full(_BINS, 1 / _BINS)
    return {"bins": _edges(bounds).tolist(), "weights": weights.tolist()}


def _edges(bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    edges = low + np.arange(_BINS + 1) * (high - low) / (_BINS - 1)
    edges[1:] -= 1e-9  # 0.3 lies in the bin from 0.3 to 0.4, on whichever side of the edge its float may be
    return edges
