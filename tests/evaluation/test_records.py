import numpy as np
import pandas as pd
import pytest

from lever_mlflow.evaluation.records import EvaluationRecords, best_epoch, images_of
from lever_mlflow.exceptions import DataError


def records_of(*rows):
    """Records from rows of (policy, draw, part, position, question_id, shots, accuracy); question 20 is about image 2."""
    columns = ["policy", "draw", "part", "position", "question_id", "shots", "accuracy"]
    frame = pd.DataFrame(rows, columns=columns)
    picks = [[7, 8][:shots] for shots in frame["shots"]]
    return EvaluationRecords(frame.assign(picks=picks, prompt="p", answer="a", image_id=frame["question_id"] // 10))


@pytest.fixture
def records():
    """Two questions in the order 20, 10: a policy at two shot counts, one that draws twice, and an epoch on both parts."""
    return records_of(
        ("a", 0, "report", 0, 20, 1, 1.0),
        ("a", 0, "report", 1, 10, 1, 0.0),
        ("a", 0, "report", 0, 20, 2, 0.5),
        ("a", 0, "report", 1, 10, 2, 1.0),
        ("random", 0, "report", 0, 20, 1, 1.0),
        ("random", 1, "report", 0, 20, 1, 0.0),
        ("random", 0, "report", 1, 10, 1, 0.25),
        ("random", 1, "report", 1, 10, 1, 0.75),
        ("zero-shot", 0, "report", 0, 20, 0, 0.125),
        ("zero-shot", 0, "report", 1, 10, 0, 0.375),
        ("epoch 1", 0, "report", 0, 20, 1, 1.0),
        ("epoch 1", 0, "selection", 0, 30, 1, 0.5),
        ("epoch 2", 0, "selection", 0, 30, 1, 0.75),
        ("epoch 3", 0, "selection", 0, 30, 1, 0.75),
    )


def test_accuracies_by_question_in_the_seeded_order(records):
    assert records.by_question("a", shots=2).to_dict() == {(20, 2): 0.5, (10, 1): 1.0}
    assert list(records.by_question("a").index) == [(20, 2), (10, 1)]
    assert images_of(records.by_question("a")).tolist() == [2, 1]
    assert records.by_question("a").to_dict() == {(20, 2): 0.75, (10, 1): 0.5}  # mean over shots
    assert records.by_question("random").to_dict() == {(20, 2): 0.5, (10, 1): 0.5}  # mean over draws
    assert records.by_question("a", size=1).to_dict() == {(20, 2): 0.75}
    assert records.by_question("zero-shot", shots=0).to_dict() == {(20, 2): 0.125, (10, 1): 0.375}


def test_what_is_not_whole_is_none(records):
    assert records.by_question("a", shots=3) is None
    assert records.by_question("a", size=3) is None
    assert records.by_question("epoch 1") is None  # answered one of two questions
    assert records.by_question("epoch 1", size=1).to_dict() == {(20, 2): 1.0}


def test_accuracies_by_question_and_shots(records):
    assert records.by_question_and_shots("a").to_dict() == {
        (10, 1, 1): 0.0,
        (10, 1, 2): 1.0,
        (20, 2, 1): 1.0,
        (20, 2, 2): 0.5,
    }
    assert records.by_question_and_shots("random").to_dict() == {(10, 1, 1): 0.5, (20, 2, 1): 0.5}


def test_records_without_images_count_each_question_as_one_about_an_image_of_its_own(records, tmp_path):
    path = tmp_path / "records.parquet"
    records.frame.drop(columns="image_id").to_parquet(path)
    earlier = EvaluationRecords.read(path)
    assert images_of(earlier.by_question("a")).tolist() == [20, 10]
    assert earlier.digest == records.digest
    records.write(path)
    assert images_of(EvaluationRecords.read(path).by_question("a")).tolist() == [2, 1]


def test_the_table_has_means_and_spreads_between_draws(records):
    cells = {(cell.policy, cell.size, cell.shots): (cell.accuracy, cell.spread) for cell in records.table((1, 2))}
    assert cells["a", 2, 1] == (0.5, 0.0)
    assert cells["random", 1, 1] == (0.5, pytest.approx(0.5**0.5))  # draws of 1 and 0
    assert cells["random", 2, 1] == (0.5, pytest.approx(0.125 * 2**0.5))  # draws of 0.625 and 0.375
    assert list(cells)[:2] == [("a", 1, 1), ("a", 1, 2)]  # in the order of the records


def test_policies_and_what_was_asked(records):
    assert records.policies == ["a", "random", "zero-shot", "epoch 1"]
    assert records.question_shots == {(20, 1), (10, 1), (20, 2), (10, 2)}


def test_the_epoch_is_chosen_on_selection_questions_and_the_earliest_among_equals(records):
    accuracy = records.selection_accuracy([1, 2, 3])
    assert accuracy == {1: 0.5, 2: 0.75, 3: 0.75}
    assert best_epoch(accuracy) == 2
    assert best_epoch({1: 0.1 + 0.2, 2: 0.3}) == 1  # equal but for rounding


def test_records_come_back_from_their_file(records, tmp_path):
    records.write(tmp_path / "records.parquet")
    again = EvaluationRecords.read(tmp_path / "records.parquet")
    assert again.digest == records.digest
    assert again.table((1, 2)) == records.table((1, 2))
    assert [list(picks) for picks in again.picks_and_answers("a")["picks"]] == [[7], [7], [7, 8], [7, 8]]


def test_the_digest_covers_every_column(records):
    changes = {"accuracy": 0.999, "answer": "b", "picks": [1], "position": 5, "shots": 4, "prompt": "q", "draw": 9}
    digests = {records.digest}
    for column, value in changes.items():
        frame = records.frame.copy()
        frame[column] = [value if i == 0 else item for i, item in enumerate(frame[column])]
        digests.add(EvaluationRecords(frame).digest)
    assert len(digests) == 1 + len(changes)


def test_joined_records_keep_their_order(records):
    joined = EvaluationRecords.joined([records, records_of(("b", 0, "report", 0, 20, 1, 0.5))])
    assert joined.policies == ["a", "random", "zero-shot", "epoch 1", "b"]
    assert np.array_equal(joined.frame.index, np.arange(15))


@pytest.mark.parametrize("content", [b"", b"no parquet", None])
def test_what_holds_no_records_is_one_line(tmp_path, content):
    path = tmp_path / "records.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"records.parquet: not the records of an evaluation .*run the evaluate step again with rerun=true"
    ):
        EvaluationRecords.read(path)


def test_a_file_of_other_columns_is_refused(tmp_path):
    pd.DataFrame({"policy": ["a"]}).to_parquet(tmp_path / "records.parquet")
    with pytest.raises(DataError, match="not the records of an evaluation"):
        EvaluationRecords.read(tmp_path / "records.parquet")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("accuracy", float("nan"), "column accuracy has empty cells|an accuracy is nan"),
        ("accuracy", 2.0, "an accuracy is 2, expected 0 to 1"),
        ("shots", "x", "column shots is of type"),
        ("answer", 1, "column answer is of type int64"),
        ("policy", None, "column policy"),
    ],
)
def test_a_table_of_other_values_is_no_record(records, tmp_path, column, value, message):
    records.frame.assign(**{column: value}).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match=message):
        EvaluationRecords.read(tmp_path / "r.parquet")


def test_a_few_bytes_do_not_become_any_number_of_rows(records, tmp_path, monkeypatch):
    monkeypatch.setattr("lever_mlflow.evaluation.records._MOST_ROWS", 10)
    records.write(tmp_path / "r.parquet")
    with pytest.raises(DataError, match="14 rows, at most 10 are taken"):
        EvaluationRecords.read(tmp_path / "r.parquet")
