import numpy as np
import pandas as pd
import pytest

from lever_mlflow.evaluation.answering import best_single, evaluate
from lever_mlflow.evaluation.policies import ZERO_SHOT, first_logits, greedy_picks, random_picks, similarity_picks
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.evaluation.records import accuracy_table, choose_epoch
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings


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
    assert picks.tolist() == random_picks(samples[:2], pools, 3, seed=0).tolist()
    assert random_picks(samples[1:2], pools[1:], 3, seed=0).tolist() == picks[1:].tolist()
    many = np.stack([random_picks(samples[:2], pools, 3, seed=0, draw=draw) for draw in range(2000)])
    assert (many[0] == picks).all()
    for candidate in pools[0]:  # uniform: each of 4 candidates is the first pick in a quarter of the draws
        assert np.mean(many[:, 0, 0] == candidate) == pytest.approx(0.25, abs=0.04)


def test_greedy_picks_follow_the_first_logits():
    rng = np.random.default_rng(0)
    train, queries = rng.standard_normal((40, 16)).astype(np.float32), rng.standard_normal((3, 16)).astype(np.float32)
    pools = np.stack([rng.choice(40, 9, replace=False) for _ in range(3)])
    selector = PointerSelector(feature_dim=16).eval()
    logits = first_logits(selector, queries, pools, train)
    by_logits = np.take_along_axis(pools, np.argsort(-logits, axis=1)[:, :4], axis=1)
    assert greedy_picks(selector, queries, pools, train, 4).tolist() == by_logits.tolist()


def oracle(prompts):
    """A VLM that answers right when item 1 is among the demonstrations."""
    return [f" {p.query.answer}, and more" if any(d.index == 1 for d in p.demonstrations) else " wrong" for p in prompts]


def prompt_name(prompt):
    return f"{[d.index for d in prompt.demonstrations]} for {prompt.query.index}"


def test_records_and_nested_accuracies(samples):
    questions = samples[10:14]
    picks = {ZERO_SHOT: np.zeros((4, 0), int), "a": np.array([[1, 2], [2, 1], [3, 4], [2, 1]])}
    picks["lots"] = np.array([[[1, 2], [1, 2], [3, 4], [2, 1]], [[2, 3], [2, 1], [3, 4], [4, 1]]])
    records = evaluate(questions, "report", picks, (1, 2), samples, oracle, prompt_name)
    assert len(records) == 4 + 8 + 16
    a = records[records.policy == "a"]
    assert a[a.shots == 2].picks.tolist() == [[101, 102], [102, 101], [103, 104], [102, 101]]
    assert a[a.shots == 1].accuracy.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert a[a.shots == 1].answer.tolist()[0] == "answer 10"
    assert a[a.shots == 2].prompt.tolist()[1] == "[2, 1] for 11"
    assert records[records.policy == "lots"].draw.tolist() == [0] * 8 + [1] * 8
    table = accuracy_table(records, (2, 4)).set_index(["policy", "size", "shots"])
    assert table.accuracy.to_dict() == {
        (ZERO_SHOT, 2, 0): 0.0,
        (ZERO_SHOT, 4, 0): 0.0,
        ("a", 2, 1): 0.5,
        ("a", 2, 2): 1.0,
        ("a", 4, 1): 0.25,
        ("a", 4, 2): 0.75,
        ("lots", 2, 1): 0.5,  # 1 and 0
        ("lots", 2, 2): 0.75,  # 1 and 0.5
        ("lots", 4, 1): 0.25,  # 0.5 and 0
        ("lots", 4, 2): 0.625,  # 0.75 and 0.5
    }
    spread = {name: value for name, value in table.spread.to_dict().items() if value}
    assert spread == {
        ("lots", 2, 1): pytest.approx(0.5**0.5),
        ("lots", 2, 2): pytest.approx(0.125**0.5),
        ("lots", 4, 1): pytest.approx(0.125**0.5),
        ("lots", 4, 2): pytest.approx(0.03125**0.5),
    }


def test_best_single_demonstration(samples):
    pools = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 2]])
    assert best_single(samples[10:13], pools, samples, oracle) == {
        "questions": 3,
        "oracle": pytest.approx(2 / 3),
        "random": pytest.approx(2 / 12),
        "winnable": pytest.approx(2 / 3),
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
