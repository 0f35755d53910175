"""RCE: reward-weighted cross-entropy training of a new selector on recorded trials.

Departures from the predecessor: whole groups (it kept the top 3 in the first epoch); validation never uses dropout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lever_mlflow.group_batches import check_finite, iterate_batches, split_groups
from lever_mlflow.objectives import rce_loss, rce_temperature, zero_spread
from lever_mlflow.rewards import RewardMode
from lever_mlflow.rl_data import RLData
from lever_mlflow.selector import PointerSelector
from lever_mlflow.types import RceSettings
from lever_mlflow.validation import validate_selector

__all__ = ["RceEpoch", "train_rce"]


class RceEpoch(NamedTuple):
    """One finished epoch (1-based), its metrics, and the selector as it is now: use it before asking for the next."""

    epoch: int
    metrics: dict[str, float]
    selector: PointerSelector


def train_rce(
    data: RLData,
    features_SD: np.ndarray,
    settings: RceSettings,
    *,
    seed: int,
    reward_mode: RewardMode = "hard_plus_soft",
    device: str = "cpu",
) -> Iterator[RceEpoch]:
    """Trains a freshly initialised selector and yields each epoch.

    Metrics: ``train_loss``, ``val_loss`` and ``expected_reward`` of the validation queries, ``frac_reward_zero_std``,
    ``reward_mean``, ``grad_norm`` (mean before clipping), ``temperature`` (at the epoch's end), ``lr``, ``seconds``.

    Raises:
        DataError: the data does not fit the features. LeverError: the loss is not finite.
    """
    torch.manual_seed(seed)
    selector = PointerSelector(feature_dim=features_SD.shape[1], dropout=settings.dropout).to(device)
    optimizer = torch.optim.AdamW(selector.parameters(), lr=settings.lr)
    train, val = split_groups(data.groups, settings.val_share, seed)
    steps_per_epoch = -(-len(train) // settings.batch_size)
    last_step = max(settings.epochs * steps_per_epoch - 1, 1)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        batches = iterate_batches([train[i] for i in order], features_SD, settings.batch_size, reward_mode, device)
        losses, norms, spreads = [], [], []
        temperature = settings.temperature_start
        selector.train()
        for i, batch in enumerate(tqdm(batches, f"RCE epoch {epoch}", steps_per_epoch, unit="step", disable=None)):
            progress = ((epoch - 1) * steps_per_epoch + i) / last_step
            temperature = rce_temperature(progress, settings.temperature_start, settings.temperature_end)
            logprobs_BG = selector.logprobs(batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
            loss = rce_loss(logprobs_BG, batch.rewards_BG, temperature, mask_BG=batch.mask_BG).loss
            losses += [check_finite(loss, batch)] * len(batch.query_ids)
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(selector.parameters(), settings.grad_clip)))
            optimizer.step()
            spreads += zero_spread(batch.rewards_BG, batch.mask_BG).tolist()
        metrics = {
            "train_loss": float(np.mean(losses)),
            **validate_selector(selector, val, features_SD, reward_mode, device),
            "frac_reward_zero_std": float(np.mean(spreads)),
            "reward_mean": float(np.mean(np.concatenate([group.rewards_G(reward_mode) for group in train]))),
            "grad_norm": float(np.mean(norms)),
            "temperature": temperature,
            "lr": settings.lr,
            "seconds": time.perf_counter() - started,
        }
        yield RceEpoch(epoch, metrics, selector)
