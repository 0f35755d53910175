"""Says what selectors pick for questions, and how sure they are of the first pick."""

from __future__ import annotations

import numpy as np
import torch

from lever_mlflow.selector.network import PointerSelector

__all__ = ["first_logits", "greedy_picks"]

_BATCH = 256  # questions that go through the selector at once


@torch.no_grad()
def greedy_picks(
    selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int
) -> np.ndarray:
    """Picks greedily with a selector: train indices [Q, K], of which the first k of a row are the picks at k shots."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        pool_BN = pools_QN[start : start + _BATCH]
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        picks_BK = selector.greedy(query_BD, torch.from_numpy(train_SD[pool_BN]), shots).numpy()
        rows.append(np.take_along_axis(pool_BN, picks_BK, axis=1))
    return np.concatenate(rows)


@torch.no_grad()
def first_logits(selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray) -> np.ndarray:
    """Returns a selector's logits for the first pick, [Q, N]."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        encoding = selector.encode(query_BD, torch.from_numpy(train_SD[pools_QN[start : start + _BATCH]]))
        rows.append(selector.pick_logits(encoding, torch.empty(len(query_BD), 1, 0, dtype=torch.long))[:, 0].numpy())
    return np.concatenate(rows)
