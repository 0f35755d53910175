"""How far two policies pick the same demonstrations, and why, where they do so for every question."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Overlap", "overlaps", "why_identical"]


class Overlap(NamedTuple):
    """Shares of questions with the same picks of two policies at a shot count: in the same order, and in any order."""

    first: str
    second: str
    shots: int
    ordered: float
    unordered: float


def overlaps(picks: Mapping[str, np.ndarray], shots: Sequence[int]) -> list[Overlap]:
    """Every pair of policies at every shot count.

    Args:
        picks: policy name -> items [Q, K] in the order of the prompt, K at least the largest shot count.
    """
    return [
        Overlap(
            first,
            second,
            k,
            ordered=float((picks[first][:, :k] == picks[second][:, :k]).all(1).mean()),
            unordered=float((np.sort(picks[first][:, :k], 1) == np.sort(picks[second][:, :k], 1)).all(1).mean()),
        )
        for first, second in itertools.combinations(picks, 2)
        for k in shots
    ]


def why_identical(first_QN: np.ndarray, second_QN: np.ndarray, shots: int, *, equal_weights: bool) -> str:
    """Why two policies with these logits pick the same for every question, in words.

    The first reason that applies: equal weights; a pool that leaves fewer than two candidates per pick; an order of logits
    that did not change, with how far logits moved (less their mean) beside the margins by which picks led.
    """
    if equal_weights:
        return "the weights are equal"
    pool_size = first_QN.shape[1]
    if pool_size < 2 * shots:
        return f"the pool is too small: {pool_size} candidates leave hardly a choice of {shots}"
    moved_QN = second_QN - first_QN
    moved_QN = moved_QN - moved_QN.mean(1, keepdims=True)
    leading_QK = -np.sort(-first_QN, axis=1)[:, : shots + 1]
    margins_Q = (leading_QK[:, :-1] - leading_QK[:, 1:]).min(1)
    return (
        f"the order of the logits is unchanged: they moved by {np.abs(moved_QN).max():.2g} at most, while the closest of the "
        f"first {shots + 1} were {np.median(margins_Q):.2g} apart in the median question and "
        f"{margins_Q.min():.2g} in the tightest"
    )
