"""Computes statistics of paired differences: what the same questions say about two policies.

They are those of ``scipy.stats.bootstrap`` and ``scipy.stats.permutation_test``, which tests hold them against, for hundreds
of comparisons at once: all share their resamples, and signs are counted through instead of drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import binom, norm

__all__ = [
    "RESAMPLES",
    "difference_shown",
    "holm",
    "interval",
    "mean_interval",
    "questions_needed",
    "resampled_means",
    "sign_flip_p_value",
]

RESAMPLES = 10_000
_AT_ONCE = 1_000  # resamples in memory
_GRIDS = np.arange(1, 1001)


def resampled_means(values: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Returns the means of 10,000 bootstrap resamples of each array (Efron 1979); arrays of one length share the questions.

    Args:
        values: a value per question in each: accuracies, or paired differences of them.
    """
    means: dict[int, np.ndarray] = {}
    for n in {len(values_Q) for values_Q in values}:
        cells = [i for i, values_Q in enumerate(values) if len(values_Q) == n]
        values_QC = np.stack([values[i] for i in cells], axis=1)
        rng = np.random.default_rng([seed, n])
        parts = []
        for _ in range(RESAMPLES // _AT_ONCE):
            drawn_RQ = rng.integers(n, size=(_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
            counts_RQ = np.bincount(drawn_RQ.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n)
            parts.append(counts_RQ @ values_QC / n)
        means |= dict(zip(cells, np.concatenate(parts).T, strict=True))
    return [means[i] for i in range(len(values))]


def interval(means_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Returns the percentile interval of resampled means."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means_R, [tail, 1.0 - tail])
    return float(low), float(high)


def mean_interval(values_Q: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean, from 10,000 resamples."""
    return interval(resampled_means([values_Q], seed)[0], confidence)


def sign_flip_p_value(differences_Q: np.ndarray) -> float:
    """Tests whether the mean difference is 0 by flipping signs, two-sided and over all patterns of signs (Fisher 1935).

    The sum of n differences of size v under random signs is v * (2 * Binomial(n, 1/2) - n); sums of several sizes are
    convolved on the grid that they share.

    Args:
        differences_Q: in [-1, 1]; multiples of 1/1000, as means of up to 100 VQA accuracies are, or rounded to them.
    """
    values = np.unique(differences_Q)[:, None]
    fits = (np.abs(values * _GRIDS - np.rint(values * _GRIDS)) < 1e-6).all(0)
    steps_Q = np.rint(differences_Q * _GRIDS[fits.argmax() if fits.any() else -1]).astype(int)
    distribution = np.ones(1)  # of half the sum, from the lowest sum to the highest
    for size, count in zip(*np.unique(np.abs(steps_Q[steps_Q != 0]), return_counts=True), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.asarray(fftconvolve(distribution, of_size))
    sums = 2 * np.arange(len(distribution)) - (len(distribution) - 1)
    return float(np.clip(distribution[np.abs(sums) >= abs(steps_Q.sum())].sum(), 0.0, 1.0))


def holm(p_values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Applies Holm's step-down correction (1979) to several tests: adjusted p-values, and the share of 5 % error left to each.

    The i-th smallest of m p-values (from 0) is multiplied by m - i, and is no smaller than the one before it; its interval has
    the confidence 1 - 0.05 / (m - i).
    """
    m = len(p_values)
    adjusted, levels = [0.0] * m, [0.05] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index], levels[index] = running, 0.05 / (m - rank)
    return adjusted, levels


def questions_needed(difference: float, deviation: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """Says how many questions show a difference of paired means in ``power`` of experiments; None for no difference.

    Normal approximation, ((z(1 - level / 2) + z(power)) * deviation / difference) ** 2; Lachin 1981.

    Args:
        deviation: standard deviation of the paired differences, in the unit of ``difference``.
    """
    if difference == 0.0:
        return None
    return max(2, ceil(((norm.ppf(1.0 - level / 2.0) + norm.ppf(power)) * deviation / difference) ** 2))


def difference_shown(questions: int, deviation: float, level: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest difference of paired means that this many questions show in ``power`` of experiments."""
    return float((norm.ppf(1.0 - level / 2.0) + norm.ppf(power)) * deviation / np.sqrt(questions))
