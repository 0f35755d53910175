"""The page of answers: which questions come first, and what it says of each."""

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.answers_page import answers_page, most_disputed
from lever_mlflow.evaluation.records import COLUMNS, EvaluationRecords


@pytest.fixture
def items(tmp_path):
    """items(first id, texts) are samples with a grey image of their own each."""

    def make(first, texts):
        samples = []
        for index, text in enumerate(texts):
            path = tmp_path / f"{first + index}.png"
            Image.new("RGB", (300, 150), (first % 200, 50, 50)).save(path)
            samples.append(Sample(index, first + index, first + index, text, path, ("red",) * 7 + ("blue",) * 3))
        return samples

    return make


def records(rows):
    """Records of (policy, question id, shots, picks, answer, accuracy)."""
    frame = pd.DataFrame(rows, columns=["policy", "question_id", "shots", "picks", "answer", "accuracy"])
    defaults = {"draw": 0, "part": "report", "position": range(len(frame)), "prompt": "p"}
    return EvaluationRecords(frame.assign(**defaults)[list(COLUMNS)])


def test_the_page(items):
    queries, train = items(1, ["what colour is <b>?", "what now?"]), items(100, ["first?", "second?"])
    table = records(
        [
            ("zero-shot", 1, 0, [], "red", 1.0),
            ("zero-shot", 2, 0, [], "", 0.0),
            ("epoch 3", 1, 1, [101], "red", 1.0),
            ("epoch 3", 2, 1, [100], "blue", 0.9),
            ("epoch 3", 1, 2, [101, 100], "ignored", 0.0),  # of another number of shots
        ]
    )
    page = answers_page("Answers", table, {"zero-shot": "none", "epoch 3": "beta 0.12"}, queries, train, 1)
    text = " ".join(re.sub(r"<style>.*</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())
    assert "2 of 2 questions, with 1 demonstration in each prompt" in text
    # the second question first: its accuracies differ by 0.9, those of the first by 0
    assert text.index("what now?") < text.index("what colour is &lt;b&gt;?")
    assert "what now? right answers: red (7), blue (3) none (no answer) 0 % no demonstrations beta 0.12 blue 90 %" in text
    assert "ignored" not in text
    assert page.count("data:image/jpeg;base64,") == 4  # each image once
    assert "http" not in page


def test_a_question_that_a_policy_did_not_answer_is_left_out(items):
    queries = items(1, ["one?", "two?"])
    table = records([("a", 1, 0, [], "red", 1.0), ("a", 2, 0, [], "red", 1.0), ("b", 2, 0, [], "blue", 0.3)])
    page = answers_page("Answers", table, {"a": "a", "b": "b"}, queries, [], 1)
    assert "two?" in page
    assert "one?" not in page


def test_equal_differences_stay_in_order():
    queries = [Sample(i, i, i, "?", Path("x"), ("a",) * 10) for i in range(4)]
    rows = {
        "a": pd.DataFrame({"accuracy": [0.0, 1.0, 0.3, 0.0], "shots": 2}, index=range(4)),
        "b": pd.DataFrame({"accuracy": [0.0, 0.0, 0.9, 0.6], "shots": 2}, index=range(4)),
    }
    assert [query.question_id for query in most_disputed(queries, rows)] == [1, 2, 3, 0]


def test_questions_on_which_demonstrations_matter_come_before_those_that_the_vlm_cannot_answer_without_any():
    queries = [Sample(i, i, i, "?", Path("x"), ("a",) * 10) for i in range(3)]
    rows = {
        "none": pd.DataFrame({"accuracy": [1.0, 0.0, 0.0], "shots": 0}, index=range(3)),
        "nearest": pd.DataFrame({"accuracy": [1.0, 1.0, 0.0], "shots": 2}, index=range(3)),
        "selector": pd.DataFrame({"accuracy": [1.0, 1.0, 0.3], "shots": 2}, index=range(3)),
    }
    assert [query.question_id for query in most_disputed(queries, rows)] == [2, 1, 0]
