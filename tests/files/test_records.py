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
        (b"", ": Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"inner": {"count": 3}, "sha', ": Invalid JSON: EOF while parsing a string at line 1 column 28"),
        (b"{}", "inner: Field required"),
        (b'{"inner": {"count": "x"}}', "inner.count: Input should be a valid integer, unable to parse string as an integer"),
        (b'{"inner": {"count": 3}, "shares": [1, null]}', "shares.1: Input should be a valid number"),
        (b"\xff", "is not UTF-8 (byte 0xff in line 1), but text in another encoding, such as Latin-1; save it as UTF-8"),
    ],
)
def test_what_does_not_fit_is_named(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_record(Outer, path, "a record", "make")
    assert str(error.value) == f"{path}: not a record of this version ({reason}); run the make step again with rerun=true"


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"not a record of this version \(.*No such file or directory.*run the make step"):
        read_record(Outer, tmp_path / "a.json", "a record", "make")
