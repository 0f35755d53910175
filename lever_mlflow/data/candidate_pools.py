"""Draws candidate pools, the training items from which the demonstrations of a query are picked, and searches by similarity.

All samplers but ``fused-similarity`` are the predecessor's, with two departures: no pool holds an item about the query's own
picture (``Sample.picture``), which would give the answer away, and a ``mixed`` pool has no item twice, where the predecessor's
parts overlapped. By ``fixed`` the predecessor drew the pools of its evaluations, not those of its trials.

Shapes: Q queries, N candidates of a pool, S items, D feature dimensions, K nearest items. A search handles B queries and C
items at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lever_mlflow.data.features import FeatureTable, check_sampler, longest_item
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.settings import Fusion, PoolSampler

__all__ = ["Block", "ItemsByImage", "candidate_pools", "check_pool_size", "items_by_image", "nearest", "random_pool", "top_k"]

ItemsByImage = Mapping[int, np.ndarray]  # picture -> indices of the training items about it, int64, ascending


class Block(NamedTuple):
    """Says how much a search for the nearest items handles at a time.

    Attributes:
        queries, items: sides of a matrix of float32 scores.
        pairs: number of pairs whose scores are computed in float64.
    """

    queries: int = 256
    items: int = 16_384
    pairs: int = 8_192


_BLOCK = Block()
_FUSION_OF_SAMPLER: Mapping[str, Fusion] = {"image-similarity": "image", "text-similarity": "text", "fused-similarity": "mean"}


def check_pool_size(pool_size: int, shots: int) -> None:
    """Checks that a pool is larger than the number of shots, as it must leave something to choose.

    Raises:
        ParameterError: the pool is not larger.
    """
    if pool_size <= shots:
        raise ParameterError(f"pool_size={pool_size} with {shots} shots; the pool must be larger than the shots")


def items_by_image(train: Sequence[Sample]) -> ItemsByImage:
    """Returns the indices of the training items about each picture."""
    by_image: defaultdict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(train):
        by_image[sample.picture].append(index)
    return {picture: np.array(indices, dtype=np.int64) for picture, indices in by_image.items()}


def candidate_pools(
    queries: Sequence[Sample],
    train: Sequence[Sample],
    sampler: PoolSampler,
    size: int,
    seed: int,
    query_features: FeatureTable,
    train_features: FeatureTable,
    by_image: ItemsByImage | None = None,
) -> np.ndarray:
    """Draws a candidate pool for each query: ``size`` different training items, none about the query's image.

    Order within a pool, by ``sampler``:

    * ``random``: as drawn (``random_pool``);
    * ``image-similarity``, ``text-similarity``, ``fused-similarity``: the nearest of all eligible items by this feature, most
      similar first, earlier items among equals, whatever the seed;
    * ``mixed``: first the random part, then a quarter of the pool (rounded down) by image, then a quarter by text, most
      similar first; items that are in the pool already are passed over for the next most similar;
    * ``fixed``: the first training items, in their order, whatever query and seed; where some of them are about the query's
      image, the next ones take their place.

    Args:
        queries: the queries.
        train: the training items.
        sampler: the way in which candidates are drawn.
        size: N, candidates in a pool.
        seed: seed of random draws.
        query_features: of the split that the queries are from; a query's ``index`` is its row.
        train_features: of ``train``, in its order.
        by_image: ``items_by_image(train)``, where the caller keeps it for several calls.

    Returns:
        Indices into ``train``, int64 [Q, N].

    Raises:
        ParameterError: fewer than ``size`` items are eligible for a query, or the encoder does not give what the sampler takes.
    """
    check_sampler(sampler, train_features.sides)
    if sampler == "random":
        return np.stack([random_pool(train, query, size, seed) for query in queries])
    if by_image is None:
        by_image = items_by_image(train)
    none = np.empty(0, dtype=np.int64)
    same_image = [by_image.get(query.picture, none) for query in queries]
    for query, excluded in zip(queries, same_image, strict=True):
        _check_eligible(query, size, len(train) - len(excluded))
    if sampler == "fixed":
        return np.stack([_first(size, excluded) for excluded in same_image])
    rows = [query.index for query in queries]

    def nearest_by(fusion: Fusion) -> np.ndarray:
        queries_SD, train_SD = (table.of(fusion) for table in (query_features, train_features))
        return nearest(queries_SD[rows], train_SD, size, same_image, longest=train_features.longest(fusion))

    if sampler != "mixed":
        return nearest_by(_FUSION_OF_SAMPLER[sampler])
    image_QN, text_QN = nearest_by("image"), nearest_by("text")
    drawn = [random_pool(train, query, size - 2 * (size // 4), seed) for query in queries]
    return np.stack([_mixed(*parts, size // 4) for parts in zip(drawn, image_QN, text_QN, strict=True)])


def random_pool(train: Sequence[Sample], query: Sample, size: int, seed: int) -> np.ndarray:
    """Draws ``size`` training items uniformly without replacement, none about the query's image.

    The draw depends on ``seed`` and the query's question id alone, so that a query keeps its pool whatever the other queries
    are. This is the predecessor's RandSampler without the items about the query's own image.

    Returns:
        Indices into ``train`` in the order of the draw, int64 [N].

    Raises:
        ParameterError: fewer than ``size`` items are eligible.
    """
    rng = np.random.default_rng([seed, query.question_id])
    # Drawing more than needed and dropping the query's own image is the same law as drawing from the eligible items.
    order = rng.permutation(len(train)) if size * 2 > len(train) else rng.choice(len(train), size * 2, replace=False)
    eligible = [index for index in order.tolist() if train[index].picture != query.picture]
    if len(eligible) < size:
        eligible = [index for index in rng.permutation(len(train)).tolist() if train[index].picture != query.picture]
    _check_eligible(query, size, len(eligible))
    return np.array(eligible[:size], dtype=np.int64)


def top_k(query_D: np.ndarray, candidates_ND: np.ndarray, k: int) -> np.ndarray:
    """Returns the positions of the ``k`` candidates with the largest inner product, best first, earlier ones among equals.

    Raises:
        ParameterError: ``k`` is below 1 or above the number of candidates.
    """
    if not 1 <= k <= len(candidates_ND):
        raise ParameterError(f"k={k} with {len(candidates_ND)} candidates; choose 1 to {len(candidates_ND)}")
    return np.argsort(-(candidates_ND @ query_D), kind="stable")[:k]


def nearest(
    queries_QD: np.ndarray,
    items_SD: np.ndarray,
    k: int,
    excluded: Sequence[np.ndarray],
    block: Block = _BLOCK,
    longest: float | None = None,
) -> np.ndarray:
    """Finds the ``k`` items with the largest inner product with each query, best first, earlier ones among equals.

    The search is exact, and its memory is bounded for any number of items: they are read in slices, so that a memory-mapped
    table is never loaded whole. Scores are first float32 products of matrices, whose last digits depend on shapes and threads.
    All items that rounding could have put among the best are scored again in float64.

    Args:
        queries_QD: float32.
        items_SD: float32, may be memory-mapped.
        k: K, number of items for each query.
        excluded: for each query the indices of items that must not be found, int64.
        block: how much is handled at a time.
        longest: length of the longest item, where the caller keeps it for several calls.

    Returns:
        Indices into the items, int64 [Q, K].

    Raises:
        ParameterError: ``k`` is below 1 or above the number of items that are not excluded.
        DataError: a feature is NaN or infinite.
    """
    fewest = len(items_SD) - max((len(indices) for indices in excluded), default=0)
    if not 1 <= k <= fewest:
        raise ParameterError(f"k={k} with {fewest} candidates; choose 1 to {fewest}")
    parts = []
    for start in range(0, len(queries_QD), block.queries):
        rows = slice(start, start + block.queries)
        parts.append(_nearest_of_block(np.asarray(queries_QD[rows]), items_SD, k, excluded[rows], block, longest))
    return np.concatenate(parts) if parts else np.empty((0, k), dtype=np.int64)


def _nearest_of_block(
    queries_BD: np.ndarray, items_SD: np.ndarray, k: int, excluded: Sequence[np.ndarray], block: Block, longest: float | None
) -> np.ndarray:
    """Finds the nearest items of one block of queries, int64 [B, K]."""
    best_BK = np.full((len(queries_BD), k), -1, dtype=np.int64)
    scores_BK = np.full(best_BK.shape, -np.inf)
    excluded_X = np.concatenate(excluded)
    order_X = np.argsort(excluded_X, kind="stable")
    excluded_X, owner_X = excluded_X[order_X], np.repeat(np.arange(len(excluded)), [len(e) for e in excluded])[order_X]
    for start in range(0, len(items_SD), block.items):
        items_CD = np.asarray(items_SD[start : start + block.items])
        rough_BC = queries_BD @ items_CD.T
        here = slice(*np.searchsorted(excluded_X, [start, start + len(items_CD)]))
        rough_BC[owner_X[here], excluded_X[here] - start] = -np.inf
        error_B = _rounding_error(queries_BD, longest_item(items_CD) if longest is None else longest)
        floor_B = scores_BK[:, -1]
        if start == 0 and k < len(items_CD):  # without a first bound the whole first slice would be scored again
            floor_B = np.partition(rough_BC, len(items_CD) - k, axis=1)[:, len(items_CD) - k]
        floor_B = np.maximum(floor_B - error_B, np.finfo(np.float32).min).astype(np.float32)  # above the -inf of the excluded
        rows, columns = np.nonzero(rough_BC >= floor_B[:, None])
        exact = _inner_products(queries_BD, items_CD, rows, columns, block.pairs)
        best_BK, scores_BK = _merge(best_BK, scores_BK, rows, columns + start, exact)
    return best_BK


def _rounding_error(queries_BD: np.ndarray, longest: float) -> np.ndarray:
    """Returns a bound on the error of a float32 inner product of D terms, summed in any order, times two, [B]."""
    error_B = queries_BD.shape[1] * np.finfo(np.float32).eps * longest * np.linalg.norm(queries_BD, axis=1).astype(np.float64)
    if not np.isfinite(error_B).all():
        raise DataError("similarity search: a feature is NaN or infinite; delete the folder features in the cache folder")
    return error_B


def _inner_products(
    queries_BD: np.ndarray, items_CD: np.ndarray, rows: np.ndarray, columns: np.ndarray, pairs: int
) -> np.ndarray:
    """Returns inner products of pairs of a query and an item in float64, ``pairs`` at a time, [pairs].

    Each is summed in the same order, so that equal items have equal scores.
    """
    parts = [
        np.einsum("pd,pd->p", queries_BD[rows[at]], items_CD[columns[at]], dtype=np.float64)
        for at in (slice(start, start + pairs) for start in range(0, len(rows), pairs))
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _merge(
    best_BK: np.ndarray, scores_BK: np.ndarray, rows: np.ndarray, indices: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices and scores of the best K of each row among former and new ones, by score, then by index."""
    B, K = best_BK.shape
    rows = np.concatenate([np.repeat(np.arange(B), K), rows])
    indices, scores = np.concatenate([best_BK.ravel(), indices]), np.concatenate([scores_BK.ravel(), scores])
    order = np.lexsort((indices, -scores, rows))
    firsts_B = np.searchsorted(rows[order], np.arange(B))
    first_BK = order[firsts_B[:, None] + np.arange(K)]
    return indices[first_BK], scores[first_BK]


def _check_eligible(query: Sample, size: int, eligible: int) -> None:
    """Raises ParameterError when fewer items than a pool must have are eligible for a query."""
    if eligible < size:
        raise ParameterError(
            f"pool_size={size}, but only {eligible} training items are eligible for question {query.question_id}; "
            "choose a smaller pool"
        )


def _first(size: int, excluded: np.ndarray) -> np.ndarray:
    """Returns the first ``size`` indices that are not excluded, int64 [N]."""
    indices = np.arange(size + len(excluded), dtype=np.int64)
    return indices[~np.isin(indices, excluded)][:size]


def _mixed(drawn: np.ndarray, by_image: np.ndarray, by_text: np.ndarray, quarter: int) -> np.ndarray:
    """Returns a pool without repeats: the drawn items, then ``quarter`` items by image and as many by text, int64 [N]."""
    pool = dict.fromkeys(drawn.tolist())
    for ranked in (by_image, by_text):
        pool |= dict.fromkeys([index for index in ranked.tolist() if index not in pool][:quarter])
    return np.array(list(pool), dtype=np.int64)
