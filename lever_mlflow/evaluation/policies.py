"""The policies that an evaluation compares: their names, and what each picks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lever_mlflow.data.candidate_pools import top_k
from lever_mlflow.data.samples import Sample
from lever_mlflow.selector.network import PointerSelector

__all__ = ["RANDOM", "START", "ZERO_SHOT", "first_logits", "greedy_picks", "random_picks", "similarity_picks"]


ZERO_SHOT, RANDOM, START = "zero-shot", "random", "start"


_BATCH = 256


@torch.no_grad()
def greedy_picks(
    selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int
) -> np.ndarray:
    """Train indices of the selector's greedy picks, [Q, K]; the first k of a row are the picks at k shots."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        pool_BN = pools_QN[start : start + _BATCH]
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        picks_BK = selector.greedy(query_BD, torch.from_numpy(train_SD[pool_BN]), shots).numpy()
        rows.append(np.take_along_axis(pool_BN, picks_BK, axis=1))
    return np.concatenate(rows)


@torch.no_grad()
def first_logits(selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray) -> np.ndarray:
    """The selector's logits for the first pick, [Q, N]."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        encoding = selector.encode(query_BD, torch.from_numpy(train_SD[pools_QN[start : start + _BATCH]]))
        rows.append(selector.pick_logits(encoding, torch.empty(len(query_BD), 1, 0, dtype=torch.long))[:, 0].numpy())
    return np.concatenate(rows)


def similarity_picks(queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int) -> np.ndarray:
    """Train indices of the most similar candidates of each pool, most similar first, [Q, K]."""
    return np.stack([pool[top_k(query, train_SD[pool], shots)] for query, pool in zip(queries_QD, pools_QN, strict=True)])


def random_picks(queries: Sequence[Sample], pools_QN: np.ndarray, shots: int, seed: int, draw: int = 0) -> np.ndarray:
    """Train indices drawn uniformly from each pool without replacement, [Q, K]; by seed, question id and draw alone."""
    states = [[seed, query.question_id, 3, *([draw] if draw else [])] for query in queries]
    drawn = zip(map(np.random.default_rng, states), pools_QN, strict=True)
    return np.stack([rng.choice(pool, shots, replace=False) for rng, pool in drawn])
