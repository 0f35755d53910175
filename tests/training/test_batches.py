"""Tables and batches of groups."""

from dataclasses import replace

import numpy as np
import pytest

from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import RceSettings
from lever_mlflow.training.batches import split_tables, tabulate
from lever_mlflow.training.filters import split_groups
from lever_mlflow.trials.columns import as_columns
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data
from tests.helpers.trainings import run_grpo, run_rce


def test_groups_of_different_sizes_share_a_batch(problem):
    small = Group(0, problem.groups[0].pool[:5], (Trial((0, 1), 1.0, 1.0, "random"),))
    batch = problem.batch([small, problem.groups[1]])
    assert batch.mask_BG.sum(1).tolist() == [1, len(problem.groups[1].trials)]
    assert batch.pool_mask_BN.sum(1).tolist() == [5, 12]
    np.testing.assert_array_equal(batch.candidates_BND[0, :5], problem.features_SD[list(problem.groups[0].pool[:5])])
    assert batch.candidates_BND[0, 5:].abs().max() == 0.0


def test_the_spread_of_rewards_is_that_of_the_whole_step(problem):
    first, second, third = problem.groups[:3]
    table = problem.table([first, second, third])
    rewards = np.concatenate([group.rewards_G() for group in (first, third)])
    assert table.batch(np.array([0]), step_rows=np.array([0, 2])).rewards_std == pytest.approx(rewards.std(ddof=1))
    assert table.batch(np.array([1])).rewards_std == pytest.approx(second.rewards_G().std(ddof=1))


def test_top_k_keeps_the_best_trials_in_their_order(problem):
    scores = [0.0, 1.0, 0.3, 1.0, 0.6]
    trials = tuple(Trial((i, i + 1), 0.0, score, "random") for i, score in enumerate(scores))
    table = tabulate([Group(0, tuple(range(120, 132)), trials)], problem.features_SD, Reward("soft_only"), top_k=3)
    assert table.pointers_QGK.tolist() == [[[1, 2], [3, 4], [4, 5]]]
    np.testing.assert_allclose(table.rewards_QG, [[1.0, 1.0, 0.6]])
    ties = tabulate([Group(0, tuple(range(120, 132)), trials[:3:2])], problem.features_SD, Reward("hard_only"), top_k=1)
    assert ties.pointers_QGK.tolist() == [[[0, 1]]]


def test_validation_queries_keep_all_their_trials(problem):
    settings = RceSettings(top_k=3, val_share=0.2)
    train, val = split_tables(problem.groups, problem.features_SD, settings, Reward(), seed=3)
    train_groups, val_groups = split_groups(problem.groups, 0.2, seed=3)
    assert train.query_ids_Q.tolist() == [group.query_id for group in train_groups]
    assert set(train.sizes_Q.tolist()) == {3}
    assert val.sizes_Q.tolist() == [len(group.trials) for group in val_groups]


def test_filters_leave_the_validation_queries_whole(problem):
    odd = [replace(t, gen_method="odd") if i % 2 else t for group in problem.groups for i, t in enumerate(group.trials)]
    sizes = iter(odd)
    groups = [replace(group, trials=tuple(next(sizes) for _ in group.trials)) for group in problem.groups]
    settings = RceSettings(filter_gen_methods=("odd",), val_share=0.2)
    train, val = split_tables(groups, problem.features_SD, settings, Reward(), seed=3)
    plain, same_val = split_tables(groups, problem.features_SD, RceSettings(val_share=0.2), Reward(), seed=3)
    assert train.query_ids_Q.tolist() == plain.query_ids_Q.tolist()
    assert train.sizes_Q.tolist() == [size // 2 for size in plain.sizes_Q]
    assert val.query_ids_Q.tolist() == same_val.query_ids_Q.tolist()
    assert val.sizes_Q.tolist() == same_val.sizes_Q.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_id": 300}, "query 300: item 300 is not among the 300 training items; give the data set"),
        ({"pool": (299, 300)}, "query 0: item 300 is not among the 300 training items; give the data set"),
        (
            {"trials": (Trial((0, 12), 1.0, 1.0, "random"),)},
            "query 0: a pointer names position 12, but its pool has 12 candidates",
        ),
        (
            {"trials": (Trial((0, 1, 2), 1.0, 1.0, "random"),)},
            r"the file holds pointers of \[2, 3\] shots; keep the trials of one",
        ),
    ],
)
def test_groups_that_do_not_fit_are_refused(problem, change, message):
    assert len(problem.features_SD) == 300
    with pytest.raises(DataError, match=message):
        problem.table([replace(problem.groups[0], **change), problem.groups[1]])


@pytest.mark.parametrize("train", [run_rce, run_grpo])
def test_training_on_both_forms_gives_the_same_weights(problem, tmp_path, train):
    epochs = []
    for name in ("rl.json", "rl.parquet"):
        save_rl_data(tmp_path / name, problem.groups, {})
        groups = load_rl_data(tmp_path / name).groups
        epochs.append(train(problem._replace(groups=groups))[0])
    assert epochs[0].repeatable == epochs[1].repeatable
    assert epochs[0].digest == train(problem)[0].digest


def test_columns_give_the_groups_that_they_were_made_of(problem):
    columns = as_columns(problem.groups)
    assert list(columns) == list(problem.groups)
    assert columns[3:5] == problem.groups[3:5]
    assert columns[-1] == problem.groups[-1]
    assert columns != problem.groups[:-1]
    with pytest.raises(IndexError):
        columns[len(problem.groups)]
