"""GRPO: group-relative policy optimisation of a start checkpoint, with a KL penalty of weight beta.

Departures from the predecessor: whole groups; no dropout, so that the ratio is exactly 1 and KL exactly 0 before the
first step; reference log-probs come from a frozen copy of the start checkpoint on the very same batch.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lever_mlflow.group_batches import GroupBatch, check_finite, iterate_batches, split_groups
from lever_mlflow.objectives import GrpoLoss, categorical_kl, group_advantages, grpo_loss, zero_spread
from lever_mlflow.rewards import RewardMode
from lever_mlflow.rl_data import RLData
from lever_mlflow.selector import PointerSelector, pointer_logprobs
from lever_mlflow.types import GrpoSettings
from lever_mlflow.validation import picks_changed, validate_selector

__all__ = ["GrpoEpoch", "train_grpo"]


class GrpoEpoch(NamedTuple):
    """One finished epoch (1-based), its metrics, and the policy as it is now: use it before asking for the next."""

    epoch: int
    metrics: dict[str, float]
    selector: PointerSelector


class _Step(NamedTuple):
    loss: GrpoLoss
    kl_exact: float
    advantages: torch.Tensor


def train_grpo(
    start: PointerSelector,
    data: RLData,
    features_SD: np.ndarray,
    settings: GrpoSettings,
    *,
    seed: int,
    reward_mode: RewardMode = "hard_plus_soft",
    device: str = "cpu",
) -> Iterator[GrpoEpoch]:
    """Trains a copy of ``start`` and yields each epoch.

    Metrics, means over the epoch's steps unless said otherwise: ``train_loss``, ``ppo_loss``, ``kl`` (k3), ``kl_exact``,
    ``adv_std``, ``adv_max`` (over the epoch), ``beta``, ``frac_reward_zero_std``, ``clip_fraction``, ``grad_norm``, ``lr``,
    ``seconds``; on the validation queries ``val_loss``, ``expected_reward`` and ``picks_changed`` since the start.

    Raises:
        DataError: the data does not fit the features. LeverError: the loss is not finite.
    """
    torch.manual_seed(seed)
    reference = copy.deepcopy(start).to(device).eval().requires_grad_(False)
    policy = copy.deepcopy(start).to(device).eval()
    if settings.freeze_backbone:
        policy.freeze_backbone()
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.lr)
    train, val = split_groups(data.groups, settings.val_share, seed)
    steps = -(-len(train) // settings.batch_size)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        batches = iterate_batches([train[i] for i in order], features_SD, settings.batch_size, reward_mode, device)
        log: dict[str, list[float]] = defaultdict(list)
        for batch in tqdm(batches, f"GRPO beta {settings.kl_beta:g} epoch {epoch}", steps, unit="step", disable=None):
            step = _step(policy, reference, batch, settings)
            optimizer.zero_grad()
            log["train_loss"].append(check_finite(step.loss.loss, batch))
            step.loss.loss.backward()
            log["grad_norm"].append(float(torch.nn.utils.clip_grad_norm_(trainable, settings.grad_clip)))
            optimizer.step()
            log["ppo_loss"].append(float(step.loss.policy_loss))
            log["kl"].append(float(step.loss.kl))
            log["kl_exact"].append(step.kl_exact)
            log["clip_fraction"].append(float(step.loss.clip_fraction))
            log["advantages"] += step.advantages[batch.mask_BG].tolist()
            log["zero_spread"] += zero_spread(batch.rewards_BG, batch.mask_BG).tolist()
        advantages = log.pop("advantages")
        spreads = log.pop("zero_spread")
        metrics = {name: float(np.mean(values)) for name, values in log.items()} | {
            "adv_std": float(np.std(advantages)),
            "adv_max": float(np.max(advantages)),
            "frac_reward_zero_std": float(np.mean(spreads)),
            "beta": settings.kl_beta,
            "lr": settings.lr,
            **validate_selector(policy, val, features_SD, reward_mode, device),
            "picks_changed": picks_changed(policy, reference, val, features_SD, reward_mode, device),
            "seconds": time.perf_counter() - started,
        }
        yield GrpoEpoch(epoch, metrics, policy)


def _step(policy: PointerSelector, reference: PointerSelector, batch: GroupBatch, settings: GrpoSettings) -> _Step:
    inputs = (batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
    steps_BGKN = policy.step_logprobs(*inputs)
    with torch.no_grad():
        old_steps_BGKN = reference.step_logprobs(*inputs)
    advantages_BG = group_advantages(batch.rewards_BG, batch.mask_BG)
    loss = grpo_loss(
        pointer_logprobs(steps_BGKN, batch.pointers_BGK),
        pointer_logprobs(old_steps_BGKN, batch.pointers_BGK),
        advantages_BG,
        settings.kl_beta,
        settings.epsilon,
        mask_BG=batch.mask_BG,
    )
    kl_exact = float(categorical_kl(steps_BGKN.detach(), old_steps_BGKN, batch.mask_BG))
    return _Step(loss, kl_exact, advantages_BG)
