"""Turns groups of RL data into padded arrays and batches of tensors.

Shapes: Q queries of a table, B queries of a batch, N candidates of the largest pool, G trials of the largest group, K shots,
S training items, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.training.filters import filtered, split_groups
from lever_mlflow.training.objectives import zero_spread
from lever_mlflow.trials.columns import GroupColumns, as_columns, check_scores
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, check_items

__all__ = ["GroupBatch", "GroupTable", "split_tables", "tabulate"]


@dataclass(frozen=True)
class GroupBatch:
    """Holds B queries with their pools and groups as tensors.

    Attributes:
        query_ids: train indices of the queries.
        query_BD: features of the queries.
        candidates_BND: features of their pools; 0 at padding.
        pool_mask_BN: False at padded candidates; None when all pools have the same size.
        pointers_BGK: positions in the pools; any valid pointer at padding.
        rewards_BG: rewards of the trials; 0 at padding.
        mask_BG: False at padded trials.
        rewards_std: unbiased standard deviation of the rewards of all trials of the step, of which these queries may be only a
            part; 0 for a single trial.
    """

    query_ids: tuple[int, ...]
    query_BD: Tensor
    candidates_BND: Tensor
    pool_mask_BN: Tensor | None
    pointers_BGK: Tensor
    rewards_BG: Tensor
    mask_BG: Tensor
    rewards_std: float

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns the arguments of the selector's ``step_logprobs`` and ``logprobs``."""
        return self.query_BD, self.candidates_BND, self.pointers_BGK, self.pool_mask_BN


@dataclass(frozen=True)
class GroupTable:
    """Holds all groups of a split as padded arrays; each batch takes the features of its queries and pools when it is made.

    Attributes:
        query_ids_Q: train indices of the queries.
        pools_QN: train indices of the candidates, int32, valid up to ``pool_sizes_Q``.
        pool_sizes_Q: number of candidates of each pool.
        pointers_QGK: positions in the pools, int64, valid up to ``sizes_Q``.
        rewards_QG: rewards of the trials, float32, valid up to ``sizes_Q``.
        sizes_Q: number of trials of each group.
        features_SD: features of all training items; may be memory-mapped.
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
        """Returns the mean reward of all trials."""
        return float(self.rewards_QG.sum(dtype=np.float64) / self.sizes_Q.sum())

    @property
    def frac_zero_spread(self) -> float:
        """Returns the share of groups whose rewards are all equal."""
        rewards_QG, mask_QG = torch.from_numpy(self.rewards_QG), torch.from_numpy(self._mask(np.arange(len(self))))
        return float(zero_spread(rewards_QG, mask_QG).double().mean())

    def batches(self, order: np.ndarray, batch_size: int, device: str) -> Iterator[GroupBatch]:
        """Yields batches of ``batch_size`` groups in the given order of rows; the last one may be smaller."""
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size], device)

    def batch(self, rows: np.ndarray, device: str = "cpu", step_rows: np.ndarray | None = None) -> GroupBatch:
        """Returns the groups of these rows, padded to the largest pool and group among them.

        Args:
            rows: positions in this table.
            device: where the tensors are put.
            step_rows: all rows of the training step, where ``rows`` are only a part of them.
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

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        """Returns which trials of these rows are real, bool [rows, G]."""
        return np.arange(self.rewards_QG.shape[1]) < self.sizes_Q[rows, None]

    def _rewards_std(self, rows: np.ndarray) -> float:
        rewards = self.rewards_QG[rows][self._mask(rows)]
        return float(rewards.std(ddof=1, dtype=np.float64)) if len(rewards) > 1 else 0.0


def split_tables(
    groups: Iterable[Group], features_SD: np.ndarray, settings: RceSettings | GrpoSettings, reward: Reward, seed: int
) -> tuple[GroupTable, GroupTable]:
    """Returns the tables of the training and of the validation queries.

    Only the first is filtered and reduced to ``top_k`` trials, so that trainings with other filters are validated alike.

    Raises:
        DataError: as ``split_groups``, ``filtered`` and ``tabulate``.
    """
    train, val = split_groups(groups, settings.val_share, seed)
    train = filtered(train, settings)
    return tabulate(train, features_SD, reward, top_k=settings.top_k), tabulate(val, features_SD, reward)


def tabulate(groups: Iterable[Group], features_SD: np.ndarray, reward: Reward, *, top_k: int = 0) -> GroupTable:
    """Puts groups into a table.

    Args:
        groups: each with at least one trial.
        features_SD: features of all training items, by train index.
        reward: how scores become rewards.
        top_k: if not 0, only the trials with the k highest rewards of each group are taken, in their order in the group; among
            equal rewards the first trials are taken.

    Raises:
        DataError: a query or pool names an item that the features lack, a pointer names a position outside its pool, or
            pointers differ in length.
        ParameterError: a trial lacks a score that the reward takes.
    """
    columns = as_columns(groups)
    K = _shots(columns)
    check_scores(columns, reward)
    _check_items(columns, len(features_SD))
    _check_positions(columns)
    rewards_T = columns.rewards_T(reward)
    best_T = _best_trials(columns, rewards_T, top_k)
    owners_T, pointers_TK = columns.owners_T[best_T], columns.pointers_X.reshape(-1, K)[best_T]
    sizes_Q = np.bincount(owners_T, minlength=len(columns))
    places_T = np.arange(len(best_T)) - np.repeat(np.cumsum(sizes_Q) - sizes_Q, sizes_Q)  # of each trial in its group
    places_P = np.arange(len(columns.pools_P)) - columns.pool_starts_Q[columns.owners_P]
    pools_QN = np.zeros((len(columns), columns.pool_sizes_Q.max()), dtype=np.int32)  # among the features' rows
    pools_QN[columns.owners_P, places_P] = columns.pools_P
    pointers_QGK = np.tile(np.arange(K), (len(columns), sizes_Q.max(), 1))  # padding: any valid pointer
    pointers_QGK[owners_T, places_T] = pointers_TK
    rewards_QG = np.zeros((len(columns), sizes_Q.max()), dtype=np.float32)
    rewards_QG[owners_T, places_T] = rewards_T[best_T]
    return GroupTable(columns.query_ids_Q, pools_QN, columns.pool_sizes_Q, pointers_QGK, rewards_QG, sizes_Q, features_SD)


def _shots(columns: GroupColumns) -> int:
    """Returns the length that all pointers have."""
    lengths = np.unique(columns.shots_T).tolist()
    if len(lengths) != 1:
        raise DataError(f"the file holds pointers of {lengths} shots; keep the trials of one number of shots")
    return int(lengths[0])


def _check_items(columns: GroupColumns, n_items: int) -> None:
    """Checks that all queries and candidates are among the training items; errors as ``check_items``."""
    query_outside_Q = (columns.query_ids_Q < 0) | (columns.query_ids_Q >= n_items)
    outside_P = (columns.pools_P < 0) | (columns.pools_P >= n_items)
    for row in sorted([*np.flatnonzero(query_outside_Q)[:1].tolist(), *columns.owners_P[outside_P][:1].tolist()]):
        check_items(columns[row], n_items)


def _check_positions(columns: GroupColumns) -> None:
    rows_X = np.repeat(columns.owners_T, columns.shots_T)
    outside_X = (columns.pointers_X < 0) | (columns.pointers_X >= columns.pool_sizes_Q[rows_X])
    for place in np.flatnonzero(outside_X)[:1]:
        row = rows_X[place]
        raise DataError(
            f"query {columns.query_ids_Q[row]}: a pointer names position {columns.pointers_X[place]}, but its pool has "
            f"{columns.pool_sizes_Q[row]} candidates; take the query out, or record it again"
        )


def _best_trials(columns: GroupColumns, rewards_T: np.ndarray, top_k: int) -> np.ndarray:
    """Returns the trials with the ``top_k`` highest rewards of each group, or all trials if it is 0, in their order."""
    order = np.lexsort((-rewards_T, columns.owners_T))
    ranks = np.arange(len(order)) - columns.trial_starts_Q[columns.owners_T]
    return np.sort(order[ranks < top_k]) if top_k else np.arange(len(order))
