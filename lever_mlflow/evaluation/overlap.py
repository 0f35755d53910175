"""How far two policies pick the same demonstrations, and why, where they do so for every question."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def why_identical(first_QN: np.ndarray, second_QN: np.ndarray, shots: int, *, equal_weights: bool) -> dict[str, Any]:
    """Why two policies with these logits pick the same for every question: a ``rule`` and the figures it rests on.

    The first one that applies: ``equal_weights``; ``small_pool``, that leaves fewer than two candidates per pick;
    ``same_order`` of logits, with how far these ``moved`` (less their mean) at most, beside the margins by which picks led in
    the ``median`` question and in the ``tightest``.
    """
    if equal_weights:
        return {"rule": "equal_weights"}
    pool_size = first_QN.shape[1]
    if pool_size < 2 * shots:
        return {"rule": "small_pool", "pool_size": pool_size, "shots": shots}
    moved_QN = second_QN - first_QN
    moved_QN = moved_QN - moved_QN.mean(1, keepdims=True)
    leading_QK = -np.sort(-first_QN, axis=1)[:, : shots + 1]
    margins_Q = (leading_QK[:, :-1] - leading_QK[:, 1:]).min(1)
    figures = {"moved": np.abs(moved_QN).max(), "median": np.median(margins_Q), "tightest": margins_Q.min()}
    return {"rule": "same_order", "leading": shots + 1, **{name: float(value) for name, value in figures.items()}}
