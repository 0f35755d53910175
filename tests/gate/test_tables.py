"""The gate's tables, on files written by hand."""

import json
import math
from dataclasses import replace

import pytest

from lever_mlflow.gate.tables import evaluation_table, query_table, trial_table
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, RLData, Trial

POOL = [50, 60, 70, 80]


def trial(pointer, correct=0, accuracy=0.0, **fields):
    return {"pointer": pointer, "vqa_correct": correct, "vqa_acc_score": accuracy, "gen_method": "beam", **fields}


def in_pool(pointer, *scores):
    return trial(pointer, *scores, pointer_global=[POOL[position] for position in pointer])


def query(*trials):
    return {"candidate_pool_ids": POOL, "pointer_candidates": list(trials)}


@pytest.fixture
def load(tmp_path):
    """load(content) writes content as JSON and reads it."""

    def write_and_load(content):
        (tmp_path / "rl.json").write_text(json.dumps(content))
        return load_rl_data(tmp_path / "rl.json")

    return write_and_load


def test_trial_table(load):
    outside = trial([0, 4], 1, 0.3, pointer_global=[50, 999])
    data = load(
        {"4": query(in_pool([0, 1], 1, 0.6), in_pool([2, 2])), "60": query(outside, trial([-1, 0], pointer_global=[80, 50]))}
    )
    table = trial_table(data)
    assert table.to_dict("list") == {
        "query_id": [4, 4, 60, 60],
        "shots": [2, 2, 2, 2],
        "gen_method": ["beam"] * 4,
        "vqa_correct": [1.0, 0.0, 1.0, 0.0],
        "vqa_acc_score": [0.6, 0.0, 0.3, 0.0],
        "reward": [1.6, 0.0, 1.3, 0.0],
        "pointer_distinct": [True, False, True, True],
        "pointer_in_pool": [True, True, False, False],
    }
    assert trial_table(data, Reward("hard_only"))["reward"].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_query_table(load):
    double = {"candidate_pool_ids": [50, 50], "pointer_candidates": [trial([0], pointer_global=[50])] * 2}
    data = load({"4": query(in_pool([0, 1], 1, 0.6), in_pool([2, 1])), "50": double, "60": query()})
    rows = query_table(data, trial_table(data)).to_dict("records")
    assert rows[0] == {
        "query_id": 4,
        "n_trials": 2,
        "n_positive": 1,
        "n_distinct_pointers": 2,
        "pool_size": 4,
        "pool_distinct": True,
        "query_in_pool": False,
        "image_in_pool": pytest.approx(math.nan, nan_ok=True),  # no image is known
        "no_answer_in_pool": pytest.approx(math.nan, nan_ok=True),  # nor any answer
        "positive": 1,
        "reward_mean": 0.8,
        "reward_spread": 1.6,
        "zero_spread": 0,
    }
    assert {name: rows[1][name] for name in ("n_trials", "n_distinct_pointers", "pool_distinct", "query_in_pool")} == {
        "n_trials": 2,
        "n_distinct_pointers": 1,
        "pool_distinct": False,
        "query_in_pool": True,
    }
    assert [(row["positive"], row["zero_spread"]) for row in rows[1:]] == [(0, 1), (0, 1)]
    assert math.isnan(rows[2]["reward_mean"])


def test_dropped_trials_are_evaluations_too(load):
    failed, fallback = trial([0, 1], pointer_global=[50, 60]), in_pool([0, 2], 1, 1.0)
    data = load(
        {"4": query(in_pool([0, 3], 1, 0.6), {**failed, "eval_failed": True}, {**fallback, "vqa_eval_mode": "fallback"})}
    )
    table = evaluation_table(data, trial_table(data))
    assert table.to_dict("list") == {"outcome": ["used", "eval_failed", "fallback"], "as_recorded": [None] * 3}


def test_trials_are_about_the_items_that_were_recorded(samples):
    """The questions 100 to 129 are in the order of their ids."""
    trials = (Trial((0,), 1.0, 1.0, "beam"), Trial((1,), 0.0, 0.0, "beam"))
    groups = (Group(4, (10, 12), trials, {"question_id": 104}), Group(5, (10, 12), trials, {"question_id": 7}))
    matched = match_items(rl_data(*groups), samples)
    assert evaluation_table(matched, trial_table(matched)).as_recorded.tolist() == [True, True, False, False]
    by_id = [replace(g, pool_question_ids=(110, 999)) for g in groups]
    matched = match_items(rl_data(*by_id), samples)
    table = evaluation_table(matched, trial_table(matched))
    assert table.outcome.tolist() == ["used", "left_out", "left_out", "left_out"]
    assert table.as_recorded.tolist() == [True, None, None, None]
    unchecked = match_items(rl_data(Group(4, (10, 99), trials)), samples)
    assert evaluation_table(unchecked, trial_table(unchecked)).as_recorded.tolist() == [None, False]


def rl_data(*groups):
    return RLData(groups, "d" * 32, "pools", {}, {}, "rl.json")


def image_column(data, train=None):
    table = query_table(data, trial_table(data), train)
    return table.image_in_pool.fillna(-1).tolist()


def test_another_question_about_the_querys_image_is_found_in_its_pool(samples):
    """Of the 30 items, 2 k and 2 k + 1 show image k; question ids are 100 + index."""
    trials = (Trial((0, 1), 1.0, 1.0, "beam"),)
    leaking = Group(4, (10, 5, 4), trials, {"question_id": 104, "image_id": 2})
    clean = Group(6, (10, 12), trials, {"question_id": 106, "image_id": 3})
    assert image_column(match_items(rl_data(leaking, clean), samples), samples) == [1, 0]
    # without the data set, images are known only of the items that are queries of this file; -1 stands for unknown
    assert image_column(rl_data(leaking, clean)) == image_column(rl_data(leaking, clean), samples) == [-1, -1]
    both = Group(5, (10, 4), trials, {"question_id": 105, "image_id": 2})
    assert image_column(rl_data(leaking, both)) == [1, 1]
    inside = Group(4, (6, 4), trials, {"image_id": 2})
    assert image_column(rl_data(inside, clean)) == [0, -1]
    # and where question ids are not recorded, the user has said which items the indices mean
    assert image_column(match_items(rl_data(Group(4, (10, 5), trials)), samples), samples) == [1]


def test_queries_without_a_right_answer_in_their_pool(samples):
    """All items have answers of their own, except that item 12 has the answer of item 4."""
    samples = [*samples[:12], replace(samples[12], answers=samples[4].answers), *samples[13:]]
    trials = (Trial((0, 1), 1.0, 1.0, "beam"),)
    groups = (
        Group(4, (10, 12), trials, {"question_id": 104}),
        Group(6, (10, 12), trials, {"question_id": 106}),
    )

    def column(data, train):
        return query_table(data, trial_table(data), train).no_answer_in_pool.fillna(-1).tolist()

    matched = match_items(rl_data(*groups), samples)
    assert column(matched, samples) == [0, 1]
    # not known: without the data set, without a match, or where the file holds no pools; -1 stands for unknown
    assert column(matched, None) == column(rl_data(*groups), samples) == [-1, -1]
    assert column(replace(matched, vintage="pointers"), samples) == [-1, -1]
