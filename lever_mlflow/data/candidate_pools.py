"""Candidate pools: which training items a query may draw demonstrations from, and similarity search in them.

The four samplers are the predecessor's, with one departure each: no pool holds an item about the query's own image, which would
give it away, and a ``mixed`` pool has no item twice, where the predecessor's parts overlapped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lever_mlflow.data.features import FeatureTable
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.settings import PoolSampler

__all__ = ["candidate_pools", "check_pool_size", "nearest", "random_pool", "top_k"]

_QUERIES, _ITEMS, _PAIRS = 256, 16_384, 8_192  # at a time: of a block of rough scores, and of exact ones


def check_pool_size(pool_size: int, shots: int) -> None:
    """A pool leaves something to choose only when it is larger than the shots.

    Raises:
        ParameterError: it is not.
    """
    if pool_size <= shots:
        raise ParameterError(f"pool_size={pool_size} with {shots} shots; the pool must be larger than the shots")


def candidate_pools(
    queries: Sequence[Sample],
    train: Sequence[Sample],
    sampler: PoolSampler,
    size: int,
    seed: int,
    query_features: FeatureTable,
    train_features: FeatureTable,
) -> np.ndarray:
    """Candidate pool of each query: ``size`` different train indices, none about the query's image, int64 [Q, N].

    Order within a pool, by ``sampler``:

    * ``random``: as drawn (``random_pool``);
    * ``image-similarity``, ``text-similarity``: most similar first, earlier items among equals; ``seed`` plays no part;
    * ``mixed``: first the random part, then a quarter of the pool (rounded down) by image, then a quarter by text, most
      similar first; what is in the pool already gives way to the next most similar.

    Args:
        query_features: of the split that the queries are from; a query's ``index`` is its row.
        train_features: of ``train``, in its order.

    Raises:
        ParameterError: fewer than ``size`` items are eligible for a query.
    """
    if sampler == "random":
        return np.stack([random_pool(train, query, size, seed) for query in queries])
    by_image: defaultdict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(train):
        by_image[sample.image_id].append(index)
    own = [np.array(by_image.get(query.image_id, ()), dtype=np.int64) for query in queries]
    for query, excluded in zip(queries, own, strict=True):
        _check_eligible(query, size, len(train) - len(excluded))
    rows = [query.index for query in queries]
    if sampler == "image-similarity":
        return nearest(query_features.image_SD[rows], train_features.image_SD, size, own)
    text_QN = nearest(query_features.text_SD[rows], train_features.text_SD, size, own)
    if sampler == "text-similarity":
        return text_QN
    image_QN = nearest(query_features.image_SD[rows], train_features.image_SD, size, own)
    drawn = [random_pool(train, query, size - 2 * (size // 4), seed) for query in queries]
    return np.stack([_mixed(*parts, size // 4) for parts in zip(drawn, image_QN, text_QN, strict=True)])


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
    _check_eligible(query, size, len(eligible))
    return np.array(eligible[:size], dtype=np.int64)


def top_k(query_D: np.ndarray, candidates_ND: np.ndarray, k: int) -> np.ndarray:
    """Positions of the ``k`` candidates with the largest inner product, best first, earlier ones among equals.

    Raises:
        ParameterError: ``k`` is below 1 or above the number of candidates.
    """
    if not 1 <= k <= len(candidates_ND):
        raise ParameterError(f"k={k} with {len(candidates_ND)} candidates; choose 1 to {len(candidates_ND)}")
    return np.argsort(-(candidates_ND @ query_D), kind="stable")[:k]


def nearest(queries_QD: np.ndarray, items_SD: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> np.ndarray:
    """Indices of the ``k`` items with the largest inner product with each query, best first, earlier ones among equals.

    Exact, and in memory for any number of items: they are read in slices, so that a memory-mapped table is never loaded
    whole, and no more than 256 x 16,384 scores exist at a time. Those are float32 products of matrices, whose last digits
    depend on shapes and threads; whatever their rounding could have put among the best is scored again in float64.

    Args:
        queries_QD: float32.
        items_SD: float32, also memory-mapped.
        excluded: for each query the items that it must not be given, int64.

    Returns:
        int64 [Q, k].

    Raises:
        ParameterError: ``k`` is below 1 or above the number of items that a query may be given.
        DataError: a feature is NaN or infinite.
    """
    fewest = len(items_SD) - max((len(indices) for indices in excluded), default=0)
    if not 1 <= k <= fewest:
        raise ParameterError(f"k={k} with {fewest} candidates; choose 1 to {fewest}")
    blocks = [
        _nearest_of_block(np.asarray(queries_QD[start : start + _QUERIES]), items_SD, k, excluded[start : start + _QUERIES])
        for start in range(0, len(queries_QD), _QUERIES)
    ]
    return np.concatenate(blocks) if blocks else np.empty((0, k), dtype=np.int64)


def _nearest_of_block(queries_BD: np.ndarray, items_SD: np.ndarray, k: int, excluded: Sequence[np.ndarray]) -> np.ndarray:
    best_BK = np.full((len(queries_BD), k), -1, dtype=np.int64)
    scores_BK = np.full(best_BK.shape, -np.inf)
    excluded_X = np.concatenate(excluded)
    order_X = np.argsort(excluded_X, kind="stable")
    excluded_X, owner_X = excluded_X[order_X], np.repeat(np.arange(len(excluded)), [len(e) for e in excluded])[order_X]
    for start in range(0, len(items_SD), _ITEMS):
        items_CD = np.asarray(items_SD[start : start + _ITEMS])
        rough_BC = queries_BD @ items_CD.T
        here = slice(*np.searchsorted(excluded_X, [start, start + len(items_CD)]))
        rough_BC[owner_X[here], excluded_X[here] - start] = -np.inf
        error_B = _rounding_error(queries_BD, items_CD)
        floor_B = scores_BK[:, -1]
        if start == 0 and k < len(items_CD):  # a first bound, or the whole first slice would be scored again
            floor_B = np.partition(rough_BC, len(items_CD) - k, axis=1)[:, len(items_CD) - k]
        floor_B = np.maximum(floor_B - error_B, np.finfo(np.float32).min).astype(np.float32)  # above -inf, the excluded
        rows, columns = np.nonzero(rough_BC >= floor_B[:, None])
        best_BK, scores_BK = _merge(best_BK, scores_BK, rows, columns + start, _inner(queries_BD, items_CD, rows, columns))
    return best_BK


def _rounding_error(queries_BD: np.ndarray, items_CD: np.ndarray) -> np.ndarray:
    """Twice the most by which a float32 inner product of D terms, summed in any order, misses the exact one, [B]."""
    longest = np.sqrt(np.einsum("cd,cd->c", items_CD, items_CD).max())
    error_B = queries_BD.shape[1] * np.finfo(np.float32).eps * longest * np.linalg.norm(queries_BD, axis=1).astype(np.float64)
    if not np.isfinite(error_B).all():
        raise DataError("similarity search: a feature is NaN or infinite; delete the folder features in the cache folder")
    return error_B


def _inner(queries_BD: np.ndarray, items_CD: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of pairs in float64, each summed in the same order: equal items score equal, [pairs]."""
    parts = [
        np.einsum("pd,pd->p", queries_BD[rows[at]], items_CD[columns[at]], dtype=np.float64)
        for at in (slice(start, start + _PAIRS) for start in range(0, len(rows), _PAIRS))
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _merge(
    best_BK: np.ndarray, scores_BK: np.ndarray, rows: np.ndarray, indices: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best K of each row among those so far and new ones, by score, then by index."""
    B, K = best_BK.shape
    rows = np.concatenate([np.repeat(np.arange(B), K), rows])
    indices, scores = np.concatenate([best_BK.ravel(), indices]), np.concatenate([scores_BK.ravel(), scores])
    order = np.lexsort((indices, -scores, rows))
    firsts_B = np.searchsorted(rows[order], np.arange(B))
    kept_BK = order[firsts_B[:, None] + np.arange(K)]
    return indices[kept_BK], scores[kept_BK]


def _check_eligible(query: Sample, size: int, eligible: int) -> None:
    if eligible < size:
        raise ParameterError(
            f"pool_size={size}, but only {eligible} training items are eligible for question {query.question_id}; "
            "choose a smaller pool"
        )


def _mixed(drawn: np.ndarray, by_image: np.ndarray, by_text: np.ndarray, quarter: int) -> np.ndarray:
    pool = dict.fromkeys(drawn.tolist())
    for ranked in (by_image, by_text):
        pool |= dict.fromkeys([index for index in ranked.tolist() if index not in pool][:quarter])
    return np.array(list(pool), dtype=np.int64)
