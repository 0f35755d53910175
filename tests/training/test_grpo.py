"""GRPO on groups that can be learned: trials are right when they hold the candidate least like the query."""

import numpy as np
import pytest
import torch
from helpers.trainings import run_grpo, untrained_selector, with_equal_rewards

from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.settings import GrpoSettings
from lever_mlflow.training.filters import split_groups
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.objectives import group_advantages, grpo_loss, zero_spread
from lever_mlflow.training.validation import exact_kl, validate_selector


def test_grpo_learns_from_an_untrained_start(problem):
    start = untrained_selector()
    digest = selector_digest(start)
    settings = GrpoSettings(kl_beta=0.0, epochs=6, lr=1e-4)
    *_, epoch = train_grpo(start, problem.data, problem.features_SD, settings, seed=0)
    assert selector_digest(start) == digest  # the start checkpoint itself does not move
    assert epoch.metrics["train/ppo_loss"] < -0.05
    train, _ = split_groups(problem.groups, 0.2, seed=0)
    before, after = (
        validate_selector(policy, problem.table(train))["val/expected_reward"] for policy in (start, epoch.selector)
    )
    assert after > 1.5 * before


def test_the_clip_range_bounds_what_can_be_learned(problem):
    """No trial's gradient pulls its ratio further than the upper bound, and the start that it is held to never moves."""
    gains = {}
    for high in (0.2, 5.0):
        run = run_grpo(problem, epochs=6, kl_beta=0.0, epsilon_high=high)
        gains[high] = run[-1].metrics["val/expected_reward"] - run[0].metrics["val/expected_reward_start"]
    assert 0 < gains[0.2] < gains[5.0] / 2


def test_grpo_at_step_zero_has_no_kl(problem):
    start = untrained_selector(dropout=0.5)  # dropout must not disturb log-probs
    settings = GrpoSettings(kl_beta=0.1, epochs=1, lr=1e-9, batch_size=len(problem.groups))
    metrics = next(train_grpo(start, problem.data, problem.features_SD, settings, seed=0)).metrics
    assert metrics["train/kl"] == 0.0
    assert metrics["train/kl_exact"] == 0.0
    assert metrics["train/clip_ratio_low"] == metrics["train/clip_ratio_high"] == 0.0
    assert metrics["train/loss"] == pytest.approx(0.0, abs=1e-6)  # advantages have mean 0 and the ratio is 1


def test_kl_refers_to_the_reference_and_changed_picks_to_the_start(problem):
    """A later round of iterated GRPO starts at another policy than the one that the KL penalty keeps it near."""
    start, reference = untrained_selector(), untrained_selector(seed=2)
    settings = GrpoSettings(kl_beta=0.1, epochs=1, lr=1e-9, batch_size=len(problem.groups))
    epochs = train_grpo(start, problem.data, problem.features_SD, settings, seed=0, reference=reference)
    metrics = next(epochs).metrics
    train, val = (problem.table(groups) for groups in split_groups(problem.groups, 0.2, seed=0))
    assert metrics["train/kl_exact"] == pytest.approx(exact_kl(start, reference, train), rel=1e-4)
    assert metrics["val/kl_exact"] == pytest.approx(exact_kl(start, reference, val), rel=1e-4)
    assert metrics["train/kl"] > 0.01
    assert metrics["train/ppo_loss"] == pytest.approx(0.0, abs=1e-6)  # the ratio is 1
    assert metrics["val/picks_changed"] == 0.0


def test_larger_beta_stays_nearer_to_the_start(problem):
    small, large = (run_grpo(problem, epochs=4, kl_beta=beta)[-1].metrics["train/kl_exact"] for beta in (0.0, 5.0))
    assert large < small / 2


def test_frozen_backbone_does_not_move(problem):
    start = untrained_selector()
    settings = GrpoSettings(lr=1e-3, freeze_backbone=True)
    policy = next(train_grpo(start, problem.data, problem.features_SD, settings, seed=0)).selector
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}
    assert moved
    assert not {name for name in moved if name.startswith(("input_proj", "query_proj", "cand_proj"))}


def test_equal_rewards_move_nothing_at_beta_zero(problem):
    flat = problem._replace(groups=[with_equal_rewards(group) for group in problem.groups])
    metrics = run_grpo(flat, kl_beta=0.0)[0].metrics
    assert metrics["train/frac_reward_zero_std"] == 1.0
    assert metrics["train/advantage_std"] == metrics["train/advantage_max"] == metrics["train/grad_norm"] == 0.0


def test_the_spread_and_the_largest_of_the_advantages(problem):
    train, _ = split_groups(problem.groups, 0.2, seed=0)
    rewards = [np.asarray(group.rewards_G(), dtype=float) for group in train]
    advantages = np.concatenate([np.clip((r - r.mean()) / max(r.std(ddof=1), 0.1), -5, 5) for r in rewards])
    metrics = run_grpo(problem)[0].metrics
    assert metrics["train/advantage_std"] == pytest.approx(advantages.std(), rel=1e-5)
    assert metrics["train/advantage_max"] == pytest.approx(advantages.max(), rel=1e-5)


def test_one_trial_of_each_group_has_no_spread(problem):
    assert (
        run_grpo(problem, top_k=1)[0].metrics["train/frac_reward_zero_std"] == 1.0
    )  # which is why whole groups are the default


def test_adaptive_beta_follows_the_kl(problem):
    run = run_grpo(problem, epochs=4, kl_beta=0.3, adaptive_beta=True, lr=1e-6)
    assert run[0].metrics["train/kl"] < 0.01  # below the band: divided by 1.5 after each epoch
    assert [epoch.metrics["train/beta"] for epoch in run] == pytest.approx([0.3, 0.2, 0.4 / 3, 0.8 / 9])
    fast = run_grpo(problem, epochs=2, kl_beta=0.3, adaptive_beta=True, lr=3e-2)
    assert fast[0].metrics["train/kl"] > 0.1
    assert fast[1].metrics["train/beta"] == pytest.approx(0.45)


def test_masked_groups_leave_the_loss(problem):
    """Two groups of equal rewards beside two others: the loss is that of the two others alone, in one step."""
    flat = [with_equal_rewards(group) for group in problem.groups[:2]]
    spread = [group for group in problem.groups[2:] if np.ptp(group.rewards_G()) > 0][:2]
    start, policy = untrained_selector(), untrained_selector()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    losses = []
    for groups in ([*flat, *spread], spread):
        batch = problem.batch(groups)
        mask_BG = batch.mask_BG & ~zero_spread(batch.rewards_BG, batch.mask_BG)[:, None]
        advantages_BG = group_advantages(batch.rewards_BG, batch.mask_BG)
        logprobs_BG, start_BG = policy.logprobs(*batch.inputs), start.logprobs(*batch.inputs)
        losses.append(grpo_loss(logprobs_BG, start_BG, advantages_BG, 0.1, 0.2, mask_BG=mask_BG).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    half = problem._replace(groups=[*flat, *problem.groups[2:]])
    assert run_grpo(half, mask_zero_std_groups=True)[0].repeatable != run_grpo(half)[0].repeatable


def test_means_count_only_the_groups_that_are_in_the_loss(problem):
    """With half of the groups masked, the metrics of a policy that does not move are the same however they fall into steps."""
    flat = [with_equal_rewards(group) for group in problem.groups[:60]]
    half = problem._replace(groups=[*flat, *problem.groups[60:]])
    runs = [run_grpo(half, mask_zero_std_groups=True, lr=1e-12, batch_size=size)[0].metrics for size in (1, 7, 96)]
    assert 0.1 < runs[0]["train/frac_reward_zero_std"] < 0.9
    for name in ("train/entropy", "train/loss", "train/ppo_loss"):
        assert [metrics[name] for metrics in runs] == pytest.approx([runs[-1][name]] * 3, abs=1e-4), name
    assert runs[0]["train/entropy"] > 0.5


def test_kl_after_the_epoch_is_that_of_the_validation_queries(problem):
    """In an epoch of one step the training steps have seen no KL; numpy has the policy's after it."""
    start = untrained_selector()
    settings = GrpoSettings(kl_beta=0.0, epochs=1, lr=1e-2, batch_size=1000)
    epoch = next(train_grpo(start, problem.data, problem.features_SD, settings, seed=0))
    assert epoch.metrics["train/kl_exact"] == 0.0
    _, val = split_groups(problem.groups, 0.2, 0)
    kls = []
    for group in val:
        inputs = problem.batch([group]).inputs
        old, new = (model.step_logprobs(*inputs)[0].double().detach().numpy() for model in (start, epoch.selector))
        kls.append((np.exp(old) * (old - new)).sum((1, 2)).mean())
    assert epoch.metrics["val/kl_exact"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert epoch.metrics["val/kl_exact"] > 0.1


def test_entropy_bonus_keeps_the_policy_wider(problem):
    without, with_bonus = (
        run_grpo(problem, epochs=4, kl_beta=0.0, entropy_coef=coefficient)[-1].metrics["train/entropy"]
        for coefficient in (0.0, 1.0)
    )
    assert with_bonus > without + 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"scale_rewards": "batch"},
        {"scale_rewards": "none"},
        {"epsilon": 0.01},
        {"epsilon_high": 0.01},
        {"epsilon_high": 0.5, "epsilon": 0.01},
        {"grad_clip": 0.01},
        {"freeze_backbone": True},
        {"kl_beta": 1.0},
    ],
)
def test_every_option_changes_what_comes_out(problem, change):
    assert run_grpo(problem, **change)[0].digest != run_grpo(problem)[0].digest


def test_clipping_shares_are_reported_by_side(problem):
    metrics = run_grpo(problem, epochs=3, lr=3e-2, kl_beta=0.0, epsilon=0.05, epsilon_high=0.0)[-1].metrics
    assert metrics["train/clip_ratio_low"] > 0.05
    assert metrics["train/clip_ratio_high"] > 0.05
    assert metrics["train/clip_ratio_low"] + metrics["train/clip_ratio_high"] <= 1.0
