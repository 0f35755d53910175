"""Reading JSON piece by piece gives what reading it at once gives, wherever a piece ends, and the same errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import iterate_list, iterate_object, read_object

REMEDIES = {"missing": "look for it", "damaged": "copy it again"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return Path(tmp_path_factory.mktemp("json"), "x.json")


def read_in_pieces(path, text, size):
    path.write_text(text, encoding="utf-8", newline="")
    return read_object(path, size, **REMEDIES)


@given(st.dictionaries(TEXT, VALUES, max_size=5), st.integers(1, 40), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_any_object_in_pieces_of_any_size(path, content, size, indent, ascii_only):
    assert read_in_pieces(path, json.dumps(content, indent=indent, ensure_ascii=ascii_only), size) == content


@pytest.mark.parametrize("number", ["10.5", "1e5", "-0.25E-3", "12345678901234567890", "1.0"])
def test_a_number_goes_on_in_the_next_piece(path, number):
    for size in range(1, 30):
        assert read_in_pieces(path, f'{{"a": {number}, "b": {number}}}', size) == {
            "a": json.loads(number),
            "b": json.loads(number),
        }


@pytest.mark.parametrize("end", ["1", "1.", "1.5", "1.5e", "1.5E-", "1e+", "-", "1.5e3"])
@pytest.mark.parametrize("opened", ['{"a": ', '{"a": [[', '{"a": {"b": '])
def test_a_file_that_ends_within_a_number_may_be_truncated(path, opened, end):
    for size in (1, 5, 1 << 20):
        with pytest.raises(DataError, match="it may be truncated: copy it again"):
            read_in_pieces(path, opened + end, size)


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=3), st.integers(1, 40), st.data())
def test_any_truncation_is_an_error_that_names_a_place(path, content, size, data):
    text = json.dumps(content)
    cut = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(
        DataError, match=r"x.json: not valid JSON at line 1, column \d+ \(.*\); it may be truncated: copy it again"
    ):
        read_in_pieces(path, text[:cut], size)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_the_place_of_an_error_is_that_of_reading_at_once(path, size):
    text = json.dumps({"first": list(range(20)), "second": {"third": "x" * 30}}, indent=2).replace('"third"', '"third" oops')
    with pytest.raises(json.JSONDecodeError) as at_once:
        json.loads(text)
    with pytest.raises(DataError, match=f"line {at_once.value.lineno}, column {at_once.value.colno} "):
        read_in_pieces(path, text, size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("12", "holds a JSON int, expected an object"),
        ('{"a": 1} {', r"line 1, column 10 \(Extra data\)"),
        ('{"a": 1,}', r"line 1, column 9 \(Expecting property name enclosed in double quotes\)"),
        ('{"a" 1}', r"line 1, column 6 \(Expecting ':' delimiter\)"),
        ('{"a": 1 "b": 2}', r"line 1, column 9 \(Expecting ',' delimiter\)"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' occurs twice in one object"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice in one object"),
        ('{"a": [NaN]}', r"holds NaN, which is not a JSON number \(line 1, column 8\);"),
        ('{"a": "BaNaNa",\n "b": [1, {"c": -1e999}]}', r"holds -1e999, which is too large for a number \(line 2, column 17\);"),
        ('{"a": "\\ud800"}', "cannot be read: .*surrogates not allowed"),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_is_refused(path, text, message, size):
    with pytest.raises(DataError, match=message):
        read_in_pieces(path, text, size)


def test_values_come_one_by_one(path):
    path.write_text('{"a": 1, "b": oops}')
    items = iterate_object(path, **REMEDIES)
    assert next(items) == ("a", 1)
    with pytest.raises(DataError, match="line 1, column 15"):
        next(items)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_entries_of_a_list_come_one_by_one(tmp_path, chunk):
    path = tmp_path / "file.json"
    path.write_text('{"info": {"list": [0]}, "list": [ {"a": 1.5}, [2, 3] ,"x"], "empty": [], "other": 7}')
    assert list(iterate_list(path, "list", chunk, **REMEDIES)) == [{"a": 1.5}, [2, 3], "x"]
    for key in ("empty", "other", "absent"):
        assert list(iterate_list(path, key, chunk, **REMEDIES)) == []


def test_entries_before_the_damage_are_there(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"list": [1, 22, 3')
    entries = iterate_list(path, "list", 4, **REMEDIES)
    assert [next(entries), next(entries)] == [1, 22]
    with pytest.raises(DataError, match=r"not valid JSON at line 1, column 19 .*; it may be truncated"):
        list(entries)


@pytest.mark.parametrize("text", ['{"list": [1,]}', '{"list": [1 2]}', '{"list": [1], "list": [2]}', '{"list": [1]} x'])
def test_a_damaged_list_is_an_error(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"file\.json: "):
        list(iterate_list(path, "list", **REMEDIES))
