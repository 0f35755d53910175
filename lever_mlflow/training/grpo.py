"""Trains a start checkpoint by GRPO: group-relative policy optimisation with a KL penalty of weight beta.

Departures from the predecessor: training uses whole groups unless ``top_k`` asks otherwise. Log-probs are computed without
dropout, so that before the first step the ratio is exactly 1 and KL exactly 0. The log-probs of the reference policy come from
a frozen copy of the start checkpoint, on the same batch as those of the policy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lever_mlflow.selector.network import PointerSelector, pointer_logprobs
from lever_mlflow.settings import GrpoSettings, RewardMode
from lever_mlflow.training.batches import GroupBatch, GroupTable, split_tables
from lever_mlflow.training.loop import Epoch, StepOutput, train_epochs
from lever_mlflow.training.objectives import (
    GrpoLoss,
    adapted_beta,
    categorical_kl,
    entropy,
    group_advantages,
    grpo_loss,
    zero_spread,
)
from lever_mlflow.training.state import Metrics, TrainingState
from lever_mlflow.training.validation import exact_kl, picks_changed, validate_selector
from lever_mlflow.trials.rl_data import RLData

__all__ = ["GrpoObjective", "train_grpo"]


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

    Its metrics are those of ``train_epochs`` and of ``GrpoObjective``.

    Args:
        start: the selector to begin with, which is also the reference policy; it is not changed.
        data: the recorded trials.
        features_SD: features of the training items, of the fusion that ``start`` takes.
        settings: of the training.
        seed: decides the split and the order of queries.
        reward_mode: how scores become rewards.
        device: ``cpu`` or ``cuda``.
        state: of an earlier run with the same arguments, after whose last epoch training goes on.

    Raises:
        DataError: the data do not fit the features, or too few queries have trials.
        LeverError: the loss is not finite.
        CheckpointError: ``state`` is of another selector.
    """
    train, val = split_tables(data.groups, features_SD, settings, reward_mode, seed)
    reference = copy.deepcopy(start).to(device).eval().requires_grad_(False)
    policy = copy.deepcopy(start).to(device).eval()
    if settings.freeze_backbone:
        policy.freeze_backbone()
    objective = GrpoObjective(policy, reference, val, settings, device)
    if state is not None:
        objective.beta = _next_beta(settings, state.history[-1]["beta"], state.history[-1]["kl"])
    return train_epochs(policy, train, objective, settings, seed=seed, device=device, state=state)


class GrpoObjective:
    """Computes the GRPO loss of a policy against its frozen start, with a weight of the KL penalty that may adapt.

    It adds these metrics to an epoch. Means over the training queries are ``ppo_loss``, ``kl`` (the k3 estimate), ``kl_exact``,
    ``clip_ratio_low``, ``clip_ratio_high`` and ``entropy`` (nats per shot). ``adv_std`` and ``adv_max`` are over the epoch's
    trials, and ``beta`` is the weight in this epoch. On the validation queries there are ``val_loss``, ``expected_reward`` and
    that of the start (``expected_reward_start``), and, both compared with the start, ``val_kl_exact`` and ``picks_changed``.
    """

    def __init__(
        self, policy: PointerSelector, reference: PointerSelector, val: GroupTable, settings: GrpoSettings, device: str
    ) -> None:
        self.policy, self.reference, self.val, self.settings, self.device = policy, reference, val, settings, device
        self.start_reward = validate_selector(reference, val, device)["expected_reward"]
        self.beta = settings.kl_beta  # in this epoch

    @property
    def title(self) -> str:
        """The training's name, with its first beta."""
        return f"GRPO beta {self.settings.kl_beta:g}"

    def step(self, model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        """Computes the loss of a batch, without dropout."""
        settings = self.settings
        model.eval()
        steps_BGKN = model(*batch.inputs)
        with torch.no_grad():
            reference_BGKN = self.reference.step_logprobs(*batch.inputs)
        advantages_BG = group_advantages(
            batch.rewards_BG, batch.mask_BG, scale=settings.scale_rewards, batch_std=batch.rewards_std
        )
        mask_BG = self._mask(batch)
        result = self._loss(batch, steps_BGKN, reference_BGKN, advantages_BG, mask_BG)
        entropy_now = entropy(steps_BGKN, mask_BG)
        means = {
            "ppo_loss": result.policy_loss,
            "kl": result.kl,
            "kl_exact": categorical_kl(steps_BGKN.detach(), reference_BGKN, mask_BG),
            "clip_ratio_low": result.clip_ratio_low,
            "clip_ratio_high": result.clip_ratio_high,
            "entropy": entropy_now.detach(),
        }
        loss = result.loss - settings.entropy_coef * entropy_now if settings.entropy_coef else result.loss
        return StepOutput(loss, int(mask_BG.any(1).sum()), means, {"advantages": advantages_BG[batch.mask_BG]})

    def finish(self, metrics: Metrics, values: Mapping[str, Tensor]) -> Metrics:
        """Validates the policy, and adapts beta for the next epoch."""
        advantages = values["advantages"].double()
        validation = validate_selector(self.policy, self.val, self.device)
        beta, self.beta = self.beta, _next_beta(self.settings, self.beta, metrics["kl"])
        return {
            "adv_std": float(advantages.std(correction=0)),
            "adv_max": float(advantages.max()),
            "beta": beta,
            **validation,
            "expected_reward_start": self.start_reward,
            "val_kl_exact": exact_kl(self.policy, self.reference, self.val, self.device),
            "picks_changed": picks_changed(self.policy, self.reference, self.val, self.device),
        }

    def _mask(self, batch: GroupBatch) -> Tensor:
        """Returns which trials count in the loss, bool [B, G]."""
        if not self.settings.mask_zero_std_groups:
            return batch.mask_BG
        return batch.mask_BG & ~zero_spread(batch.rewards_BG, batch.mask_BG)[:, None]

    def _loss(
        self, batch: GroupBatch, steps_BGKN: Tensor, reference_BGKN: Tensor, advantages_BG: Tensor, mask_BG: Tensor
    ) -> GrpoLoss:
        return grpo_loss(
            pointer_logprobs(steps_BGKN, batch.pointers_BGK),
            pointer_logprobs(reference_BGKN, batch.pointers_BGK),
            advantages_BG,
            self.beta,
            self.settings.epsilon,
            epsilon_high=self.settings.epsilon_high or None,
            mask_BG=mask_BG,
        )


def _next_beta(settings: GrpoSettings, beta: float, kl: float) -> float:
    """Returns the KL weight of the epoch after one with this weight and this mean KL."""
    return adapted_beta(beta, kl) if settings.adaptive_beta else settings.kl_beta
