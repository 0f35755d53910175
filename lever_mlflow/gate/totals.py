"""Adds up the figures of RL data block by block, so that no more than a block of their tables need be in memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lever_mlflow.gate.drift import partition_of, reward_counts
from lever_mlflow.gate.result import Method, metric_name

__all__ = ["METHODS", "Moments", "Totals"]

METHODS = ("beam", "sample", "retrieval", "random", "global_search")


@dataclass
class Moments:
    """Holds the number of values that were added, their sum and the sum of their squared distances to their mean."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: pd.Series) -> None:
        """Adds values by the formula of Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm" (1979)."""
        if values.empty:
            return
        numbers = values.to_numpy(dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # figures that are not finite are left out at the end
            total = float(numbers.sum())
            mean = total / len(numbers)
            squares = float(((mean - numbers) ** 2).sum())
            if self.count:
                between = self.count * len(numbers) / (self.count + len(numbers))
                squares += self.squares + (mean - self.mean) * (mean - self.mean) * between
        self.count, self.total, self.squares = self.count + len(numbers), self.total + total, squares

    @property
    def mean(self) -> float:
        """Returns the mean; NaN without values."""
        return self.total / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Returns the unbiased standard deviation; NaN for fewer than two values."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else math.nan


@dataclass
class Totals:
    """Holds what is known of the blocks that were added.

    Attributes:
        bounds: the smallest and the largest reward.
        reward, correct: of the trials.
        positive, zero_spread, n_trials: of the queries.
        pool_size_min: size of the smallest pool.
        methods: correctness and rewards of the trials by generation method; methods that are not ours count as ``other``.
        rewards_per_bin: how many rewards each bin of the histogram holds.
        positives: how many queries have so many positive trials.
    """

    bounds: tuple[float, float]
    reward: Moments = field(default_factory=Moments)
    correct: Moments = field(default_factory=Moments)
    positive: Moments = field(default_factory=Moments)
    zero_spread: Moments = field(default_factory=Moments)
    n_trials: Moments = field(default_factory=Moments)
    pool_size_min: float = math.inf
    methods: dict[str, tuple[Moments, Moments]] = field(
        default_factory=lambda: {name: (Moments(), Moments()) for name in (*METHODS, "other")}
    )
    rewards_per_bin: np.ndarray | int = 0
    positives: Counter[int] = field(default_factory=Counter)

    def add(self, trials: pd.DataFrame, queries: pd.DataFrame) -> None:
        """Adds the ``trial_table`` and the ``query_table`` of a block."""
        self.reward.add(trials["reward"])
        self.correct.add(trials["vqa_correct"])
        for moments, name in ((self.positive, "positive"), (self.zero_spread, "zero_spread"), (self.n_trials, "n_trials")):
            moments.add(queries[name])
        self.pool_size_min = min(self.pool_size_min, queries["pool_size"].min())
        names = trials["gen_method"].where(trials["gen_method"].isin(METHODS), "other")
        for method, (correct, reward) in self.methods.items():
            of_method = trials[names == method]
            correct.add(of_method["vqa_correct"])
            reward.add(of_method["reward"])
        self.rewards_per_bin = self.rewards_per_bin + reward_counts(trials["reward"].to_numpy(), self.bounds)
        self.positives.update(queries["n_positive"].tolist())

    def metrics(self, dropped: int, differences: Mapping[str, float]) -> dict[str, float]:
        """Returns the figures by metric name, those of a comparison included. Only finite ones are in it."""
        n_trials = self.reward.count
        figures: dict[str, float] = {
            "n_queries": self.n_trials.count,
            "n_trials": n_trials,
            "dropped_trials": dropped,
            "dropped_share": dropped / max(n_trials + dropped, 1),
        }
        if n_trials:
            figures |= {
                "positive_query_rate": self.positive.mean,
                "positive_trial_rate": self.correct.mean,
                "reward_mean": self.reward.mean,
                "reward_std": self.reward.std,
                "frac_reward_zero_std": self.zero_spread.mean,
                "trials_per_query": self.n_trials.mean,
                "pool_size_min": self.pool_size_min,
            }
            figures |= {f"share_{method.name}": method.share for method in self.by_method()}
        figures |= {f"drift_{name}": value for name, value in differences.items()}
        return {metric_name(figure): float(value) for figure, value in figures.items() if math.isfinite(value)}

    def by_method(self) -> tuple[Method, ...]:
        """Returns the figures of each generation method."""
        return tuple(
            Method(name, reward.count, reward.count / max(self.reward.count, 1), _finite(correct.mean), _finite(reward.mean))
            for name, (correct, reward) in self.methods.items()
        )

    def histogram(self) -> tuple[tuple[float, float, float], ...]:
        """Returns left edge, right edge and share of trials of each bin of rewards."""
        partition = self.partition()
        edges = partition["bins"]
        return tuple(zip(edges[:-1], edges[1:], partition["weights"], strict=True)) if self.reward.count else ()

    def partition(self) -> dict[str, list[float]]:
        """Returns the distribution of rewards as a partition object of Great Expectations."""
        return partition_of(np.asarray(self.rewards_per_bin), self.bounds)

    def positives_per_query(self) -> tuple[tuple[int, int], ...]:
        """Returns each number of positive trials with the number of queries that have so many, ascending."""
        return tuple(sorted(self.positives.items()))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
