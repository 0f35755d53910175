"""Drift: two RL data sets side by side, so that runs trained on them can be compared or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lever_mlflow.trials.rl_data import RLData

__all__ = ["Pair", "differences", "pairs", "reward_partition", "shared"]

_BINS = 21  # the last one is for the largest reward alone


@dataclass(frozen=True)
class Pair:
    """One figure of the data and of the reference; ``percent`` tells how to print it."""

    words: str
    value: float
    reference: float
    percent: bool

    def __str__(self) -> str:
        values = (f"{100 * v:.1f} %" if self.percent else f"{v:.4f}" for v in (self.value, self.reference))
        return f"{self.words} {' against '.join(values)}"


def pairs(
    trials: pd.DataFrame, queries: pd.DataFrame, other_trials: pd.DataFrame, other_queries: pd.DataFrame
) -> dict[str, Pair]:
    """Figures of both, by name: reward mean, positive-trial rate, positive-query rate, zero-spread share."""
    sources = {
        "reward_mean": ("mean reward", trials["reward"], other_trials["reward"], False),
        "positive_trial_rate": ("positive trials", trials["vqa_correct"], other_trials["vqa_correct"], True),
        "positive_query_rate": ("positive queries", queries["positive"], other_queries["positive"], True),
        "zero_spread_share": ("queries without reward spread", queries["zero_spread"], other_queries["zero_spread"], True),
    }
    return {
        name: Pair(words, float(ours.mean()), float(theirs.mean()), percent)
        for name, (words, ours, theirs, percent) in sources.items()
    }


def shared(data: RLData, reference: RLData) -> dict[str, float]:
    """``shared_queries``: share of the smaller set's queries that the other has; ``same_pools``: of those, with equal pools."""
    ours = {group.query_id: group.pool for group in data.groups}
    theirs = {group.query_id: group.pool for group in reference.groups}
    both = ours.keys() & theirs.keys()
    same = sum(set(ours[query]) == set(theirs[query]) for query in both)
    return {
        "shared_queries": len(both) / min(len(ours), len(theirs)),
        "same_pools": same / len(both) if both else 0.0,
    }


def differences(figures: Mapping[str, Pair], overlap: Mapping[str, float]) -> pd.DataFrame:
    """The one-row table of the suite ``rl_drift``: data minus reference of each figure, and the overlap."""
    return pd.DataFrame([{name: pair.value - pair.reference for name, pair in figures.items()} | dict(overlap)])


def reward_partition(rewards: np.ndarray, reward_max: float) -> dict[str, Any]:
    """Distribution of rewards as Great Expectations' partition object.

    Bins are a twentieth of ``reward_max`` wide, the last one is for that alone.

    Without rewards it is uniform, since there must be one; expectations on the figures fail then.
    """
    values = np.clip(rewards[np.isfinite(rewards)], 0.0, reward_max)
    edges = np.arange(_BINS + 1) * reward_max / (_BINS - 1)
    edges[1:] -= 1e-9  # 0.3 lies in the bin from 0.3 to 0.4, on whichever side of the edge its float may be
    counts, _ = np.histogram(values, bins=edges)
    weights = counts / counts.sum() if counts.any() else np.full(_BINS, 1 / _BINS)
    return {"bins": edges.tolist(), "weights": weights.tolist()}
