"""Computes statistics of paired differences: what the same questions say about two policies.

They are those of ``scipy.stats.bootstrap`` and ``scipy.stats.permutation_test``, which tests hold them against, for hundreds
of comparisons at once: all share their resamples, and signs are counted through instead of drawn.

Questions about one image are not independent. Images are therefore what is drawn, what changes its sign and what errors are
computed from (the cluster bootstrap; Davison and Hinkley 1997, section 3.8). Where each image has one question, this is the
same as drawing questions. ``images_Q`` names the image of each question; without it, each question has an image of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import pandas as pd

__all__ = [
    "RESAMPLES",
    "detectable_difference",
    "deviation_by_image",
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


def resampled_means(values: Sequence[np.ndarray], seed: int, images: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """Returns the means of 10,000 bootstrap resamples of each array (Efron 1979).

    Arrays whose questions are grouped by image in the same way share their resamples.

    Args:
        values: a value per question in each: accuracies, or paired differences of them.
        images: the image ids of the questions of each array.
    """
    codes = [_codes(len(values_Q), images[i] if images else None) for i, values_Q in enumerate(values)]
    alike: dict[bytes, list[int]] = {}
    for i, codes_Q in enumerate(codes):
        alike.setdefault(codes_Q.tobytes(), []).append(i)
    means: dict[int, np.ndarray] = {}
    for cells in alike.values():
        codes_Q = codes[cells[0]]
        sizes_I = np.bincount(codes_Q)
        sums_IC = np.stack([np.bincount(codes_Q, values[i]) for i in cells], axis=1)
        n = len(sizes_I)
        rng = np.random.default_rng([seed, n])
        parts = []
        for _ in range(RESAMPLES // _AT_ONCE):
            drawn_RI = rng.integers(n, size=(_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
            counts_RI = np.bincount(drawn_RI.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n)
            parts.append(counts_RI @ sums_IC / (counts_RI @ sizes_I)[:, None])
        means |= dict(zip(cells, np.concatenate(parts).T, strict=True))
    return [means[i] for i in range(len(values))]


def interval(means_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """Returns the percentile interval of resampled means."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means_R, [tail, 1.0 - tail])
    return float(low), float(high)


def mean_interval(
    values_Q: np.ndarray, confidence: float, seed: int, images_Q: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean, from 10,000 resamples."""
    return interval(resampled_means([values_Q], seed, None if images_Q is None else [images_Q])[0], confidence)


def deviation_by_image(values_Q: np.ndarray, images_Q: np.ndarray | None = None) -> float:
    """Returns the standard deviation of values of which the standard error of their mean is the part 1 / sqrt(Q).

    Where each image has one question, it is the unbiased standard deviation of the values. It is 0 for a single image.
    """
    residuals_I = np.bincount(_codes(len(values_Q), images_Q), values_Q - values_Q.mean())
    n = len(residuals_I)
    return float(np.sqrt((residuals_I**2).sum() / (n - 1) * (n / len(values_Q)))) if n > 1 else 0.0


def sign_flip_p_value(differences_Q: np.ndarray, images_Q: np.ndarray | None = None) -> float:
    """Tests whether the mean difference is 0 by flipping signs, two-sided and over all patterns of signs (Fisher 1935).

    All differences of an image change their signs together. The sum of n images whose differences have the sum v under random
    signs is v * (2 * Binomial(n, 1/2) - n); sums of several sizes are convolved on the grid that they share.

    Args:
        differences_Q: in [-1, 1]; multiples of 1/1000, as means of up to 100 VQA accuracies are, or rounded to them.
        images_Q: the image ids of the questions.
    """
    from scipy.signal import fftconvolve  # imported here, as these two take a second that most commands can save
    from scipy.stats import binom

    differences_I = np.bincount(_codes(len(differences_Q), images_Q), differences_Q)
    values = np.unique(differences_I)[:, None]
    fits = (np.abs(values * _GRIDS - np.rint(values * _GRIDS)) < 1e-6).all(0)
    steps_I = np.rint(differences_I * _GRIDS[fits.argmax() if fits.any() else -1]).astype(int)
    distribution = np.ones(1)  # of half the sum, from the lowest sum to the highest
    for size, count in zip(*np.unique(np.abs(steps_I[steps_I != 0]), return_counts=True), strict=True):
        of_size = np.zeros(size * count + 1)
        of_size[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.asarray(fftconvolve(distribution, of_size))
    sums = 2 * np.arange(len(distribution)) - (len(distribution) - 1)
    return float(np.clip(distribution[np.abs(sums) >= abs(steps_I.sum())].sum(), 0.0, 1.0))


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


def normal_quantile(share: float) -> float:
    """Returns the value below which this share of a standard normal distribution lies."""
    from scipy.special import ndtri  # imported here, as it takes a third of a second

    return float(ndtri(share))


def questions_needed(difference: float, deviation: float, level: float = 0.05, power: float = 0.8) -> int | None:
    """Says how many questions show a difference of paired means in ``power`` of experiments; None for no difference.

    Normal approximation, ((z(1 - level / 2) + z(power)) * deviation / difference) ** 2; Lachin 1981.

    Args:
        deviation: standard deviation of the paired differences, as ``deviation_by_image``, in the unit of ``difference``.
    """
    if difference == 0.0:
        return None
    return max(2, ceil(((normal_quantile(1.0 - level / 2.0) + normal_quantile(power)) * deviation / difference) ** 2))


def detectable_difference(questions: int, deviation: float, level: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest difference of paired means that this many questions show in ``power`` of experiments."""
    return float((normal_quantile(1.0 - level / 2.0) + normal_quantile(power)) * deviation / np.sqrt(questions))


def _codes(questions: int, images_Q: np.ndarray | None) -> np.ndarray:
    """Numbers the image of each question, in the order in which images first occur."""
    return np.arange(questions) if images_Q is None else pd.factorize(images_Q)[0].astype(np.int64)
