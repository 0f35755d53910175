"""RCE and GRPO on groups that can be learned: trials are right when they hold the candidate least like the query."""

import numpy as np
import pytest
import torch
from conftest import learnable_groups

from lever_mlflow.checkpoint import selector_digest
from lever_mlflow.exceptions import DataError, LeverError
from lever_mlflow.group_batches import collate, split_groups
from lever_mlflow.rl_data import Group, RLData, Trial
from lever_mlflow.selector import PointerSelector
from lever_mlflow.train_grpo import train_grpo
from lever_mlflow.train_rce import train_rce
from lever_mlflow.types import GrpoSettings, RceSettings
from lever_mlflow.validation import picks_changed, validate_selector


def rl_data(groups):
    return RLData(tuple(groups), "digest", "pools", {}, {}, "x.json")


@pytest.fixture(scope="module")
def problem():
    return learnable_groups(120)


def expected_reward(selector, groups, features_SD):
    """Share of queries whose greedy picks hold the right candidate."""
    hits = 0
    for group in groups:
        batch = collate([group], features_SD, "hard_plus_soft")
        picks = selector.greedy(batch.query_BD, batch.candidates_BND, 2)[0].tolist()
        best = int(np.argmin(features_SD[list(group.pool)] @ features_SD[group.query_id]))
        hits += best in picks
    return hits / len(groups)


def test_rce_learns_and_repeats_bit_for_bit(problem):
    features_SD, groups = problem
    settings = RceSettings(epochs=4, lr=1e-3, batch_size=4)
    before = expected_reward(PointerSelector(feature_dim=16), groups, features_SD)
    first = [(e.metrics, selector_digest(e.selector)) for e in train_rce(rl_data(groups), features_SD, settings, seed=5)]
    second = []
    for epoch in train_rce(rl_data(groups), features_SD, settings, seed=5):
        second.append((epoch.metrics, selector_digest(epoch.selector)))
    for (metrics, digest), (again, same_digest) in zip(first, second, strict=True):
        assert digest == same_digest
        assert {**metrics, "seconds": 0} == {**again, "seconds": 0}
    assert first[-1][0]["train_loss"] < first[0][0]["train_loss"]
    assert expected_reward(epoch.selector.eval(), groups, features_SD) > before + 0.1
    assert epoch.metrics["temperature"] == pytest.approx(0.5)


def test_validation_figures_by_hand(problem):
    features_SD, groups = problem
    torch.manual_seed(2)
    selector = PointerSelector(feature_dim=16).eval()
    got = validate_selector(selector, groups[:3], features_SD, "hard_plus_soft")
    losses, rewards = [], []
    for group in groups[:3]:
        batch = collate([group], features_SD, "hard_plus_soft")
        logprobs_G = selector.logprobs(batch.query_BD, batch.candidates_BND, batch.pointers_BGK)[0].double().detach().numpy()
        rewards_G = group.rewards_G()
        losses.append(-(np.exp(rewards_G) / np.exp(rewards_G).sum()) @ logprobs_G)
        rewards.append((np.exp(logprobs_G) / np.exp(logprobs_G).sum()) @ rewards_G)
    assert got["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert got["expected_reward"] == pytest.approx(np.mean(rewards), abs=1e-5)
    assert picks_changed(selector, selector, groups, features_SD, "hard_plus_soft") == 0.0


def test_rce_metrics(problem):
    features_SD, groups = problem
    epoch = next(train_rce(rl_data(groups), features_SD, RceSettings(), seed=0))
    train, _ = split_groups(groups, 0.2, 0)
    rewards = np.concatenate([group.rewards_G() for group in train])
    assert epoch.metrics["reward_mean"] == pytest.approx(rewards.mean())
    assert epoch.metrics["frac_reward_zero_std"] == np.mean([np.ptp(group.rewards_G()) == 0 for group in train])
    assert epoch.metrics["lr"] == 1e-4


def test_grpo_learns_from_a_random_start(problem):
    features_SD, groups = problem
    torch.manual_seed(1)
    start = PointerSelector(feature_dim=16).eval()
    digest = selector_digest(start)
    settings = GrpoSettings(kl_beta=0.0, epochs=6, lr=1e-4, batch_size=8, freeze_backbone=False)
    epochs = [(e.metrics, e.selector) for e in train_grpo(start, rl_data(groups), features_SD, settings, seed=0)]
    assert selector_digest(start) == digest  # the start checkpoint itself does not move
    assert epochs[-1][0]["ppo_loss"] < -0.05
    train, _ = split_groups(groups, 0.2, seed=0)
    policies = {"before": start, "after": epochs[-1][1]}
    rewards = {
        name: validate_selector(policy, train, features_SD, "hard_plus_soft")["expected_reward"]
        for name, policy in policies.items()
    }
    # a ratio may grow by little more than 1 + epsilon, so that the gain is a share of a small start
    assert rewards["after"] > 1.1 * rewards["before"]


def test_grpo_at_step_zero_has_no_kl(problem):
    features_SD, groups = problem
    start = PointerSelector(feature_dim=16, dropout=0.5).eval()  # dropout must not disturb log-probs
    settings = GrpoSettings(kl_beta=0.1, epochs=1, lr=1e-9, batch_size=len(groups))
    metrics = next(train_grpo(start, rl_data(groups), features_SD, settings, seed=0)).metrics
    assert metrics["kl"] == 0.0
    assert metrics["kl_exact"] == 0.0
    assert metrics["clip_fraction"] == 0.0
    assert metrics["train_loss"] == pytest.approx(0.0, abs=1e-6)  # advantages have mean 0 and the ratio is 1


def test_larger_beta_stays_nearer_to_the_start(problem):
    features_SD, groups = problem
    start = PointerSelector(feature_dim=16).eval()
    kl = {}
    for beta in (0.0, 5.0):
        settings = GrpoSettings(kl_beta=beta, epochs=4, lr=1e-3)
        for epoch in train_grpo(start, rl_data(groups), features_SD, settings, seed=0):
            kl[beta] = epoch.metrics["kl_exact"]
    assert kl[5.0] < kl[0.0] / 2


def test_frozen_backbone_does_not_move(problem):
    features_SD, groups = problem
    start = PointerSelector(feature_dim=16).eval()
    policy = next(train_grpo(start, rl_data(groups), features_SD, GrpoSettings(lr=1e-3), seed=0)).selector
    moved = {name for name, tensor in policy.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}
    assert moved
    assert not {name for name in moved if name.startswith(("input_proj", "query_proj", "cand_proj"))}


def test_equal_rewards_move_nothing_at_beta_zero(problem):
    features_SD, groups = problem
    flat = [Group(g.query_id, g.pool, tuple(Trial(t.pointer, 1.0, 1.0, "random") for t in g.trials)) for g in groups]
    start = PointerSelector(feature_dim=16).eval()
    metrics = next(train_grpo(start, rl_data(flat), features_SD, GrpoSettings(kl_beta=0.0), seed=0)).metrics
    assert metrics["frac_reward_zero_std"] == 1.0
    assert metrics["adv_std"] == metrics["adv_max"] == metrics["grad_norm"] == 0.0


def test_groups_of_different_sizes_share_a_batch(problem):
    features_SD, groups = problem
    small = Group(0, groups[0].pool[:5], (Trial((0, 1), 1.0, 1.0, "random"),))
    batch = collate([small, groups[1]], features_SD, "hard_plus_soft")
    assert batch.mask_BG.sum(1).tolist() == [1, len(groups[1].trials)]
    assert batch.pool_mask_BN.sum(1).tolist() == [5, 12]
    np.testing.assert_array_equal(batch.candidates_BND[0, :5], features_SD[list(groups[0].pool[:5])])


def test_queries_are_split_once_and_completely(problem):
    _, groups = problem
    train, val = split_groups(groups, 0.2, seed=3)
    assert len(val) == 24
    assert sorted(g.query_id for g in train + val) == list(range(120))
    assert [g.query_id for g in val] == [g.query_id for g in split_groups(groups, 0.2, seed=3)[1]]


def test_data_of_another_data_set_is_refused(problem):
    features_SD, groups = problem
    with pytest.raises(DataError, match=r"item \d+ is not among the 150 training items"):
        next(train_rce(rl_data(groups), features_SD[:150], RceSettings(), seed=0))


def test_a_loss_that_is_not_finite_names_the_queries(problem):
    features_SD, groups = problem
    broken = features_SD.copy()
    broken[groups[0].query_id] = np.nan
    with pytest.raises(LeverError, match=r"loss is nan on queries \[0\]"):
        list(train_rce(rl_data(groups), broken, RceSettings(epochs=1, val_share=0.01), seed=0))
