"""RCE and GRPO on groups that can be learned: trials are right when they hold the candidate least like the query."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_data import learnable_groups

from lever_mlflow.exceptions import CheckpointError, DataError, LeverError
from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.training.batches import split_groups, tabulate
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.loop import lr_factor
from lever_mlflow.training.objectives import group_advantages, grpo_loss, zero_spread
from lever_mlflow.training.rce import train_rce
from lever_mlflow.training.state import load_state, save_state
from lever_mlflow.training.validation import picks_changed, validate_selector
from lever_mlflow.trials.rl_data import Group, RLData, Trial


def rl_data(groups):
    return RLData(tuple(groups), "digest", "pools", {}, {}, "x.json")


def batch_of(groups, features_SD):
    return tabulate(groups, features_SD, "hard_plus_soft").batch(np.arange(len(groups)))


@pytest.fixture(scope="module")
def problem():
    return learnable_groups(120)


def expected_reward(selector, groups, features_SD):
    """Share of queries whose greedy picks hold the right candidate."""
    hits = 0
    for group in groups:
        batch = batch_of([group], features_SD)
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
    got = validate_selector(selector, tabulate(groups[:3], features_SD, "hard_plus_soft"))
    losses, rewards = [], []
    for group in groups[:3]:
        batch = batch_of([group], features_SD)
        logprobs_G = selector.logprobs(batch.query_BD, batch.candidates_BND, batch.pointers_BGK)[0].double().detach().numpy()
        rewards_G = group.rewards_G()
        losses.append(-(np.exp(rewards_G) / np.exp(rewards_G).sum()) @ logprobs_G)
        rewards.append((np.exp(logprobs_G) / np.exp(logprobs_G).sum()) @ rewards_G)
    assert got["val_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert got["expected_reward"] == pytest.approx(np.mean(rewards), abs=1e-5)
    assert picks_changed(selector, selector, tabulate(groups, features_SD, "hard_plus_soft")) == 0.0


def test_rce_metrics(problem):
    features_SD, groups = problem
    epoch = next(train_rce(rl_data(groups), features_SD, RceSettings(), seed=0))
    train, _ = split_groups(groups, 0.2, 0)
    rewards = np.concatenate([group.rewards_G() for group in train])
    assert epoch.metrics["reward_mean"] == pytest.approx(rewards.mean())
    assert epoch.metrics["frac_reward_zero_std"] == np.mean([np.ptp(group.rewards_G()) == 0 for group in train])
    assert epoch.metrics["lr"] == 1e-4
    torch.manual_seed(0)
    _, val = split_groups(groups, 0.2, 0)
    untrained = validate_selector(PointerSelector(feature_dim=16).eval(), tabulate(val, features_SD, "hard_plus_soft"))
    assert epoch.metrics["expected_reward_start"] == untrained["expected_reward"]


def test_grpo_learns_from_a_random_start(problem):
    features_SD, groups = problem
    torch.manual_seed(1)
    start = PointerSelector(feature_dim=16).eval()
    digest = selector_digest(start)
    settings = GrpoSettings(kl_beta=0.0, epochs=6, lr=1e-4)
    epochs = [(e.metrics, e.selector) for e in train_grpo(start, rl_data(groups), features_SD, settings, seed=0)]
    assert selector_digest(start) == digest  # the start checkpoint itself does not move
    assert epochs[-1][0]["ppo_loss"] < -0.05
    train, _ = split_groups(groups, 0.2, seed=0)
    policies = {"before": start, "after": epochs[-1][1]}
    rewards = {
        name: validate_selector(policy, tabulate(train, features_SD, "hard_plus_soft"))["expected_reward"]
        for name, policy in policies.items()
    }
    assert rewards["after"] > 1.5 * rewards["before"]


def test_the_clip_range_bounds_what_can_be_learned(problem):
    """No trial's gradient pulls its ratio further than the upper bound, and the start that it is held to never moves."""
    gains = {}
    for high in (0.2, 5.0):
        run = grpo(problem, epochs=6, kl_beta=0.0, epsilon_high=high)
        gains[high] = run[-1][0]["expected_reward"] - run[0][0]["expected_reward_start"]
    assert 0 < gains[0.2] < gains[5.0] / 2


def test_grpo_at_step_zero_has_no_kl(problem):
    features_SD, groups = problem
    start = PointerSelector(feature_dim=16, dropout=0.5).eval()  # dropout must not disturb log-probs
    settings = GrpoSettings(kl_beta=0.1, epochs=1, lr=1e-9, batch_size=len(groups))
    metrics = next(train_grpo(start, rl_data(groups), features_SD, settings, seed=0)).metrics
    assert metrics["kl"] == 0.0
    assert metrics["kl_exact"] == 0.0
    assert metrics["clip_ratio_low"] == metrics["clip_ratio_high"] == 0.0
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
    policy = next(train_grpo(start, rl_data(groups), features_SD, GrpoSettings(lr=1e-3, freeze_backbone=True), seed=0)).selector
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
    batch = batch_of([small, groups[1]], features_SD)
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


def grpo(problem, epochs=1, seed=0, state=None, start=None, **settings):
    """All epochs of a GRPO run on the problem: metrics and weights."""
    features_SD, groups = problem
    if start is None:
        torch.manual_seed(1)
        start = PointerSelector(feature_dim=16).eval()
    chosen = GrpoSettings(**{"lr": 1e-3, "batch_size": 8, "epochs": epochs, **settings})
    return [
        (epoch.metrics, selector_digest(epoch.selector), epoch.state)
        for epoch in train_grpo(start, rl_data(groups), features_SD, chosen, seed=seed, state=state)
    ]


def rce(problem, epochs=1, state=None, **settings):
    features_SD, groups = problem
    chosen = RceSettings(**{"lr": 1e-3, "batch_size": 8, "epochs": epochs, **settings})
    return [
        (epoch.metrics, selector_digest(epoch.selector), epoch.state)
        for epoch in train_rce(rl_data(groups), features_SD, chosen, seed=0, state=state)
    ]


def told(run):
    return [({**metrics, "seconds": 0}, digest) for metrics, digest, _ in run]


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (grpo, {}),
        (grpo, {"adaptive_beta": True, "lr_scheduler": "cosine", "freeze_backbone": True}),
        (rce, {}),
        (rce, {"dropout": 0.3, "lr_scheduler": "linear", "state_update": True}),
    ],
)
def test_training_that_goes_on_from_a_saved_state_ends_bit_for_bit_the_same(problem, tmp_path, train, settings):
    whole = train(problem, epochs=4, **settings)
    for done in (1, 3):
        save_state(tmp_path / str(done), whole[done - 1][2], {"models": {"1": "m-1"}})
        state, meta = load_state(tmp_path / str(done))
        assert meta == {"models": {"1": "m-1"}}
        assert [metrics for metrics, _, _ in whole[:done]] == list(state.history)
        rest = train(problem, epochs=4, state=state, **settings)
        assert told(rest) == told(whole[done:])


def test_half_a_state_is_none(problem, tmp_path):
    state = grpo(problem)[0][2]
    save_state(tmp_path / "whole", state, {})
    for name, keep in (("state.json", 40), ("state.safetensors", 5000)):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / name).write_bytes((tmp_path / "whole" / name).read_bytes()[:-keep])
        with pytest.raises(CheckpointError, match="no whole training state"):
            load_state(tmp_path / name)
    with pytest.raises(CheckpointError, match="no whole training state"):
        load_state(tmp_path / "nowhere")


def test_a_state_of_another_selector_is_refused(problem):
    state = grpo(problem, freeze_backbone=True)[0][2]
    with pytest.raises(CheckpointError, match="of another selector, or of one with other frozen parts"):
        grpo(problem, epochs=2, state=state)


def test_early_stopping_ends_without_gain(problem):
    assert len(grpo(problem, epochs=8, lr=1e-12, early_stopping=2)) == 3  # nothing moves: the first epoch, and two more
    rewards = [metrics["expected_reward"] for metrics, _, _ in rce(problem, epochs=8, lr=3e-3)]
    gains = [later > max(rewards[: i + 1]) for i, later in enumerate(rewards[1:])]
    assert True in gains
    first_without = gains.index(False) + 2 if False in gains else 8
    assert len(rce(problem, epochs=8, lr=3e-3, early_stopping=1)) == first_without


@pytest.mark.parametrize(("kind", "factors"), [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])])
def test_learning_rate_over_all_steps(problem, kind, factors):
    assert [lr_factor(kind, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(factors)
    assert lr_factor("cosine", 0.25) == pytest.approx((1 + 2**-0.5) / 2)
    last = {"constant": 1.0, "linear": 1 / 24, "cosine": (1 + math.cos(math.pi * 23 / 24)) / 2}[
        kind
    ]  # of 24 steps the 23rd is done
    assert grpo(problem, epochs=2, lr_scheduler=kind)[-1][0]["lr"] == pytest.approx(1e-3 * last)


def test_adaptive_beta_follows_the_kl(problem):
    run = grpo(problem, epochs=4, kl_beta=0.3, adaptive_beta=True, lr=1e-6)
    assert run[0][0]["kl"] < 0.01  # below the band: divided by 1.5 after each epoch
    assert [metrics["beta"] for metrics, _, _ in run] == pytest.approx([0.3, 0.2, 0.4 / 3, 0.8 / 9])
    fast = grpo(problem, epochs=2, kl_beta=0.3, adaptive_beta=True, lr=3e-2)
    assert fast[0][0]["kl"] > 0.1
    assert fast[1][0]["beta"] == pytest.approx(0.45)


def test_top_k_keeps_the_best_trials_in_their_order(problem):
    features_SD, _ = problem
    scores = [0.0, 1.0, 0.3, 1.0, 0.6]
    trials = tuple(Trial((i, i + 1), 0.0, score, "random") for i, score in enumerate(scores))
    table = tabulate([Group(0, tuple(range(120, 132)), trials)], features_SD, "soft_only", top_k=3)
    assert table.pointers_QGK.tolist() == [[[1, 2], [3, 4], [4, 5]]]
    np.testing.assert_allclose(table.rewards_QG, [[1.0, 1.0, 0.6]])
    ties = tabulate([Group(0, tuple(range(120, 132)), trials[:3:2])], features_SD, "hard_only", top_k=1)
    assert ties.pointers_QGK.tolist() == [[[0, 1]]]
    assert grpo(problem, top_k=1)[0][0]["frac_reward_zero_std"] == 1.0  # which is why whole groups are the default
    assert rce(problem, top_k=1)[0][0]["frac_reward_zero_std"] == 1.0


def test_masked_groups_leave_the_loss(problem):
    """Two flat groups beside two others: the loss is that of the two others alone, in one step."""
    features_SD, groups = problem
    flat = [Group(g.query_id, g.pool, tuple(Trial(t.pointer, 1.0, 1.0, "random") for t in g.trials)) for g in groups[:2]]
    spread = [g for g in groups[2:] if np.ptp(g.rewards_G()) > 0][:2]
    torch.manual_seed(1)
    start = PointerSelector(feature_dim=16).eval()
    other = PointerSelector(feature_dim=16).eval()
    for parameter, moved in zip(start.parameters(), other.parameters(), strict=True):
        moved.data.copy_(parameter.data + 0.01)
    losses = {}
    for name, chosen in (("all", [*flat, *spread]), ("spread", spread)):
        batch = batch_of(chosen, features_SD)
        inputs = (batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
        mask_BG = batch.mask_BG & ~zero_spread(batch.rewards_BG, batch.mask_BG)[:, None]
        advantages_BG = group_advantages(batch.rewards_BG, batch.mask_BG)
        losses[name] = grpo_loss(
            other.logprobs(*inputs), start.logprobs(*inputs), advantages_BG, 0.1, 0.2, mask_BG=mask_BG
        ).loss
    assert losses["all"].item() == pytest.approx(losses["spread"].item(), abs=1e-5)
    half = (features_SD, [*flat, *groups[2:]])
    assert told(grpo(half, mask_zero_std_groups=True)) != told(grpo(half))


def test_means_count_only_the_groups_that_are_in_the_loss(problem):
    """With half of the groups masked, the metrics of a policy that does not move are the same however they fall into steps."""
    features_SD, groups = problem
    flat = [replace(group, trials=tuple(replace(t, correct=1.0, accuracy=1.0) for t in group.trials)) for group in groups[:60]]
    half = (features_SD, [*flat, *groups[60:]])
    metrics = [grpo(half, mask_zero_std_groups=True, lr=1e-12, batch_size=size)[0][0] for size in (1, 7, 96)]
    assert 0.1 < metrics[0]["frac_reward_zero_std"] < 0.9
    for name in ("entropy", "train_loss", "ppo_loss"):
        assert [found[name] for found in metrics] == pytest.approx([metrics[-1][name]] * 3, abs=1e-4), name
    assert metrics[0]["entropy"] > 0.5


def test_kl_after_the_epoch_is_that_of_the_validation_queries(problem):
    """In an epoch of one step the training steps have seen no KL; numpy has the policy's after it."""
    features_SD, groups = problem
    torch.manual_seed(1)
    start = PointerSelector(feature_dim=16).eval()
    settings = GrpoSettings(kl_beta=0.0, epochs=1, lr=1e-2, batch_size=1000)
    epoch = next(train_grpo(start, rl_data(groups), features_SD, settings, seed=0))
    assert epoch.metrics["kl_exact"] == 0.0
    _, val = split_groups(groups, 0.2, 0)
    kls = []
    for group in val:
        batch = batch_of([group], features_SD)
        inputs = (batch.query_BD, batch.candidates_BND, batch.pointers_BGK)
        old, new = (model.step_logprobs(*inputs)[0].double().detach().numpy() for model in (start, epoch.selector))
        kls.append((np.exp(old) * (old - new)).sum((1, 2)).mean())
    assert epoch.metrics["val_kl_exact"] == pytest.approx(np.mean(kls), rel=1e-4)
    assert epoch.metrics["val_kl_exact"] > 0.1


def test_entropy_bonus_keeps_the_policy_wider(problem):
    last = {coef: grpo(problem, epochs=4, kl_beta=0.0, entropy_coef=coef)[-1][0]["entropy"] for coef in (0.0, 1.0)}
    assert last[1.0] > last[0.0] + 0.01


@pytest.mark.parametrize(
    ("train", "change"),
    [
        (grpo, {"scale_rewards": "batch"}),
        (grpo, {"scale_rewards": "none"}),
        (grpo, {"epsilon": 0.01}),
        (grpo, {"epsilon_high": 0.01}),
        (grpo, {"epsilon_high": 0.5, "epsilon": 0.01}),
        (grpo, {"grad_clip": 0.01}),
        (grpo, {"freeze_backbone": True}),
        (grpo, {"kl_beta": 1.0}),
        (rce, {"normalize_rewards": "rank"}),
        (rce, {"normalize_rewards": "none"}),
        (rce, {"n_layers": 2}),
        (rce, {"n_heads": 4}),
        (rce, {"state_update": True}),
        (rce, {"dropout": 0.5}),
        (rce, {"temperature_end": 1.5}),
        (rce, {"batch_size": 5}),
        (rce, {"lr_scheduler": "linear"}),
    ],
)
def test_every_option_changes_what_comes_out(problem, train, change):
    assert told(train(problem, **change))[0][1] != told(train(problem))[0][1]


def test_shape_options_shape_the_selector(problem):
    features_SD, groups = problem
    settings = RceSettings(epochs=1, n_layers=2, n_heads=4, state_update=True, fusion="concat", dropout=0.1, batch_size=32)
    selector = next(train_rce(rl_data(groups), features_SD, settings, seed=0)).selector
    assert (len(selector.cross_attn_layers), selector.cross_attn_layers[0].num_heads) == (2, 4)
    assert selector.state_proj is not None
    assert (selector.fusion, selector.dropout.p) == ("concat", 0.1)


def test_clipping_shares_are_reported_by_side(problem):
    metrics = grpo(problem, epochs=3, lr=3e-2, kl_beta=0.0, epsilon=0.05, epsilon_high=0.0)[-1][0]
    assert metrics["clip_ratio_low"] > 0.05
    assert metrics["clip_ratio_high"] > 0.05
    assert metrics["clip_ratio_low"] + metrics["clip_ratio_high"] <= 1.0
