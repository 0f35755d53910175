import math

import numpy as np
import pytest
import torch

from lever_mlflow.training.objectives import (
    adapted_beta,
    categorical_kl,
    entropy,
    group_advantages,
    grpo_loss,
    rce_loss,
    rce_temperature,
    zero_spread,
)

LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0]])
REWARDS = torch.tensor([[2.0, 1.0, 0.0]])


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_rce_weights_follow_z_scored_rewards(temperature):
    # z-scores of (2, 1, 0) with unbiased std 1: (1, 0, -1)
    weights = np.exp(np.array([1.0, 0.0, -1.0]) / temperature)
    weights /= weights.sum()
    expected = float(weights @ np.array([1.0, 2.0, 3.0]))
    result = rce_loss(LOGPROBS, REWARDS, temperature)
    assert result.loss.item() == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(result.weights_BG[0], weights, atol=1e-6)


def test_rce_on_raw_rewards():
    weights = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    loss = rce_loss(LOGPROBS, REWARDS, 1.0, normalize="none").loss.item()
    assert loss == pytest.approx(float(weights @ [1.0, 2.0, 3.0]), abs=1e-5)


def test_rce_clamps_z_scores_at_three():
    rewards = torch.tensor([[10.0] + [0.0] * 19])  # z of the first: 4.25
    weights = rce_loss(torch.zeros(1, 20), rewards, 1.0).weights_BG[0]
    assert (weights[0] / weights[1]).item() == pytest.approx(
        math.exp(3.0 + 10.0 / 20 / np.std([10.0] + [0.0] * 19, ddof=1)), rel=1e-4
    )


def test_rce_equal_rewards_weigh_all_trials_equally():
    result = rce_loss(LOGPROBS, torch.full((1, 3), 0.7), 0.5)
    assert result.loss.item() == pytest.approx(2.0, abs=1e-6)


def test_rce_rounding_errors_are_no_spread():
    weights = rce_loss(LOGPROBS, torch.tensor([[1.0, 1.0000001, 0.9999999]]), 0.5).weights_BG
    np.testing.assert_allclose(weights, [[1 / 3] * 3], atol=1e-6)


def test_rce_gradient_pulls_towards_the_better_trial():
    logprobs = LOGPROBS.clone().requires_grad_()
    rce_loss(logprobs, REWARDS, 1.0).loss.backward()
    weights = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    np.testing.assert_allclose(logprobs.grad[0], -weights, atol=1e-6)


def test_rce_temperature_is_linear():
    assert [rce_temperature(p) for p in (0.0, 0.5, 1.0)] == [2.0, 1.25, 0.5]


def test_advantages_by_hand():
    # (2, 1, 0): mean 1, unbiased std 1. (1, 1, 0): mean 2/3, std 0.57735 -> 0.57735, 0.57735, -1.15470
    advantages = group_advantages(torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(advantages, [[1, 0, -1], [0.57735, 0.57735, -1.15470]], atol=1e-5)


def test_advantages_divide_by_at_least_a_tenth_and_stop_at_five():
    advantages = group_advantages(torch.tensor([[0.02, 0.0]]))  # std 0.01414 -> divided by 0.1
    np.testing.assert_allclose(advantages, [[0.1, -0.1]], atol=1e-6)
    assert group_advantages(torch.tensor([[100.0] + [0.0] * 99])).max().item() == 5.0


@pytest.mark.parametrize("rewards", [[[1.0]], [[0.3, 0.3, 0.3]]])
def test_degenerate_groups_have_no_advantage(rewards):
    rewards = torch.tensor(rewards)
    assert group_advantages(rewards).abs().max().item() == 0.0
    assert zero_spread(rewards).tolist() == [True]


def test_padding_is_ignored_everywhere():
    mask = torch.tensor([[True, True, True, False]])
    pad = lambda tensor, value: torch.cat([tensor, torch.tensor([[value]])], dim=1)  # noqa: E731
    assert torch.equal(group_advantages(pad(REWARDS, 50.0), mask)[:, :3], group_advantages(REWARDS))
    old = torch.tensor([[-1.2, -2.0, -2.5]])
    plain = grpo_loss(LOGPROBS, old, group_advantages(REWARDS), 0.1, 0.2)
    padded = grpo_loss(pad(LOGPROBS, -9.0), pad(old, -1.0), group_advantages(pad(REWARDS, 50.0), mask), 0.1, 0.2, mask_BG=mask)
    torch.testing.assert_close(tuple(padded), tuple(plain))
    torch.testing.assert_close(
        rce_loss(pad(LOGPROBS, -9.0), pad(REWARDS, 50.0), 1.0, mask_BG=mask).loss, rce_loss(LOGPROBS, REWARDS, 1.0).loss
    )
    assert [zero_spread(pad(torch.full((1, 3), 1.0), value), mask).item() for value in (0.0, 2.0)] == [True, True]


def test_empty_group_gives_zero_and_no_nan():
    logprobs = LOGPROBS.clone().requires_grad_()
    mask = torch.zeros(1, 3, dtype=torch.bool)
    loss = grpo_loss(logprobs, LOGPROBS, group_advantages(REWARDS, mask), 0.1, 0.2, mask_BG=mask)
    loss.loss.backward()
    assert loss.loss.item() == 0.0
    assert logprobs.grad.abs().max().item() == 0.0
    assert group_advantages(REWARDS, mask).tolist() == [[0.0, 0.0, 0.0]]


def test_groups_without_trials_leave_the_mean():
    old, mask = torch.tensor([[-1.2, -2.0, -2.5]] * 2), torch.tensor([[True] * 3, [False] * 3])
    advantages = torch.tensor([[1.0, 0.0, -1.0]] * 2)
    both = grpo_loss(LOGPROBS.repeat(2, 1), old, advantages, 0.3, 0.1, mask_BG=mask)
    torch.testing.assert_close(tuple(both), tuple(grpo_loss(LOGPROBS, old[:1], advantages[:1], 0.3, 0.1)))


def test_grpo_loss_by_hand():
    old = torch.tensor([[-1.2, -2.0, -2.5]])  # log ratios 0.2, 0, -0.5
    ratio = np.exp([0.2, 0.0, -0.5])
    # advantages (1, 0, -1), epsilon 0.1: min(1.2214, 1.1) * 1; 0; min(-0.60653, -0.9) -> -0.9
    policy_loss = -(1.1 + 0.0 - 0.9) / 3
    kl = float(np.mean(ratio - 1 - np.array([0.2, 0.0, -0.5])))
    result = grpo_loss(LOGPROBS, old, torch.tensor([[1.0, 0.0, -1.0]]), 0.3, 0.1)
    assert result.policy_loss.item() == pytest.approx(policy_loss, abs=1e-5)
    assert result.kl.item() == pytest.approx(kl, abs=1e-5)
    assert result.loss.item() == pytest.approx(policy_loss + 0.3 * kl, abs=1e-5)
    assert result.clip_ratio_low.item() == pytest.approx(1 / 3, abs=1e-6)  # exp(-0.5) below 0.9, advantage -1
    assert result.clip_ratio_high.item() == pytest.approx(1 / 3, abs=1e-6)  # exp(0.2) above 1.1, advantage 1


def test_kl_is_measured_from_the_reference():
    """The ratio compares with the old policy, and KL with the reference: log r = 0.4, -0.3, 0."""
    old, reference = torch.tensor([[-1.2, -2.0, -2.5]]), LOGPROBS - torch.tensor([[0.4, -0.3, 0.0]])
    result = grpo_loss(LOGPROBS, old, torch.tensor([[1.0, 0.0, -1.0]]), 0.3, 0.1, reference_logprobs_BG=reference)
    kl = (1.4918247 - 1.4 + 0.7408182 - 0.7) / 3
    assert result.kl.item() == pytest.approx(kl, abs=1e-5)
    assert result.loss.item() == pytest.approx(-(1.1 - 0.9) / 3 + 0.3 * kl, abs=1e-5)


def test_grpo_gradient_by_hand():
    logprobs = LOGPROBS.clone().requires_grad_()
    old = torch.tensor([[-1.2, -2.0, -2.5]])
    grpo_loss(logprobs, old, torch.tensor([[1.0, 0.0, -1.0]]), 0.3, 0.1).loss.backward()
    # clipped terms give no policy gradient; KL: beta / 3 * (ratio - 1)
    np.testing.assert_allclose(logprobs.grad[0], 0.1 * (np.exp([0.2, 0.0, -0.5]) - 1), atol=1e-6)


def test_at_step_zero_ratio_is_one_and_kl_zero():
    logprobs = LOGPROBS.clone().requires_grad_()
    result = grpo_loss(logprobs, LOGPROBS, torch.tensor([[1.0, 0.0, -1.0]]), 0.3, 0.2)
    result.loss.backward()
    assert result.kl.item() == 0.0
    np.testing.assert_allclose(logprobs.grad[0], [-1 / 3, 0.0, 1 / 3], atol=1e-6)


def test_exact_kl_by_hand():
    old = torch.tensor([0.7, 0.2, 0.1]).log()[None, None, None]
    new = torch.tensor([0.5, 0.3, 0.2]).log()[None, None, None]
    expected = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.2)
    assert categorical_kl(new, old).item() == pytest.approx(expected, abs=1e-6)
    assert categorical_kl(old, old).item() == 0.0


def test_exact_kl_with_padded_candidates_is_finite():
    old = torch.tensor([[[[0.0, -torch.inf]]]])
    assert categorical_kl(old, old).item() == 0.0


def test_batch_is_the_mean_over_queries():
    both = rce_loss(LOGPROBS.repeat(2, 1), torch.cat([REWARDS, REWARDS.flip(1)]), 1.0).loss
    one, two = (rce_loss(LOGPROBS, rewards, 1.0).loss for rewards in (REWARDS, REWARDS.flip(1)))
    assert both.item() == pytest.approx((one.item() + two.item()) / 2, abs=1e-6)


def test_rce_on_ranks():
    # 5, 1, 1, 0: three are worse than the first, one worse and one better for each in the middle, three better than the last
    weights = np.exp(np.array([3.0, 0.0, 0.0, -3.0]) / 3)
    weights_G = rce_loss(torch.zeros(1, 4), torch.tensor([[5.0, 1.0, 1.0, 0.0]]), 1.0, normalize="rank").weights_BG[0]
    np.testing.assert_allclose(weights_G, weights / weights.sum(), atol=1e-6)
    mask = torch.tensor([[True, True, True, True, False]])
    padded = rce_loss(torch.zeros(1, 5), torch.tensor([[5.0, 1.0, 1.0, 0.0, 0.5]]), 1.0, normalize="rank", mask_BG=mask)
    np.testing.assert_allclose(padded.weights_BG[0], [*(weights / weights.sum()), 0.0], atol=1e-6)
    alone = rce_loss(torch.zeros(1, 1), torch.tensor([[5.0]]), 1.0, normalize="rank").weights_BG
    assert alone.tolist() == [[1.0]]


def test_advantages_by_scale():
    rewards = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.4, 0.3]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    none = group_advantages(rewards, mask, scale="none")
    np.testing.assert_allclose(none, [[1, 0, -1], [0.05, -0.05, 0]], atol=1e-6)
    # the five real trials 2, 1, 0, 0.5, 0.4 have the unbiased std below
    std = np.std([2.0, 1.0, 0.0, 0.5, 0.4], ddof=1)
    batch = group_advantages(rewards, mask, scale="batch")
    np.testing.assert_allclose(batch, np.array([[1, 0, -1], [0.05, -0.05, 0]]) / std, atol=1e-6)


def test_a_higher_upper_bound_clips_later():
    old = torch.tensor([[-1.2, -2.0, -2.5]])  # ratios 1.2214, 1, 0.6065
    result = grpo_loss(LOGPROBS, old, torch.tensor([[1.0, 0.0, -1.0]]), 0.0, 0.1, epsilon_high=0.3)
    assert result.policy_loss.item() == pytest.approx(-(math.exp(0.2) - 0.9) / 3, abs=1e-5)
    assert result.clip_ratio_high.item() == 0.0


def test_entropy_by_hand():
    steps = torch.tensor([[[[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]]).log()
    first = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert entropy(steps).item() == pytest.approx((first + math.log(2)) / 2 / 2, abs=1e-6)
    assert entropy(steps, torch.tensor([[True, False]])).item() == pytest.approx((first + math.log(2)) / 2, abs=1e-6)
    steps = torch.tensor([[[[0.5, 0.5, 0.0]]]]).log().requires_grad_()
    entropy(steps).backward()
    assert torch.isfinite(steps.grad).all()


def test_adapted_beta():
    assert [adapted_beta(0.3, kl) for kl in (0.0, 0.0099, 0.01, 0.05, 0.1, 0.11)] == pytest.approx(
        [0.2, 0.2, 0.3, 0.3, 0.3, 0.45]
    )
