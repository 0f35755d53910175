import numpy as np
import pandas as pd
import pytest

from lever_mlflow.evaluate import (
    ZERO_SHOT,
    accuracy_table,
    choose_epoch,
    evaluate,
    random_picks,
    similarity_picks,
    split_questions,
)
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.types import EvalSettings


def test_report_sizes_are_nested_and_selection_is_apart(samples):
    small = split_questions(samples, EvalSettings(sizes=(5,), n_selection=10), seed=4)
    large = split_questions(samples, EvalSettings(sizes=(5, 20), n_selection=10), seed=4)
    assert [s.index for s in large.report[:5]] == [s.index for s in small.report]
    assert [s.index for s in large.selection] == [s.index for s in small.selection]
    assert [len(part) for part in large] == [20, 10]
    assert not {s.image_id for s in large.report} & {s.image_id for s in large.selection}


def test_too_few_questions(samples):
    with pytest.raises(ParameterError, match="the split has 30 questions, of which 20 are left"):
        split_questions(samples, EvalSettings(sizes=(21,), n_selection=10), seed=0)


def test_picks_of_the_baselines(samples):
    pools = np.array([[4, 7, 9, 20], [1, 2, 3, 6]])
    train = np.eye(30, dtype=np.float32)
    queries = np.zeros((2, 30), dtype=np.float32)
    queries[0, 9], queries[0, 4], queries[1, 6] = 1.0, 0.5, 1.0
    assert similarity_picks(queries, pools, train, 2).tolist() == [[9, 4], [6, 1]]
    picks = random_picks(samples[:2], pools, 3, seed=0)
    assert all(set(row) < set(pool) and len(set(row)) == 3 for row, pool in zip(picks.tolist(), pools.tolist(), strict=True))
    assert picks[:, :2].tolist() == random_picks(samples[:2], pools, 3, seed=0)[:, :2].tolist()


def oracle(prompts):
    """A VLM that answers right when item 1 is among the demonstrations."""
    return [f" {p.query.answer}, and more" if any(d.index == 1 for d in p.demonstrations) else " wrong" for p in prompts]


def test_records_and_nested_accuracies(samples):
    questions = samples[10:14]
    picks = {ZERO_SHOT: np.zeros((4, 0), int), "a": np.array([[1, 2], [2, 1], [3, 4], [2, 1]])}
    records = evaluate(questions, "report", picks, (1, 2), samples, oracle)
    assert len(records) == 4 + 8
    a = records[records.policy == "a"]
    assert a[a.shots == 2].picks.tolist() == [[101, 102], [102, 101], [103, 104], [102, 101]]
    assert a[a.shots == 1].accuracy.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert a[a.shots == 1].answer.tolist()[0] == "answer 10"
    table = accuracy_table(records, (2, 4)).set_index(["policy", "size", "shots"]).accuracy.to_dict()
    assert table == {
        (ZERO_SHOT, 2, 0): 0.0,
        (ZERO_SHOT, 4, 0): 0.0,
        ("a", 2, 1): 0.5,
        ("a", 2, 2): 1.0,
        ("a", 4, 1): 0.25,
        ("a", 4, 2): 0.75,
    }


def test_epoch_is_chosen_on_selection_questions_and_the_earliest_among_equals():
    rows = [
        ("epoch 1", "selection", 0.5),
        ("epoch 2", "selection", 0.7),
        ("epoch 3", "selection", 0.7),
        ("epoch 1", "report", 1.0),
    ]
    records = pd.DataFrame(rows, columns=["policy", "part", "accuracy"])
    best, means = choose_epoch(records, {1: "epoch 1", 2: "epoch 2", 3: "epoch 3"})
    assert best == 2
    assert means == {1: 0.5, 2: 0.7, 3: 0.7}
