"""Trains a start checkpoint by GRPO: group-relative policy optimisation with a KL penalty of weight beta.

Departures from the predecessor: training uses whole groups unless ``top_k`` asks otherwise. Log-probs are computed without
dropout, so that before the first step the ratio is exactly 1, and KL from the start exactly 0. The log-probs of the old policy
and of the reference policy come from frozen copies of them, on the same batch as those of the policy.

In iterated GRPO (outer iterations of Algorithm 1 in the DeepSeekMath paper, arXiv:2402.03300) each round begins at the policy
that the round before it reached. That policy is the old policy of the ratio, as the trials were recorded from it. The KL
penalty may refer to another one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lever_mlflow.selector.network import PointerSelector, pointer_logprobs
from lever_mlflow.settings import GrpoSettings, format_beta
from lever_mlflow.training.batches import GroupBatch, GroupTable, split_tables
from lever_mlflow.training.loop import Epoch, Metrics, StepOutput, TrainingState, train_epochs
from lever_mlflow.training.objectives import (
    adapted_beta,
    categorical_kl,
    entropy,
    group_advantages,
    grpo_loss,
    zero_spread,
)
from lever_mlflow.training.validation import exact_kl, picks_changed, validate_selector
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward
from lever_mlflow.trials.rl_data import RLData

__all__ = ["GrpoObjective", "train_grpo"]


def train_grpo(  # noqa: PLR0913 - what a training takes, and the reference
    start: PointerSelector,
    data: RLData,
    features_SD: np.ndarray,
    settings: GrpoSettings,
    *,
    seed: int,
    reward: Reward = DEFAULT_REWARD,
    device: str = "cpu",
    state: TrainingState | None = None,
    reference: PointerSelector | None = None,
) -> Iterator[Epoch]:
    """Trains a copy of ``start`` and yields each epoch, or those after ``state``.

    An epoch has the metrics of ``loop.train_epochs``, of ``GrpoObjective.step`` as means over the training queries, and of
    ``GrpoObjective.finish``.

    Args:
        start: the selector to begin with, which is also the old policy of the ratio; it is not changed.
        data: the recorded trials.
        features_SD: features of the training items, of the fusion that ``start`` takes.
        settings: of the training.
        seed: decides the split and the order of queries.
        reward: how scores become rewards.
        device: ``cpu`` or ``cuda``.
        state: of an earlier run with the same arguments, after whose last epoch training goes on.
        reference: the selector that KL is measured from; ``start`` if None.

    Raises:
        DataError: the data do not fit the features, or too few queries have trials.
        ParameterError: a trial lacks a score that the reward takes.
        LeverError: the loss is not finite.
        CheckpointError: ``state`` is of another selector.
    """
    train_table, val_table = split_tables(data.groups, features_SD, settings, reward, seed)
    old = _frozen(start, device)
    policy = copy.deepcopy(start).to(device).eval()
    if settings.freeze_backbone:
        policy.freeze_backbone()
    fixed = old if reference is None else _frozen(reference, device)
    objective = GrpoObjective(policy, old, fixed, val_table, settings, device)
    if state is not None:
        objective.go_on_after(state.history[-1])
    name = f"GRPO beta {format_beta(settings.kl_beta)}"
    return train_epochs(policy, train_table, settings, objective, seed=seed, name=name, device=device, state=state)


class GrpoObjective:
    """Computes the GRPO loss of a policy against the frozen policy that it started from, and a frozen reference policy."""

    def __init__(
        self,
        policy: PointerSelector,
        old: PointerSelector,
        reference: PointerSelector,
        val_table: GroupTable,
        settings: GrpoSettings,
        device: str,
    ) -> None:
        self.policy, self.old, self.reference, self.val_table = policy, old, reference, val_table
        self.settings, self.device = settings, device
        self.beta = settings.kl_beta
        self.start_reward = validate_selector(old, val_table, device)["val/expected_reward"]

    def go_on_after(self, metrics: Metrics) -> None:
        """Sets beta for the epoch after one with these metrics."""
        self._adapt_beta(metrics["train/beta"], metrics["train/kl"])

    def step(self, model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        """Computes the loss of a batch without dropout.

        Its means are ``train/ppo_loss``, ``train/kl`` (the k3 estimate), ``train/kl_exact``, ``train/clip_ratio_low``,
        ``train/clip_ratio_high`` and ``train/entropy`` (nats per shot).
        """
        model.eval()
        steps_BGKN = model(*batch.inputs)
        with torch.no_grad():
            old_steps_BGKN = self.old.step_logprobs(*batch.inputs)
            same = self.reference is self.old
            reference_steps_BGKN = old_steps_BGKN if same else self.reference.step_logprobs(*batch.inputs)
        advantages_BG = group_advantages(
            batch.rewards_BG, batch.mask_BG, scale=self.settings.scale_rewards, batch_std=batch.rewards_std
        )
        mask_BG = batch.mask_BG
        if self.settings.mask_zero_std_groups:
            mask_BG = mask_BG & ~zero_spread(batch.rewards_BG, mask_BG)[:, None]
        result = grpo_loss(
            pointer_logprobs(steps_BGKN, batch.pointers_BGK),
            pointer_logprobs(old_steps_BGKN, batch.pointers_BGK),
            advantages_BG,
            self.beta,
            self.settings.epsilon,
            epsilon_high=self.settings.epsilon_high or None,
            reference_logprobs_BG=pointer_logprobs(reference_steps_BGKN, batch.pointers_BGK),
            mask_BG=mask_BG,
        )
        policy_entropy = entropy(steps_BGKN, mask_BG)
        means = {
            "train/ppo_loss": result.policy_loss,
            "train/kl": result.kl,
            "train/kl_exact": categorical_kl(steps_BGKN.detach(), reference_steps_BGKN, mask_BG),
            "train/clip_ratio_low": result.clip_ratio_low,
            "train/clip_ratio_high": result.clip_ratio_high,
            "train/entropy": policy_entropy.detach(),
        }
        coefficient = self.settings.entropy_coef
        loss = result.loss - coefficient * policy_entropy if coefficient else result.loss
        return StepOutput(loss, int(mask_BG.any(1).sum()), means, {"advantages": advantages_BG[batch.mask_BG]})

    def finish(self, metrics: Metrics, values: Mapping[str, Tensor]) -> Metrics:
        """Returns the metrics of an epoch that are not means over its steps, and adapts beta with ``adaptive_beta``.

        ``train/advantage_std`` and ``train/advantage_max`` are over the advantages of the epoch's trials, and ``train/beta`` is
        the weight in this epoch. Measured on the validation queries are ``val/loss``, ``val/expected_reward``, that of the
        start (``val/expected_reward_start``), the exact KL from the reference policy (``val/kl_exact``), and the share of
        queries whose greedy picks are not those of the start (``val/picks_changed``).
        """
        advantages = values["advantages"].double()
        added = {
            "train/advantage_std": float(advantages.std(correction=0)),
            "train/advantage_max": float(advantages.max()),
            "train/beta": self.beta,
            **validate_selector(self.policy, self.val_table, self.device),
            "val/expected_reward_start": self.start_reward,
            "val/kl_exact": exact_kl(self.policy, self.reference, self.val_table, self.device),
            "val/picks_changed": picks_changed(self.policy, self.old, self.val_table, self.device),
        }
        self._adapt_beta(self.beta, metrics["train/kl"])
        return added

    def _adapt_beta(self, beta: float, kl: float) -> None:
        if self.settings.adaptive_beta:
            self.beta = adapted_beta(beta, kl)


def _frozen(selector: PointerSelector, device: str) -> PointerSelector:
    """Returns a copy of a selector that no training changes."""
    return copy.deepcopy(selector).to(device).eval().requires_grad_(False)
