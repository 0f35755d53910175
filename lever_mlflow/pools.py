"""Candidate pools: which training items a query may draw demonstrations from, and similarity search in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.types import Sample

__all__ = ["check_pool_size", "random_pool", "top_k"]


def check_pool_size(pool_size: int, shots: int) -> None:
    """A pool leaves something to choose only when it is larger than the shots.

    Raises:
        ParameterError: it is not.
    """
    if pool_size <= shots:
        raise ParameterError(f"pool_size={pool_size} with {shots} shots; the pool must be larger than the shots")


def random_pool(train: Sequence[Sample], query: Sample, size: int, seed: int) -> np.ndarray:
    """``size`` train indices, uniform without replacement, sorted by draw; never the query or its image, int64 [N].

    The draw depends on ``seed`` and the query's question id alone, so a query keeps its pool whatever the other queries
    are. This is the predecessor's RandSampler, less the items that would leak the query's own image.

    Raises:
        ParameterError: fewer than ``size`` items are eligible.
    """
    rng = np.random.default_rng([seed, query.question_id])
    # Draw a few more than needed and drop the query's own image: the same law as drawing from the eligible items.
    order = rng.permutation(len(train)) if size * 2 > len(train) else rng.choice(len(train), size * 2, replace=False)
    eligible = [index for index in order.tolist() if train[index].image_id != query.image_id]
    if len(eligible) < size:
        eligible = [index for index in rng.permutation(len(train)).tolist() if train[index].image_id != query.image_id]
    if len(eligible) < size:
        raise ParameterError(
            f"pool_size={size}, but only {len(eligible)} training items are eligible for question {query.question_id}; "
            "choose a smaller pool"
        )
    return np.array(eligible[:size], dtype=np.int64)


def top_k(query_D: np.ndarray, candidates_ND: np.ndarray, k: int) -> np.ndarray:
    """Positions of the ``k`` candidates with the largest inner product, best first, earlier ones among equals.

    Raises:
        ParameterError: ``k`` is below 1 or above the number of candidates.
    """
    if not 1 <= k <= len(candidates_ND):
        raise ParameterError(f"k={k} with {len(candidates_ND)} candidates; choose 1 to {len(candidates_ND)}")
    return np.argsort(-(candidates_ND @ query_D), kind="stable")[:k]
