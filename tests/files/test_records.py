"""Typed records read from JSON files: what does not fit is one line that names the first field."""

import pytest
from pydantic import BaseModel

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.records import read_record


class Inner(BaseModel):
    count: int


class Outer(BaseModel):
    inner: Inner
    shares: tuple[float, ...] = ()


def test_a_record_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"inner": {"count": 3}, "shares": [0.5]}', encoding="utf-8")
    assert read_record(Outer, tmp_path / "a.json", "a record", "make") == Outer(inner=Inner(count=3), shares=(0.5,))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{}", "inner: Field required"),
        (b'{"inner": {"count": "x"}}', "inner.count: Input should be a valid integer, unable to parse string as an integer"),
        (b'{"inner": {"count": 3}, "shares": [1, null]}', "shares.1: Input should be a valid number"),
    ],
)
def test_what_does_not_fit_is_named(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_record(Outer, path, "a record", "make")
    assert str(error.value) == f"{path}: not a record of this version ({reason}); run the make step again with rerun=true"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON at line 1, column 1 .*; it may be truncated"),
        (b'{"inner": {"count": 3}, "sha', "not valid JSON at line 1, column 25 .*; it may be truncated"),
        (b'{"inner": {"count": 3}, "shares": [NaN]}', "holds NaN, which is not a JSON number"),
        (b'{"inner": {"count": 3}, "shares": [1e999]}', "holds 1e999, which is too large for a number"),
        (b'{"inner": {"count": 3, "count": 4}}', "key 'count' occurs twice in one object"),
        (b"\xff", r"cannot be read, as it is not UTF-8 \(byte 0xff in line 1\)"),
    ],
)
def test_a_file_that_is_damaged_is_named(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.json: {reason}"):
        read_record(Outer, path, "a record", "make")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: no such file.*; run the make step again"):
        read_record(Outer, tmp_path / "a.json", "a record", "make")
