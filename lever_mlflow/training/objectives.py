"""Computes the training objectives as pure functions: RCE, group advantages, GRPO, KL and entropy.

Shapes: B queries, G pointers of a group, K shots, N candidates. ``mask_BG`` is True at real trials and False at the
padding of shorter groups; without it all trials are real. Means are taken over the trials of a group first and then over
queries, so that a batch of one query gives the predecessor's loss. Groups that are empty, have one trial, or have equal rewards
give advantages of 0 and never NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lever_mlflow.settings import NormalizeRewards, ScaleRewards

__all__ = [
    "GrpoLoss",
    "RceLoss",
    "adapted_beta",
    "categorical_kl",
    "entropy",
    "group_advantages",
    "grpo_loss",
    "rce_loss",
    "rce_temperature",
    "zero_spread",
]

_EQUAL = 1e-6  # rewards this close together count as equal
_KL_BAND, _BETA_FACTOR = (0.01, 0.1), 1.5


class RceLoss(NamedTuple):
    """Holds the RCE ``loss``, a scalar, and ``weights_BG``, the detached softmax weights of the trials."""

    loss: Tensor
    weights_BG: Tensor


class GrpoLoss(NamedTuple):
    """Holds the GRPO loss and its parts as scalars, all but ``loss`` without a gradient.

    Attributes:
        loss: ``policy_loss`` + beta * ``kl``.
        policy_loss: the clipped policy loss.
        kl: the k3 estimate of KL(reference || new).
        clip_ratio_low: share of trials whose ratio is clipped at the lower bound, with a negative advantage.
        clip_ratio_high: share of trials whose ratio is clipped at the upper bound, with a positive advantage.
    """

    loss: Tensor
    policy_loss: Tensor
    kl: Tensor
    clip_ratio_low: Tensor
    clip_ratio_high: Tensor


def rce_temperature(progress: float, start: float = 2.0, end: float = 0.5) -> float:
    """Returns the temperature at ``progress`` in [0, 1] of all training steps, linear from ``start`` to ``end``."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def rce_loss(
    logprobs_BG: Tensor,
    rewards_BG: Tensor,
    temperature: float,
    *,
    normalize: NormalizeRewards = "z-score",
    mask_BG: Tensor | None = None,
) -> RceLoss:
    """Computes reward-weighted cross-entropy: the sum over a group of softmax(r / temperature) * -logprob, mean over queries.

    Args:
        logprobs_BG: log-probs of the trials' pointers under the policy.
        rewards_BG: rewards of the trials.
        temperature: of the softmax.
        normalize: what r is. ``z-score``: the reward's z-score within the group (unbiased std), clamped to +/-3, or 0 if all
            rewards are equal. ``rank``: its rank within the group, evenly spread from -1 (worst) to 1 (best), where equal
            rewards share their mean rank. ``none``: the reward itself.
        mask_BG: False at padding.
    """
    mask_BG = _full(mask_BG, rewards_BG)
    rewards_BG = rewards_BG.to(logprobs_BG.dtype)
    if normalize == "z-score":
        mean_B1, std_B1 = _moments(rewards_BG, mask_BG)
        centred_BG = (rewards_BG - mean_B1).where(std_B1 > _EQUAL, 0.0)
        rewards_BG = (centred_BG / std_B1.clamp_min(_EQUAL)).clamp(-3.0, 3.0)
    elif normalize == "rank":
        rewards_BG = _ranks(rewards_BG, mask_BG)
    weights_BG = (rewards_BG / temperature).masked_fill(~mask_BG, -torch.inf).softmax(-1).where(mask_BG, 0.0).detach()
    loss = -(weights_BG * logprobs_BG.where(mask_BG, 0.0)).sum(1).mean()
    return RceLoss(loss, weights_BG)


def group_advantages(
    rewards_BG: Tensor, mask_BG: Tensor | None = None, *, scale: ScaleRewards = "group", batch_std: float | None = None
) -> Tensor:
    """Computes (r - mean of the group) / max(std, 0.1), clamped to +/-5, shape [B, G]; 0 at padding.

    The scales are those of TRL's GRPO; the floor of 0.1 and the clamp are the predecessor's.

    Args:
        rewards_BG: rewards of the trials.
        mask_BG: False at padding.
        scale: whose unbiased std it is: ``group``, that of the group; ``batch``, that of all trials of the step; ``none``
            does not divide.
        batch_std: std of all trials of the step, where ``rewards_BG`` are only a part of them.
    """
    mask_BG = _full(mask_BG, rewards_BG)
    mean_B1, std_B1 = _moments(rewards_BG, mask_BG)
    if scale == "batch":
        _, std_11 = _moments(rewards_BG.reshape(1, -1), mask_BG.reshape(1, -1))
        std_B1 = std_11 if batch_std is None else std_11.new_tensor([[batch_std]])
    divisor_B1 = torch.ones_like(std_B1) if scale == "none" else std_B1.clamp_min(0.1)
    return ((rewards_BG - mean_B1) / divisor_B1).clamp(-5.0, 5.0).where(mask_BG, 0.0)


def grpo_loss(
    logprobs_BG: Tensor,
    old_logprobs_BG: Tensor,
    advantages_BG: Tensor,
    beta: float,
    epsilon: float,
    *,
    epsilon_high: float | None = None,
    reference_logprobs_BG: Tensor | None = None,
    mask_BG: Tensor | None = None,
) -> GrpoLoss:
    """Computes the clipped policy loss plus ``beta`` times the KL divergence from the reference policy.

    With ratio = exp(logprobs - old_logprobs) and advantages A, the policy loss is
    -mean min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A). With r = exp(logprobs - reference_logprobs), KL is
    mean(r - 1 - log r), the k3 estimate of KL(reference || new) (J. Schulman, "Approximating KL divergence", 2020), as the
    predecessor computes it.

    Args:
        logprobs_BG: log-probs of the trials' pointers under the policy.
        old_logprobs_BG: the same under the old policy, from which this round of training began.
        advantages_BG: advantages of the trials.
        beta: weight of KL.
        epsilon: distance of the lower bound of the ratio from 1.
        epsilon_high: distance of the upper bound from 1, ``epsilon`` if None (clip-higher of DAPO, Yu et al. 2025).
        reference_logprobs_BG: the same as ``old_logprobs_BG`` under the reference policy, which is the old policy if None.
        mask_BG: False at trials that do not count.
    """
    mask_BG = _full(mask_BG, logprobs_BG)
    log_ratio_BG = (logprobs_BG - old_logprobs_BG).where(mask_BG, 0.0)
    ratio_BG = log_ratio_BG.exp()
    low, high = 1.0 - epsilon, 1.0 + (epsilon if epsilon_high is None else epsilon_high)
    clipped_BG = ratio_BG.clamp(low, high)
    surrogate_BG = torch.minimum(ratio_BG * advantages_BG, clipped_BG * advantages_BG)
    policy_loss = -_masked_mean(surrogate_BG, mask_BG)
    reference_BG = old_logprobs_BG if reference_logprobs_BG is None else reference_logprobs_BG
    distance_BG = (logprobs_BG - reference_BG).where(mask_BG, 0.0)
    kl = _masked_mean(distance_BG.exp() - 1.0 - distance_BG, mask_BG)
    clipped_low = _masked_mean(((ratio_BG < low) & (advantages_BG < 0)).to(ratio_BG.dtype), mask_BG)
    clipped_high = _masked_mean(((ratio_BG > high) & (advantages_BG > 0)).to(ratio_BG.dtype), mask_BG)
    return GrpoLoss(policy_loss + beta * kl, policy_loss.detach(), kl.detach(), clipped_low, clipped_high)


def categorical_kl(step_logprobs_BGKN: Tensor, old_step_logprobs_BGKN: Tensor, mask_BG: Tensor | None = None) -> Tensor:
    """Computes the exact KL(old || new) of each shot's distribution given the picks before it.

    It is summed over shots, and then averaged over trials and queries.
    """
    support_BGKN = torch.isfinite(old_step_logprobs_BGKN)
    difference_BGKN = (old_step_logprobs_BGKN - step_logprobs_BGKN).where(support_BGKN, 0.0)
    kl_BG = (old_step_logprobs_BGKN.exp() * difference_BGKN).sum((2, 3))
    return _masked_mean(kl_BG, _full(mask_BG, kl_BG)).detach()


def entropy(step_logprobs_BGKN: Tensor, mask_BG: Tensor | None = None) -> Tensor:
    """Computes the entropy in nats of each shot's distribution given the picks before it, mean over shots, trials, queries."""
    support_BGKN = torch.isfinite(step_logprobs_BGKN)
    terms_BGKN = (step_logprobs_BGKN.exp() * step_logprobs_BGKN.where(support_BGKN, 0.0)).where(support_BGKN, 0.0)
    entropy_BG = -terms_BGKN.sum(3).mean(2)
    return _masked_mean(entropy_BG, _full(mask_BG, entropy_BG))


def adapted_beta(beta: float, kl: float) -> float:
    """Returns the KL weight for the next epoch: multiplied by 1.5 if KL is above 0.1, divided by 1.5 if it is below 0.01."""
    low, high = _KL_BAND
    return beta * _BETA_FACTOR if kl > high else beta / _BETA_FACTOR if kl < low else beta


def zero_spread(rewards_BG: Tensor, mask_BG: Tensor | None = None) -> Tensor:
    """Tells of each group whether all its rewards are equal, bool [B]; so they are in a group with no or one trial."""
    mask_BG = _full(mask_BG, rewards_BG)
    high_B = rewards_BG.masked_fill(~mask_BG, -torch.inf).amax(1)
    low_B = rewards_BG.masked_fill(~mask_BG, torch.inf).amin(1)
    return (high_B - low_B) <= _EQUAL


def _full(mask_BG: Tensor | None, like_BG: Tensor) -> Tensor:
    """Returns the mask, or one in which all trials are real."""
    return torch.ones_like(like_BG, dtype=torch.bool) if mask_BG is None else mask_BG


def _moments(values_BG: Tensor, mask_BG: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and unbiased standard deviation of the real trials, [B, 1] each; std is 0 for fewer than two trials."""
    count_B1 = mask_BG.sum(1, keepdim=True)
    mean_B1 = values_BG.where(mask_BG, 0.0).sum(1, keepdim=True) / count_B1.clamp_min(1)
    squares_B1 = ((values_BG - mean_B1).where(mask_BG, 0.0) ** 2).sum(1, keepdim=True)
    return mean_B1, (squares_B1 / (count_B1 - 1).clamp_min(1)).sqrt()


def _ranks(values_BG: Tensor, mask_BG: Tensor) -> Tensor:
    """Ranks the real trials from -1 to 1; equal values share their mean rank. A single trial and padding have rank 0."""
    pair_BGG = mask_BG[:, None, :] & mask_BG[:, :, None]
    difference_BGG = values_BG[:, :, None] - values_BG[:, None, :]
    better_BG = ((difference_BGG > _EQUAL) & pair_BGG).sum(2) - ((difference_BGG < -_EQUAL) & pair_BGG).sum(2)
    return better_BG.to(values_BG.dtype) / (mask_BG.sum(1, keepdim=True) - 1).clamp_min(1)


def _masked_mean(values_BG: Tensor, mask_BG: Tensor) -> Tensor:
    """Averages over the real trials of a group, and then over the groups that have any; 0 if no group has any."""
    means_B = values_BG.where(mask_BG, 0.0).sum(1) / mask_BG.sum(1).clamp_min(1)
    return means_B.sum() / mask_BG.any(1).sum().clamp_min(1)
