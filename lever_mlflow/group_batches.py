"""Groups of RL data as padded tensors, and their split into training and validation queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lever_mlflow.exceptions import DataError, LeverError
from lever_mlflow.rewards import RewardMode
from lever_mlflow.rl_data import Group

__all__ = ["GroupBatch", "check_finite", "collate", "iterate_batches", "split_groups"]


@dataclass(frozen=True)
class GroupBatch:
    """B queries with their pools and groups. ``mask_BG`` is False at padded trials, ``pool_mask_BN`` at padded candidates.

    ``pool_mask_BN`` is None when all pools have the same size.
    """

    query_ids: tuple[int, ...]
    query_BD: Tensor
    candidates_BND: Tensor
    pool_mask_BN: Tensor | None
    pointers_BGK: Tensor
    rewards_BG: Tensor
    mask_BG: Tensor


def split_groups(groups: Sequence[Group], val_share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Training and validation queries, shuffled by ``seed``; groups without usable trials are left out.

    Raises:
        DataError: fewer than two queries have usable trials.
    """
    usable = [group for group in groups if group.trials]
    if len(usable) < 2:
        raise DataError(f"RL data has {len(usable)} queries with usable trials; training needs at least 2")
    order = np.random.default_rng([seed, 80_20]).permutation(len(usable))
    n_val = min(max(1, round(val_share * len(usable))), len(usable) - 1)
    return [usable[i] for i in order[n_val:]], [usable[i] for i in order[:n_val]]


def iterate_batches(
    groups: Sequence[Group], features_SD: np.ndarray, batch_size: int, mode: RewardMode, device: str
) -> Iterator[GroupBatch]:
    """Batches of ``batch_size`` groups in the given order, the last one possibly smaller."""
    for start in range(0, len(groups), batch_size):
        yield collate(groups[start : start + batch_size], features_SD, mode, device)


def collate(groups: Sequence[Group], features_SD: np.ndarray, mode: RewardMode, device: str = "cpu") -> GroupBatch:
    """One batch; ``features_SD`` holds the fused feature of each training item.

    Raises:
        DataError: a query or pool names an item that the features lack, or pointers differ in length.
    """
    for group in groups:
        outside = [i for i in (group.query_id, *group.pool) if not 0 <= i < len(features_SD)]
        if outside:
            raise DataError(
                f"RL data: query {group.query_id}: item {outside[0]} is not among the {len(features_SD)} training items; "
                "was this file made from another data set?"
            )
    shots = {len(trial.pointer) for group in groups for trial in group.trials}
    if len(shots) != 1:
        raise DataError(f"RL data: queries {[g.query_id for g in groups]}: pointers of {sorted(shots)} shots in one file")
    B, N, G, K = len(groups), max(len(g.pool) for g in groups), max(len(g.trials) for g in groups), shots.pop()
    candidates_BND = np.zeros((B, N, features_SD.shape[1]), dtype=np.float32)
    pool_mask_BN, mask_BG = np.zeros((B, N), dtype=bool), np.zeros((B, G), dtype=bool)
    pointers_BGK = np.tile(np.arange(K), (B, G, 1))  # padding: any valid pointer
    rewards_BG = np.zeros((B, G), dtype=np.float32)
    for b, group in enumerate(groups):
        n, g = len(group.pool), len(group.trials)
        candidates_BND[b, :n], pool_mask_BN[b, :n] = features_SD[list(group.pool)], True
        pointers_BGK[b, :g], rewards_BG[b, :g], mask_BG[b, :g] = group.pointers_GK, group.rewards_G(mode), True
    query_BD = np.asarray(features_SD[[group.query_id for group in groups]], dtype=np.float32)
    return GroupBatch(
        query_ids=tuple(group.query_id for group in groups),
        query_BD=torch.from_numpy(query_BD).to(device),
        candidates_BND=torch.from_numpy(candidates_BND).to(device),
        pool_mask_BN=None if pool_mask_BN.all() else torch.from_numpy(pool_mask_BN).to(device),
        pointers_BGK=torch.from_numpy(pointers_BGK).to(device),
        rewards_BG=torch.from_numpy(rewards_BG).to(device),
        mask_BG=torch.from_numpy(mask_BG).to(device),
    )


def check_finite(loss: Tensor, batch: GroupBatch) -> float:
    """The loss as a number.

    Raises:
        LeverError: it is not finite; names the batch's queries.
    """
    value = float(loss.detach())
    if not np.isfinite(value):
        raise LeverError(
            f"loss is {value} on queries {list(batch.query_ids)}; lower lr or grad_clip, or check these queries' data"
        )
    return value
