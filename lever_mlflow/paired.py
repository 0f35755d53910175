"""Statistics of paired differences: what the same questions say about two policies.

Accuracies take few values, so questions with the same difference are taken together: counts of a bootstrap resample are
multinomial, positive signs among equal sizes are binomial. That is what ``scipy.stats.bootstrap`` and
``scipy.stats.permutation_test`` do question by question, in a hundredth of the time; tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import binom, multinomial, norm

__all__ = ["RESAMPLES", "difference_shown", "holm", "mean_interval", "questions_needed", "sign_flip_p_value"]

RESAMPLES = 10_000
_GRIDS = np.arange(1, 1001)


def mean_interval(values_Q: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 10,000 resamples (Efron 1979); (m, m) where all values are equal m.

    Args:
        values_Q: a value per question: accuracies, or paired differences of them.
    """
    values, counts = np.unique(values_Q, return_counts=True)
    if len(values) == 1:
        return float(values[0]), float(values[0])
    n = len(values_Q)
    resamples = multinomial(n, counts / n).rvs(RESAMPLES, random_state=np.random.default_rng(seed))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resamples @ values / n, [tail, 1.0 - tail])
    return float(low), float(high)


def sign_flip_p_value(differences_Q: np.ndarray) -> float:
    """Two-sided sign-flip permutation test of mean difference 0 (Fisher 1935), over all patterns of signs.

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
    """Holm's step-down correction (1979) of several tests: adjusted p-values, and the share of 5 % error left to each.

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
    """How many questions show a difference of paired means in ``power`` of experiments; None for no difference.

    Normal approximation, ((z(1 - level / 2) + z(power)) * deviation / difference) ** 2; Lachin 1981.

    Args:
        deviation: standard deviation of the paired differences, in the unit of ``difference``.
    """
    if difference == 0.0:
        return None
    return max(2, ceil(((norm.ppf(1.0 - level / 2.0) + norm.ppf(power)) * deviation / difference) ** 2))


def difference_shown(questions: int, deviation: float, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference of paired means that this many questions show in ``power`` of experiments; as above."""
    return float((norm.ppf(1.0 - level / 2.0) + norm.ppf(power)) * deviation / np.sqrt(questions))
