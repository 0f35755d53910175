"""GRPO: group-relative policy optimisation of a start checkpoint, with a KL penalty of weight beta.

Departures from the predecessor: whole groups unless ``top_k`` asks otherwise; no dropout, so that the ratio is exactly 1
and KL exactly 0 before the first step; reference log-probs come from a frozen copy of the start checkpoint on the very
same batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lever_mlflow.selector.network import PointerSelector, pointer_logprobs
from lever_mlflow.settings import GrpoSettings, RewardMode
from lever_mlflow.training.batches import GroupBatch, split_groups, tabulate
from lever_mlflow.training.loop import Epoch, Metrics, StepOutput, TrainingState, train_epochs
from lever_mlflow.training.objectives import adapted_beta, categorical_kl, entropy, group_advantages, grpo_loss, zero_spread
from lever_mlflow.training.validation import exact_kl, picks_changed, validate_selector
from lever_mlflow.trials.rl_data import RLData

__all__ = ["train_grpo"]


def train_grpo(
    start: PointerSelector,
    data: RLData,
    features_SD: np.ndarray,
    settings: GrpoSettings,
    *,
    seed: int,
    reward_mode: RewardMode = "hard_plus_soft",
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains a copy of ``start`` and yields each epoch, or those after ``state``.

    Metrics: those of ``training.train_epochs``; means over the training queries, ``ppo_loss``, ``kl`` (k3), ``kl_exact``,
    ``clip_ratio_low``, ``clip_ratio_high``, ``entropy`` (nats per shot); over the epoch's trials ``adv_std`` and
    ``adv_max``; ``beta``; on the validation queries ``val_loss``, ``expected_reward``, that of the start
    (``expected_reward_start``), ``val_kl_exact`` from it and ``picks_changed`` since.

    Raises:
        DataError: the data does not fit the features. LeverError: the loss is not finite.
    """
    train, val = split_groups(data.groups, settings.val_share, seed)
    train_table = tabulate(train, features_SD, reward_mode, top_k=settings.top_k)
    val_table = tabulate(val, features_SD, reward_mode)
    reference = copy.deepcopy(start).to(device).eval().requires_grad_(False)
    policy = copy.deepcopy(start).to(device).eval()
    if settings.freeze_backbone:
        policy.freeze_backbone()
    start_reward = validate_selector(reference, val_table, device)["expected_reward"]
    beta = settings.kl_beta
    if state is not None and settings.adaptive_beta:
        beta = adapted_beta(state.history[-1]["beta"], state.history[-1]["kl"])

    def step(model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        model.eval()  # dropout off for log-probs
        inputs = (batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
        steps_BGKN = model(*inputs)
        with torch.no_grad():
            old_steps_BGKN = reference.step_logprobs(*inputs)
        advantages_BG = group_advantages(
            batch.rewards_BG, batch.mask_BG, scale=settings.scale_rewards, batch_std=batch.rewards_std
        )
        mask_BG = batch.mask_BG
        if settings.mask_zero_std_groups:
            mask_BG = mask_BG & ~zero_spread(batch.rewards_BG, mask_BG)[:, None]
        result = grpo_loss(
            pointer_logprobs(steps_BGKN, batch.pointers_BGK),
            pointer_logprobs(old_steps_BGKN, batch.pointers_BGK),
            advantages_BG,
            beta,
            settings.epsilon,
            epsilon_high=settings.epsilon_high or None,
            mask_BG=mask_BG,
        )
        entropy_now = entropy(steps_BGKN, mask_BG)
        means = {
            "ppo_loss": result.policy_loss,
            "kl": result.kl,
            "kl_exact": categorical_kl(steps_BGKN.detach(), old_steps_BGKN, mask_BG),
            "clip_ratio_low": result.clip_ratio_low,
            "clip_ratio_high": result.clip_ratio_high,
            "entropy": entropy_now.detach(),
        }
        loss = result.loss - settings.entropy_coef * entropy_now if settings.entropy_coef else result.loss
        return StepOutput(loss, int(mask_BG.any(1).sum()), means, {"advantages": advantages_BG[batch.mask_BG]})

    def finish(metrics: Metrics, kept: dict[str, Tensor]) -> Metrics:
        nonlocal beta
        advantages = kept["advantages"].double()
        added = {
            "adv_std": float(advantages.std(correction=0)),
            "adv_max": float(advantages.max()),
            "beta": beta,
            **validate_selector(policy, val_table, device),
            "expected_reward_start": start_reward,
            "val_kl_exact": exact_kl(policy, reference, val_table, device),
            "picks_changed": picks_changed(policy, reference, val_table, device),
        }
        if settings.adaptive_beta:
            beta = adapted_beta(beta, metrics["kl"])
        return added

    name = f"GRPO beta {settings.kl_beta:g}"
    return train_epochs(policy, train_table, settings, step, finish, seed=seed, name=name, device=device, state=state)
