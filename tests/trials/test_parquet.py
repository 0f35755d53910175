"""RL data as Parquet: the same content, digest, groups, verdict and weights as JSON, and files that are refused."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.gate import check
from lever_mlflow.gate.result import metric_name
from lever_mlflow.trials import parquet, parquet_columns, reading
from lever_mlflow.trials.converting import convert
from lever_mlflow.trials.reading import load_rl_data

POOL = [50, 60, 70, 80]
SCORES = {"vqa_correct": 1, "vqa_acc_score": 0.6}


def trial(pointer, **fields):
    named = [POOL[position] for position in pointer]
    return {"pointer": pointer, "pointer_global": named, "gen_method": "beam", **SCORES, **fields}


def query(*trials, **fields):
    return {"candidate_pool_ids": POOL, **fields, "pointer_candidates": list(trials)}


PLAIN = {
    "_meta": {"seed": 3, "vlm": {"beams": 3}},
    "7": query(
        trial([2, 0], beam_rank=0, beam_score=-0.0, vqa_raw_generation='é "x"\n', vqa_gt_prob=None, eval_failed=False),
        trial([1, 3], logprob_score=-1.5e-17, temperature=1.0, vqa_gt_prob=0.25, vqa_rel_score=-0.25, vqa_eval_mode="vqaEval"),
        query={"query_id": 7, "question_id": 70, "image_id": 9, "question": "Où ?", "gt_answers_raw": ["a", "b"], "extra": [1]},
        candidate_question_ids=[500, 600, 700, 800],
    ),
    "4": query(trial([0, 1], mined=True, shows_right_answer=False), trial([3, 2, 1]), query={}),
    "12": query(
        trial([0, 2], vqa_eval_mode="error", vqa_correct=None, vqa_acc_score=None),
        trial([0, 3], eval_failed=True),
        trial([1, 2], vqa_eval_mode="fallback"),
        trial([2, 3]),
    ),
}
ODD = {
    "no trials": {"1": query(), "2": query(trial([0]))},
    "an empty pool": {"1": {"candidate_pool_ids": [], "pointer_candidates": []}, "2": query(trial([0]))},
    "whole numbers as floats": {"1": query(trial([0], vqa_correct=1.0, vqa_acc_score=1), query={"image_id": 5})},
    "large numbers": {"1": query(trial([0], beam_rank=2**80, beam_score=10**400))},
    "truth values": {"1": query(trial([0], beam_rank=True, temperature=False, vqa_pred_answer=False))},
    "other types": {"1": query(trial([0], beam_rank="x", temperature=None, vqa_pred_answer=[None]), note={"a": []})},
    "outside the pool": {"1": query({**trial([0]), "pointer": [4], "pointer_global": [999]})},
    "named twice": {"1": query({**trial([1]), "pointer": [60], "pointer_pos": [1]})},
    "no generator": {"1": query({"pointer": [0], "pointer_global": [50], **SCORES})},
    "indices": {"1": {"pointer_candidates": [{"pointer": [90, 20], **SCORES}, {"pointer": [20, 55], **SCORES}]}},
    "positions": {"1": {"pointer_candidates": [{"pointer_pos": [90, 20], "gen_method": "beam", **SCORES}]}},
    "with and without a pool": {"1": query(trial([0])), "2": {"pointer_candidates": [{"pointer": [9], **SCORES}]}},
    "names of other levels": {"1": query(trial([0], query=3, train_index=4), query={"pointer_candidates": 5, "": 6})},
}


@pytest.fixture
def both(tmp_path):
    """Returns a function that writes content as JSON and as Parquet."""

    def write(content):
        paths = tmp_path / "rl.json", tmp_path / "rl.parquet"
        paths[0].write_text(json.dumps(content))
        convert(*paths)
        return paths

    return write


@pytest.mark.parametrize("content", [PLAIN, *ODD.values()], ids=["plain", *ODD])
def test_both_forms_have_the_same_groups_digest_and_content(both, tmp_path, content):
    paths = both(content)
    for options in ({}, {"use_fallback": True}, {"keep_records": True, "keep_dropped": True}):
        of_json, of_parquet = (load_rl_data(path, **options) for path in paths)
        assert replace(of_parquet, source=of_json.source) == of_json
    assert [t.record for g in of_parquet.groups for t in g.trials] == [t.record for g in of_json.groups for t in g.trials]
    convert(paths[1], tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert {"_meta": {}, **json.loads(paths[0].read_text())} == again
    assert [*again] == ["_meta", *(key for key in content if key != "_meta")]


def test_ordinary_files_are_read_column_by_column_and_all_others_row_by_row(both, monkeypatch):
    _, path = both(PLAIN)
    data = load_rl_data(path)
    assert all(parquet_columns.ordinary_table(table, False) for _, table in parquet.tables(path))
    monkeypatch.setattr(reading, "ordinary_table", lambda *_: None)
    assert load_rl_data(path) == data
    (table,) = (table for _, table in parquet.tables(both(ODD["named twice"])[1]))
    assert parquet_columns.ordinary_table(table, False) is None


def test_each_column_holds_its_field(both):
    table = pq.read_table(both(PLAIN)[1])
    assert table.schema.equals(parquet.SCHEMA)
    rows = table.to_pylist()
    assert [row["train_index"] for row in rows] == [7, 7, 4, 4, 12, 12, 12, 12]
    first, second = ({name: value for name, value in row.items() if value is not None} for row in rows[:2])
    assert first["query_as_written"] == '{"extra":[1]}'
    assert first["trial_as_written"] == '{"vqa_gt_prob":null}'
    assert "candidate_pool_ids" not in second  # only in the first row of a query
    assert (second["vqa_gt_prob"], second["vqa_correct"], second["pointer_global"]) == (0.25, 1, [60, 80])


def test_row_groups_end_between_queries_and_tables_too(both, monkeypatch):
    for name in ("_GROUP_ROWS", "_TABLE_ROWS"):
        monkeypatch.setattr(parquet, name, 3)
    of_json, path = both(PLAIN)
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4]
    assert [(row, table["train_index"].to_pylist()) for row, table in parquet.tables(path)] == [
        (0, [7, 7]),
        (2, [4, 4]),
        (4, [12] * 4),
    ]
    assert load_rl_data(path) == replace(load_rl_data(of_json), source=str(path))


def test_the_gate_says_the_same_of_both_forms(good_rl_data, tmp_path):
    path = tmp_path / "rl.parquet"
    convert(good_rl_data, path)
    of_json, of_parquet = (check(load_rl_data(file, source="x")) for file in (good_rl_data, path))
    assert of_parquet == of_json
    assert of_json.verdict == "pass"
    assert of_json.metrics[metric_name("n_trials")] == 540


def change(path, **columns):
    """Replaces columns of a file; None takes one out."""
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table if values is None else table.append_column(name, pa.array(values))
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"train_index": None}, "has no column train_index, but query_id, question_id, .* these are no RL data"),
        ({"reward": [1.0] * 3}, "column 'reward' is no column of RL data; remove it, or put its values into trial_as_written"),
        ({"vqa_correct": ["1"] * 3}, "column vqa_correct is of type string, expected int64"),
        ({"vqa_correct": [0.5, 1, 1]}, "column vqa_correct: .*0.5.*; expected int64"),
        ({"pointer": [0, 1, 2]}, "column pointer is of type int64, expected list<"),
        ({"train_index": [1, None, 1]}, "row 1: column train_index is null, expected a train index; remove the row"),
        ({"train_index": [1, 2, 1]}, "query 1 has trials in rows that do not stand together .*; sort the rows by train_index"),
        ({"train_index": [-1] * 3}, "rows from 0 on: query '-1': the key is not a train index"),
        ({"vqa_acc_score": [1.0, float("nan"), 1.0]}, "row 1: vqa_acc_score is nan, expected a finite number, or null"),
        ({"beam_score": [1.0, 1.0, float("inf")]}, "row 2: beam_score is inf, expected a finite number"),
        ({"vqa_acc_score": [1.0, None, 1.0]}, "rows from 0 on: query '1': trial 1: vqa_acc_score is null, expected a finite"),
        ({"pointer_global": [[50], [60], [60]]}, r"trial 2: pointer_global \[60\] does not match pointer \[2\] in the pool"),
        ({"vqa_eval_mode": ["vqaEval", "exact", None]}, 'trial 1: vqa_eval_mode is "exact", expected one of vqaEval'),
        ({"candidate_pool_ids": [POOL, None, POOL[:3]]}, "row 2: query 1 has other fields than in row 0: .*; leave them null"),
        ({"trial_as_written": [None, "{", None]}, "row 1: column trial_as_written: not valid JSON at line 1, column 2"),
        ({"trial_as_written": [None, '{"a":1,"a":1}', None]}, "row 1: column trial_as_written: key 'a' occurs twice"),
        ({"trial_as_written": [None, '{"x":NaN}', None]}, "row 1: column trial_as_written: holds NaN"),
        ({"trial_as_written": [None, '{"x":1e999}', None]}, "row 1: column trial_as_written: holds 1e999, which is too large"),
        ({"trial_as_written": [None, None, '{"vqa_correct":1}']}, "row 2: trial_as_written holds 'vqa_correct', which has its"),
        ({"pointer": [[0], [None], [2]]}, r"trial 1: pointer is \[null\], expected a list of whole numbers"),
    ],
)
def test_files_that_are_no_rl_data_are_refused_by_place(both, columns, message):
    _, path = both({"1": query(trial([0]), trial([1]), trial([2]))})
    change(path, **columns)
    with pytest.raises(DataError, match=message) as error:
        load_rl_data(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_other_writers_types_are_taken_where_they_hold_the_same(both):
    of_json, path = both({"1": query(trial([0]), trial([1]), trial([2]))})
    change(
        path, candidate_pool_ids=[POOL] * 3, vqa_correct=[1.0] * 3, beam_rank=None, train_index=pa.array([1] * 3, pa.int16())
    )
    assert load_rl_data(path).digest == load_rl_data(of_json).digest
    change(path, gen_method=pa.array(["beam"] * 3, pa.large_string()).dictionary_encode())
    assert load_rl_data(path).digest == load_rl_data(of_json).digest


def test_a_changed_value_changes_the_digest(both):
    _, path = both({"1": query(trial([0]), trial([1]), trial([2]))})
    before = load_rl_data(path).digest
    change(path, temperature=[1.0, 1.0, 0.5])
    assert load_rl_data(path).digest != before


def test_damaged_files_are_refused_in_one_line(both, tmp_path):
    _, path = both(PLAIN)
    content = path.read_bytes()
    for damaged in (
        content[:-9],
        content[: len(content) // 2],
        b"PAR1",
        b"",
        b"PAR1" + bytes(200),
        content[:400] + b"\xff" * 40 + content[440:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"rl\.parquet: damaged, or not Parquet \(.*; copy it again, or convert") as error:
            load_rl_data(path)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"none\.parquet: no such file; give rl_data=FILE or run the rollout step"):
        load_rl_data(tmp_path / "none.parquet")
    (tmp_path / "named.json").write_bytes(content)  # told by its content, whatever its name is
    assert load_rl_data(tmp_path / "named.json").groups[0].query_id == 4


def test_no_damaged_byte_goes_unnoticed(both):
    _, path = both(PLAIN)
    content, digest = path.read_bytes(), load_rl_data(path).digest
    n_refused = 0
    for place in range(0, len(content), 41):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert load_rl_data(path).digest == digest  # a byte of statistics, or of the names of writers
        except DataError:
            n_refused += 1
    assert n_refused > 100


def test_what_cannot_be_converted_is_refused(both, tmp_path):
    of_json, path = both(PLAIN)
    with pytest.raises(ParameterError, match=r"rl\.csv: ends in \.csv; give a name that ends in \.json or \.parquet"):
        convert(path, tmp_path / "rl.csv")
    with pytest.raises(ParameterError, match="is the file that is to be converted; give another name"):
        convert(of_json, of_json)
    of_json.write_text(json.dumps(PLAIN).replace("-0.0", "1e999"))
    with pytest.raises(DataError, match=r"rl\.json: holds 1e999, which is too large for a number"):
        convert(of_json, tmp_path / "new.parquet")
    of_json.write_text("{")
    with pytest.raises(DataError, match="it may be truncated"):
        convert(of_json, tmp_path / "new.parquet")
    assert not (tmp_path / "new.parquet").exists()
