import numpy as np
import pytest

from lever_mlflow.evaluation.answering import Answering
from lever_mlflow.evaluation.policies import ZERO_SHOT


def oracle(prompts):
    """A VLM that answers right when item 1 is among the demonstrations."""
    return [f" {p.query.answer}, and more" if any(d.index == 1 for d in p.demonstrations) else " wrong" for p in prompts]


def prompt_name(prompt):
    return f"{[d.index for d in prompt.demonstrations]} for {prompt.query.index}"


def test_records_and_nested_accuracies(samples):
    questions = samples[10:14]
    picks = {ZERO_SHOT: np.zeros((4, 0), int), "a": np.array([[1, 2], [2, 1], [3, 4], [2, 1]])}
    picks["lots"] = np.array([[[1, 2], [1, 2], [3, 4], [2, 1]], [[2, 3], [2, 1], [3, 4], [4, 1]]])
    evaluated = Answering(samples, oracle, prompt_name).records(questions, "report", picks, (1, 2))
    records = evaluated.frame
    assert len(records) == 4 + 8 + 16
    a = records[records.policy == "a"]
    assert a[a.shots == 2].picks.tolist() == [[101, 102], [102, 101], [103, 104], [102, 101]]
    assert a[a.shots == 1].accuracy.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert a[a.shots == 1].image_id.tolist() == [5, 5, 6, 6]
    assert a[a.shots == 1].answer.tolist()[0] == "answer 10"
    assert a[a.shots == 2].prompt.tolist()[1] == "[2, 1] for 11"
    assert records[records.policy == "lots"].draw.tolist() == [0] * 8 + [1] * 8
    table = {(cell.policy, cell.size, cell.shots): cell for cell in evaluated.table((2, 4))}
    assert {place: cell.accuracy for place, cell in table.items()} == {
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
    spread = {place: cell.spread for place, cell in table.items() if cell.spread}
    assert spread == {
        ("lots", 2, 1): pytest.approx(0.5**0.5),
        ("lots", 2, 2): pytest.approx(0.125**0.5),
        ("lots", 4, 1): pytest.approx(0.125**0.5),
        ("lots", 4, 2): pytest.approx(0.03125**0.5),
    }


def test_best_single_demonstration(samples):
    pools = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 2]])
    best = Answering(samples, oracle, prompt_name).best_single(samples[10:13], pools)
    assert best.model_dump() == {
        "questions": 3,
        "oracle": pytest.approx(2 / 3),
        "random": pytest.approx(2 / 12),
        "winnable": pytest.approx(2 / 3),
    }


def test_with_similar_last_the_first_pick_stands_next_to_the_question(samples):
    picks = {"a": np.array([[1, 2, 3], [4, 5, 6]]), "lots": np.array([[[1, 2, 3], [4, 5, 6]]])}
    answering = Answering(samples, oracle, prompt_name, "similar-last")
    records = answering.records(samples[10:12], "report", picks, (1, 2, 3)).frame
    for policy in picks:
        of_policy = records[records.policy == policy]
        assert of_policy.prompt.tolist() == [
            "[1] for 10", "[4] for 11", "[2, 1] for 10", "[5, 4] for 11", "[3, 2, 1] for 10", "[6, 5, 4] for 11",
        ]  # fmt: skip
        assert of_policy.picks.tolist()[2:4] == [[102, 101], [105, 104]]
