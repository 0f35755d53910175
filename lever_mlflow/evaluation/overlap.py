"""Measures how far two policies pick the same demonstrations, and says why, where they do so for every question."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

__all__ = ["IdenticalPicks", "PickOverlap", "overlaps", "why_identical"]


class IdenticalPicks(BaseModel):
    """Says by which rule two policies pick the same for every question, and the figures that the rule rests on.

    Attributes:
        rule: ``equal_weights``; ``small_pool``: the pool leaves fewer than two candidates per pick; ``same_order``: the order
            of the leading logits is unchanged; ``too_close``: the weights differ too little, and the logits are not known.
        pool_size, shots: of a small pool.
        leading: how many of the largest logits decide the picks (one more than the shots).
        moved: how far logits moved, less their mean, at most.
        median, tightest: the margin by which picks led, in the median question and in the tightest one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["equal_weights", "small_pool", "same_order", "too_close"]
    pool_size: int | None = None
    shots: int | None = None
    leading: int | None = None
    moved: float | None = None
    median: float | None = None
    tightest: float | None = None


class PickOverlap(BaseModel):
    """Holds the shares of questions for which two policies pick the same: in the same order, and in any order.

    ``reason`` says why, where the picks are the same in order for every question and that could be found out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    shots: int
    ordered: float
    unordered: float
    reason: IdenticalPicks | None = None


def overlaps(picks: Mapping[str, np.ndarray], shots: Sequence[int]) -> list[PickOverlap]:
    """Compares every pair of policies at every shot count.

    Args:
        picks: policy name -> items [Q, K] in the order of the prompt, K at least the largest shot count.
    """
    return [
        PickOverlap(
            first=first,
            second=second,
            shots=k,
            ordered=float((picks[first][:, :k] == picks[second][:, :k]).all(1).mean()),
            unordered=float((np.sort(picks[first][:, :k], 1) == np.sort(picks[second][:, :k], 1)).all(1).mean()),
        )
        for first, second in itertools.combinations(picks, 2)
        for k in shots
    ]


def why_identical(first_QN: np.ndarray, second_QN: np.ndarray, shots: int, *, equal_weights: bool) -> IdenticalPicks:
    """Finds the first rule that explains why two policies with these logits pick the same for every question.

    Args:
        first_QN, second_QN: logits of the first pick.
    """
    if equal_weights:
        return IdenticalPicks(rule="equal_weights")
    pool_size = first_QN.shape[1]
    if pool_size < 2 * shots:
        return IdenticalPicks(rule="small_pool", pool_size=pool_size, shots=shots)
    moved_QN = second_QN - first_QN
    moved_QN = moved_QN - moved_QN.mean(1, keepdims=True)
    leading_QK = -np.sort(-first_QN, axis=1)[:, : shots + 1]
    margins_Q = (leading_QK[:, :-1] - leading_QK[:, 1:]).min(1)
    return IdenticalPicks(
        rule="same_order",
        leading=shots + 1,
        moved=float(np.abs(moved_QN).max()),
        median=float(np.median(margins_Q)),
        tightest=float(margins_Q.min()),
    )
