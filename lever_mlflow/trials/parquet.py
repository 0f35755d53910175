"""Defines RL data as Parquet: one row per trial, with the content and digest of JSON. docs/rl-data.md describes the columns.

The fields of a query stand in the row of its first trial. A query without trials has one row without fields of a trial. A field
that has no column, or a value that its column does not hold as it is, stands in the JSON object of ``..._as_written``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lever_mlflow.exceptions import DataError, first_line
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.strict_json import parse_object
from lever_mlflow.trials.fields import shown

__all__ = [
    "ENTRY_FIELDS",
    "KEY",
    "QUERY_FIELDS",
    "SUFFIX",
    "TRIAL_FIELDS",
    "agreed",
    "entries",
    "is_parquet",
    "parquet_files",
    "read_meta",
    "row_groups",
    "tables",
    "write_entries",
    "write_tables",
]

SUFFIX, KEY = ".parquet", "train_index"
_TEXTS, _NUMBERS = pa.list_(pa.string()), pa.list_(pa.int64())
QUERY_FIELDS = {  # of the object "query"
    "query_id": pa.int64(),
    "question_id": pa.int64(),
    "image_id": pa.int64(),
    "question": pa.string(),
    "gt_answers_raw": _TEXTS,
    "gt_answers_norm": _TEXTS,
}
ENTRY_FIELDS = {"candidate_pool_ids": _NUMBERS, "candidate_question_ids": _NUMBERS}
TRIAL_FIELDS = {
    "pointer": _NUMBERS,
    "pointer_global": _NUMBERS,
    "pointer_pos": _NUMBERS,
    "gen_method": pa.string(),
    "beam_rank": pa.int64(),
    "beam_score": pa.float64(),
    "logprob_score": pa.float64(),
    "temperature": pa.float64(),
    "vqa_pred_answer": pa.string(),
    "vqa_raw_generation": pa.string(),
    "vqa_correct": pa.int64(),
    "vqa_acc_score": pa.float64(),
    "vqa_gt_prob": pa.float64(),
    "vqa_rel_score": pa.float64(),
    "vqa_eval_mode": pa.string(),
    "eval_failed": pa.bool_(),
}
_LEVELS = {"query": QUERY_FIELDS, "entry": ENTRY_FIELDS, "trial": TRIAL_FIELDS}
_META = b"lever_mlflow.rl_data"  # key in the file's metadata
_REMEDY = "copy it again, or convert the RL data again"
SCHEMA = pa.schema(
    {KEY: pa.int64()}
    | {name: kind for level, kinds in _LEVELS.items() for name, kind in {**kinds, f"{level}_as_written": pa.string()}.items()}
)
_GROUP_ROWS = 20_000  # trials of a row group, about 2 MB
_TABLE_ROWS = 5_000  # trials that are read at a time, which takes some 20 MB
_MAGIC = b"PAR1"


def is_parquet(path: Path) -> bool:
    """Returns whether a file begins as Parquet does, or where there is none to look at, whether its name ends like that.

    A folder stands for the Parquet files in it.
    """
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC or path.suffix == SUFFIX
    except OSError:
        return path.suffix == SUFFIX


def parquet_files(path: Path) -> list[Path]:
    """Returns the Parquet files of a folder in the order of their names, or the file itself.

    Raises:
        DataError: the folder holds none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix == SUFFIX)
    if not files:
        raise DataError(f"{path}: cannot be read: this folder holds no file whose name ends in {SUFFIX}; give a file")
    return files


def agreed(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the entries that all of these ``_meta`` have, with the same value."""
    first, *others = metas
    return {name: value for name, value in first.items() if all(name in meta and meta[name] == value for meta in others)}


def write_entries(path: Path, content: Iterable[tuple[str, Mapping[str, Any]]], meta: Mapping[str, Any]) -> None:
    """Writes RL data as Parquet; all rows of a query are in the same row group, and the file is there as a whole or not at all.

    Args:
        path: the file.
        content: train index and object of each query, as they stand in a JSON file.
        meta: the ``_meta`` of the data.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    write_tables(path, _row_groups(content), meta)


def write_tables(path: Path, groups: Iterable[pa.Table], meta: Mapping[str, Any]) -> None:
    """Writes tables of this module's schema as one row group each; the file is there as a whole or not at all."""
    schema = SCHEMA.with_metadata({_META: json.dumps(dict(meta), allow_nan=False).encode()})
    with whole_file(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in groups:
            writer.write_table(table.cast(schema))


def _row_groups(content: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[pa.Table]:
    """Yields the rows of the queries as tables; all rows of a query are in the same table."""
    rows: list[dict[str, Any]] = []
    for key, entry in content:
        rows += _rows(key, entry)
        if len(rows) >= _GROUP_ROWS:
            yield pa.Table.from_pylist(rows, SCHEMA)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, SCHEMA)


def _rows(key: str, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of a query."""
    around = {name: value for name, value in entry.items() if name not in ("query", "pointer_candidates")}
    rows = [_split("trial", record) for record in entry["pointer_candidates"]] or [{}]
    rows[0] |= _split("entry", around) if around else {}
    rows[0] |= _split("query", entry["query"]) if "query" in entry else {}
    return [{KEY: int(key), **row} for row in rows]


def _split(level: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields as values of columns; those that no column holds are put together as JSON."""
    kinds = _LEVELS[level]
    row = {name: value for name, value in fields.items() if name in kinds and _holds(kinds[name], value)}
    others = {name: value for name, value in fields.items() if name not in row}
    if others or not fields:
        row[f"{level}_as_written"] = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return row


def _holds(kind: pa.DataType, value: Any) -> bool:
    """Returns whether a column holds a value of a JSON file as it is."""
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(_holds(kind.value_type, element) for element in value)
    if pa.types.is_integer(kind):
        return type(value) is int and -(2**63) <= value < 2**63
    if pa.types.is_floating(kind) and type(value) is float:
        if value - value != 0:
            raise ValueError(f"{value} is not a JSON number")
        return True
    return type(value) is (bool if pa.types.is_boolean(kind) else str if pa.types.is_string(kind) else None)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a file for reading; errors of pyarrow in the block become a DataError of one line."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{path}: damaged, or not Parquet ({first_line(error)}); {_REMEDY}") from None


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the ``_meta`` of the data, empty where the file was not written by this package; errors as ``tables``."""
    with _opened(path) as file:
        text = (file.schema_arrow.metadata or {}).get(_META, b"{}")
        return parse_object(text.decode(), f"{path}: metadata {_META.decode()}", _REMEDY)


def tables(path: Path) -> Iterator[tuple[int, pa.Table]]:
    """Yields the rows of a file with the schema of this module, some thousand at a time, and the row number of their first.

    No table ends within a query.

    Raises:
        DataError: the file is damaged or not Parquet; or a column is missing, is of another type, or is none of RL data.
    """
    with _opened(path) as file:
        _check_columns(path, file.schema_arrow)
        rest, first = SCHEMA.empty_table(), 0
        for batch in file.iter_batches(_TABLE_ROWS, use_threads=False):
            table = pa.concat_tables([rest, _typed(path, pa.table(batch), first + rest.num_rows)]).combine_chunks()
            keys = table[KEY].to_numpy(zero_copy_only=False)
            whole = int((keys != keys[-1]).nonzero()[0][-1]) + 1 if len(keys) and (keys != keys[-1]).any() else 0
            if whole:
                yield first, table.slice(0, whole).combine_chunks()
                pa.default_memory_pool().release_unused()  # Arrow would keep what further tables may take
            rest, first = table.slice(whole), first + whole
        if rest.num_rows:
            yield first, rest.combine_chunks()
    pa.default_memory_pool().release_unused()  # Arrow would keep some 50 MB for further tables


def row_groups(path: Path) -> Iterator[pa.Table]:
    """Yields the row groups of a file with the schema of this module; errors as ``tables``."""
    with _opened(path) as file:
        _check_columns(path, file.schema_arrow)
        first = 0
        for i in range(file.num_row_groups):
            table = _typed(path, file.read_row_group(i, use_threads=False), first)
            first += table.num_rows
            yield table


def _check_columns(path: Path, schema: pa.Schema) -> None:
    for name in (KEY, "gen_method"):
        if name not in schema.names:
            raise DataError(
                f"{path}: has no column {name}, but {', '.join(schema.names)[:200]}; these are no RL data, give a file that "
                "rollout, merge or convert wrote"
            )
    for name in schema.names:
        if name not in SCHEMA.names or schema.names.count(name) > 1:
            reason = "there twice" if name in SCHEMA.names else "no column of RL data"
            raise DataError(f"{path}: column {name!r} is {reason}; remove it, or put its values into trial_as_written")
        kind, expected = schema.field(name).type, SCHEMA.field(name).type
        if not _fits(kind, expected):
            raise DataError(f"{path}: column {name} is of type {kind}, expected {expected}; convert the RL data again")


def _fits(kind: pa.DataType, expected: pa.DataType) -> bool:
    """Returns whether values of a type can be ones of the expected type."""
    types = pa.types
    if types.is_dictionary(kind):
        return _fits(kind.value_type, expected)
    if types.is_list(expected):
        listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        return types.is_null(kind) or (listed and _fits(kind.value_type, expected.value_type))
    if types.is_string(expected):
        return types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind)
    if types.is_boolean(expected):
        return types.is_null(kind) or types.is_boolean(kind)
    return types.is_null(kind) or types.is_integer(kind) or types.is_floating(kind)


def _typed(path: Path, table: pa.Table, first_row: int) -> pa.Table:
    """Returns a table with all columns in their types, null where the file lacks one; ``first_row`` is the row of its first."""
    columns = []
    for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True):
        if name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, kind))
            continue
        try:
            columns.append(table[name].cast(kind))
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: column {name}: {first_line(error)}; expected {kind}") from None
        if pa.types.is_floating(kind):
            _check_finite(path, name, columns[-1], first_row)
    return pa.table(columns, schema=SCHEMA)


def _check_finite(path: Path, name: str, column: pa.ChunkedArray, first_row: int) -> None:
    wrong = pc.fill_null(pc.invert(pc.is_finite(column)), False)
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise DataError(
            f"{path}: row {first_row + row}: {name} is {column[row].as_py()}, expected a finite number, or null where there is "
            "none; correct the value"
        )


def entries(path: Path, table: pa.Table, first_row: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields each query of a table: its row number in the file, its train index and its object as in a JSON file.

    Raises:
        DataError: a row has no train index, the fields of a query differ between its rows, or ``..._as_written`` is wrong.
    """
    start = first_row
    for key, group in groupby(table.to_pylist(), key=itemgetter(KEY)):
        rows = list(group)
        if key is None:
            raise DataError(f"{path}: row {start}: column {KEY} is null, expected a train index; remove the row")
        yield start, str(key), _entry(path, rows, start)
        start += len(rows)


def _entry(path: Path, rows: Sequence[Mapping[str, Any]], start: int) -> dict[str, Any]:
    """Returns the object of a query from its rows, of which the first has the given number."""
    heads = [{level: _fields(path, start + i, level, row) for level in ("entry", "query")} for i, row in enumerate(rows)]
    for i, head in enumerate(heads[1:], start=1):
        for level, fields in head.items():
            if fields is not None and fields != heads[0][level]:
                raise DataError(
                    f"{path}: row {start + i}: query {rows[0][KEY]} has other fields than in row {start}: "
                    f"{shown(fields)}; leave them null in all rows of a query but its first"
                )
    trials = [_fields(path, start + i, "trial", row) for i, row in enumerate(rows)]
    if len(trials) > 1 and None in trials:
        raise DataError(f"{path}: row {start + trials.index(None)}: has no fields of a trial; remove the row")
    query = {} if heads[0]["query"] is None else {"query": heads[0]["query"]}
    return {**(heads[0]["entry"] or {}), **query, "pointer_candidates": [trial for trial in trials if trial is not None]}


def _fields(path: Path, row_number: int, level: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the fields of a query or a trial in a row, or None where the row has none."""
    name = f"{level}_as_written"
    fields = {field: row[field] for field in _LEVELS[level] if row[field] is not None}
    if row[name] is None:
        return fields or None
    others = parse_object(row[name], f"{path}: row {row_number}: column {name}", _REMEDY)
    reserved = ("query", "pointer_candidates") if level == "entry" else ()
    for field in sorted(others.keys() & {*fields, *reserved}):
        raise DataError(f"{path}: row {row_number}: {name} holds {field!r}, which has its own column; keep one of the two")
    return {**fields, **others}
