"""RCE on groups that can be learned: trials are right when they hold the candidate least like the query."""

import numpy as np
import pytest
from helpers.trainings import run_rce, untrained_selector

from lever_mlflow.exceptions import DataError
from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.settings import RceSettings
from lever_mlflow.training.filters import split_groups
from lever_mlflow.training.rce import train_rce
from lever_mlflow.training.validation import validate_selector


def hit_rate(selector, problem):
    """Returns the share of queries whose greedy picks hold the right candidate."""
    hits = 0
    for group in problem.groups:
        batch = problem.batch([group])
        picks = selector.greedy(batch.query_BD, batch.candidates_BND, 2)[0].tolist()
        best = int(np.argmin(problem.features_SD[list(group.pool)] @ problem.features_SD[group.query_id]))
        hits += best in picks
    return hits / len(problem.groups)


def test_rce_learns_and_repeats_bit_for_bit(problem):
    settings = RceSettings(epochs=4, lr=1e-3, batch_size=4)
    before = hit_rate(untrained_selector(), problem)
    runs = [
        [
            (epoch, {**epoch.metrics, "train/seconds": 0}, selector_digest(epoch.selector))
            for epoch in train_rce(problem.data, problem.features_SD, settings, seed=5)
        ]
        for _ in range(2)
    ]
    assert [values for _, *values in runs[0]] == [values for _, *values in runs[1]]
    (_, first, _), *_, (last_epoch, last, _) = runs[0]
    assert last["train/loss"] < first["train/loss"]
    assert hit_rate(last_epoch.selector.eval(), problem) > before + 0.1
    assert last["train/temperature"] == pytest.approx(0.5)


def test_metrics_of_an_epoch(problem):
    epoch = next(train_rce(problem.data, problem.features_SD, RceSettings(), seed=0))
    train, val = split_groups(problem.groups, 0.2, 0)
    rewards = np.concatenate([group.rewards_G() for group in train])
    assert epoch.metrics["train/reward_mean"] == pytest.approx(rewards.mean())
    assert epoch.metrics["train/frac_reward_zero_std"] == np.mean([np.ptp(group.rewards_G()) == 0 for group in train])
    assert epoch.metrics["train/lr"] == 1e-4
    untrained = validate_selector(untrained_selector(0), problem.table(val))
    assert epoch.metrics["val/expected_reward_start"] == untrained["val/expected_reward"]


def test_one_trial_of_each_group_has_no_spread(problem):
    assert (
        run_rce(problem, top_k=1)[0].metrics["train/frac_reward_zero_std"] == 1.0
    )  # which is why whole groups are the default


def test_data_of_another_data_set_are_refused_before_the_first_epoch(problem):
    with pytest.raises(DataError, match=r"item \d+ is not among the 150 training items"):
        train_rce(problem.data, problem.features_SD[:150], RceSettings(), seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"normalize_rewards": "rank"},
        {"normalize_rewards": "none"},
        {"n_layers": 2},
        {"n_heads": 4},
        {"state_update": True},
        {"dropout": 0.5},
        {"temperature_end": 1.5},
        {"batch_size": 5},
        {"lr_scheduler": "linear"},
    ],
)
def test_every_option_changes_what_comes_out(problem, change):
    assert run_rce(problem, **change)[0].digest != run_rce(problem)[0].digest


def test_shape_options_shape_the_selector(problem):
    settings = RceSettings(epochs=1, n_layers=2, n_heads=4, state_update=True, fusion="concat", dropout=0.1, batch_size=32)
    selector = next(train_rce(problem.data, problem.features_SD, settings, seed=0)).selector
    assert (len(selector.cross_attn_layers), selector.cross_attn_layers[0].num_heads) == (2, 4)
    assert selector.state_proj is not None
    assert (selector.fusion, selector.dropout.p) == ("concat", 0.1)
