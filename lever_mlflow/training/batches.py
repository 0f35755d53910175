"""Lays out groups of RL data as padded arrays and tensors, and splits them into training and validation queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lever_mlflow.exceptions import DataError
from lever_mlflow.random_streams import SeedStream
from lever_mlflow.settings import RewardMode
from lever_mlflow.training.objectives import zero_spread
from lever_mlflow.trials.rl_data import Group, check_items

__all__ = ["GroupBatch", "GroupTable", "split_groups", "tabulate"]


@dataclass(frozen=True)
class GroupBatch:
    """Holds B queries with their pools and groups.

    Attributes:
        pool_mask_BN: False at padded candidates; None when all pools have the same size.
        mask_BG: False at padded trials.
        rewards_std: the unbiased std of the rewards of all trials of the step that these queries are part of; 0 for one trial.
    """

    query_ids: tuple[int, ...]
    query_BD: Tensor
    candidates_BND: Tensor
    pool_mask_BN: Tensor | None
    pointers_BGK: Tensor
    rewards_BG: Tensor
    mask_BG: Tensor
    rewards_std: float


@dataclass(frozen=True)
class GroupTable:
    """Holds all Q groups of a split as padded arrays, which are made once; a batch gathers its features when it is made.

    Attributes:
        pools_QN, pool_sizes_Q: candidates of each query, int64, valid up to the size of its pool.
        pointers_QGK, rewards_QG, sizes_Q: trials of each query, int64 and float32, valid up to their number.
        features_SD: the whole feature table, possibly memory-mapped.
    """

    query_ids_Q: np.ndarray
    pools_QN: np.ndarray
    pool_sizes_Q: np.ndarray
    pointers_QGK: np.ndarray
    rewards_QG: np.ndarray
    sizes_Q: np.ndarray
    features_SD: np.ndarray

    def __len__(self) -> int:
        return len(self.query_ids_Q)

    @property
    def reward_mean(self) -> float:
        """The mean reward of all trials."""
        return float(self.rewards_QG.sum(dtype=np.float64) / self.sizes_Q.sum())

    @property
    def frac_zero_spread(self) -> float:
        """The share of groups whose rewards are all equal."""
        rewards_QG, mask_QG = torch.from_numpy(self.rewards_QG), torch.from_numpy(self._mask(np.arange(len(self))))
        return float(zero_spread(rewards_QG, mask_QG).double().mean())

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        return np.arange(self.rewards_QG.shape[1]) < self.sizes_Q[rows, None]

    def _rewards_std(self, rows: np.ndarray) -> float:
        rewards = self.rewards_QG[rows][self._mask(rows)]
        return float(rewards.std(ddof=1, dtype=np.float64)) if len(rewards) > 1 else 0.0

    def batches(self, order: np.ndarray, batch_size: int, device: str) -> Iterator[GroupBatch]:
        """Yields batches of ``batch_size`` groups in this order of rows; the last one may be smaller."""
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size], device)

    def batch(self, rows: np.ndarray, device: str = "cpu", step_rows: np.ndarray | None = None) -> GroupBatch:
        """Gathers the groups of these rows, padded to the largest of them.

        Args:
            step_rows: the rows of the whole step, where ``rows`` are only a part of it.
        """
        n, g = int(self.pool_sizes_Q[rows].max()), int(self.sizes_Q[rows].max())
        pool_mask_BN = np.arange(n) < self.pool_sizes_Q[rows, None]
        candidates_BND = self.features_SD[self.pools_QN[rows, :n]].astype(np.float32, copy=False)
        if not pool_mask_BN.all():
            candidates_BND[~pool_mask_BN] = 0.0
        query_BD = self.features_SD[self.query_ids_Q[rows]].astype(np.float32, copy=False)
        return GroupBatch(
            query_ids=tuple(self.query_ids_Q[rows].tolist()),
            query_BD=torch.from_numpy(query_BD).to(device),
            candidates_BND=torch.from_numpy(candidates_BND).to(device),
            pool_mask_BN=None if pool_mask_BN.all() else torch.from_numpy(pool_mask_BN).to(device),
            pointers_BGK=torch.from_numpy(self.pointers_QGK[rows, :g]).to(device),
            rewards_BG=torch.from_numpy(self.rewards_QG[rows, :g]).to(device),
            mask_BG=torch.from_numpy(self._mask(rows)[:, :g]).to(device),
            rewards_std=self._rewards_std(rows if step_rows is None else step_rows),
        )


def split_groups(groups: Sequence[Group], val_share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Splits groups into training and validation queries, shuffled by ``seed``; groups without usable trials are left out.

    Raises:
        DataError: fewer than two queries have usable trials.
    """
    usable = [group for group in groups if group.trials]
    if len(usable) < 2:
        raise DataError(f"{len(usable)} queries with usable trials; training needs at least 2")
    order = np.random.default_rng([seed, SeedStream.VALIDATION]).permutation(len(usable))
    n_val = min(max(1, round(val_share * len(usable))), len(usable) - 1)
    return [usable[i] for i in order[n_val:]], [usable[i] for i in order[:n_val]]


def tabulate(groups: Sequence[Group], features_SD: np.ndarray, mode: RewardMode, *, top_k: int = 0) -> GroupTable:
    """Lays out groups as a table.

    Args:
        features_SD: the feature of each training item.
        top_k: keeps only the trials with the k highest rewards of each group, in their order, the first among equals; 0 keeps
            all.

    Raises:
        DataError: a query or pool names an item that the features lack, or pointers differ in length.
    """
    shots = {len(trial.pointer) for group in groups for trial in group.trials}
    if len(shots) != 1:
        raise DataError(f"pointers of {sorted(shots)} shots in one file; keep those of one length")
    Q, K = len(groups), shots.pop()
    rewards, pointers = [], []
    for group in groups:
        check_items(group, len(features_SD))
        highest = max(position for trial in group.trials for position in trial.pointer)
        if highest >= len(group.pool):
            raise DataError(
                f"query {group.query_id}: a pointer names position {highest}, but its pool has {len(group.pool)} "
                "candidates; take the query out, or record it again"
            )
        rewards_G = group.rewards_G(mode)
        best = np.sort(np.argsort(-rewards_G, kind="stable")[: top_k or len(rewards_G)])
        rewards.append(rewards_G[best])
        pointers.append(group.pointers_GK[best])
    sizes_Q = np.array([len(rewards_G) for rewards_G in rewards])
    pool_sizes_Q = np.array([len(group.pool) for group in groups])
    pools_QN = np.zeros((Q, pool_sizes_Q.max()), dtype=np.int64)
    pointers_QGK = np.tile(np.arange(K), (Q, sizes_Q.max(), 1))  # padding: any valid pointer
    rewards_QG = np.zeros((Q, sizes_Q.max()), dtype=np.float32)
    for q, group in enumerate(groups):
        pools_QN[q, : pool_sizes_Q[q]] = group.pool
        pointers_QGK[q, : sizes_Q[q]], rewards_QG[q, : sizes_Q[q]] = pointers[q], rewards[q]
    query_ids_Q = np.array([group.query_id for group in groups])
    return GroupTable(query_ids_Q, pools_QN, pool_sizes_Q, pointers_QGK, rewards_QG, sizes_Q, features_SD)
