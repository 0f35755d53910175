"""Keeps the gate's tables where an engine of Great Expectations checks them: in memory for pandas, or in a database for SQL."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from lever_mlflow.settings import GateEngine

__all__ = ["TableStore", "opened_store"]

_SQL_TYPES = {"int64": "INTEGER", "float64": "REAL", "object": "TEXT", "bool": "BOOLEAN"}  # by type of a pandas column


class TableStore(Protocol):
    """Takes tables in parts, and has Great Expectations look at the whole.

    Attributes:
        types: the name that the engine has for a type of the suites, where it is another one.
    """

    types: Mapping[str, str]

    def add(self, name: str, rows: pd.DataFrame) -> None:
        """Adds rows to a table; the first ones make it."""

    def n_rows(self, name: str) -> int:
        """Returns the number of rows of a table."""

    def n_missing(self, name: str, column: str) -> int:
        """Returns the number of rows that have no value in a column."""

    def batch(self, context: Any, name: str) -> Any:
        """Returns a table as a batch of a Great Expectations context."""


@contextmanager
def opened_store(engine: GateEngine) -> Iterator[TableStore]:
    """Opens an empty store of tables, which is gone at the end of the block."""
    if engine == "pandas":
        yield _PandasStore()
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(sqlite3.connect(Path(folder, "tables.db"), isolation_level=None)) as connection,
    ):
        yield _SqlStore(Path(folder, "tables.db"), connection)


class _PandasStore:
    """Holds tables as data frames."""

    types: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._parts: dict[str, list[pd.DataFrame]] = {}

    def add(self, name: str, rows: pd.DataFrame) -> None:
        self._parts.setdefault(name, []).append(rows)

    def n_rows(self, name: str) -> int:
        return len(self._table(name))

    def n_missing(self, name: str, column: str) -> int:
        return int(self._table(name)[column].isna().sum())

    def batch(self, context: Any, name: str) -> Any:
        asset = context.data_sources.add_pandas("rl_data").add_dataframe_asset(name)
        return asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": self._table(name)})

    def _table(self, name: str) -> pd.DataFrame:
        parts = self._parts[name]
        if len(parts) > 1:
            parts[:] = [pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)]
        return parts[0]


class _SqlStore:
    """Keeps tables in a file of SQLite, of which no more than some megabytes are in memory."""

    types: Mapping[str, str] = _SQL_TYPES

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path, self._connection = path, connection
        self._tables: set[str] = set()
        connection.execute("PRAGMA journal_mode = OFF")  # the file is made for one check
        connection.execute("PRAGMA synchronous = OFF")

    def add(self, name: str, rows: pd.DataFrame) -> None:
        if rows.empty:
            return
        if name not in self._tables:
            columns = ", ".join(f'"{column}" {_sql_type(rows[column])}' for column in rows)
            self._connection.execute(f'CREATE TABLE "{name}" ({columns})')
            self._tables.add(name)
        values = zip(*(rows[column].tolist() for column in rows), strict=True)  # SQLite takes NaN as a missing value
        self._connection.execute("BEGIN")
        self._connection.executemany(f'INSERT INTO "{name}" VALUES ({", ".join("?" * rows.shape[1])})', values)
        self._connection.execute("COMMIT")

    def n_rows(self, name: str) -> int:
        return self._number(f'SELECT count(*) FROM "{name}"') if name in self._tables else 0

    def n_missing(self, name: str, column: str) -> int:
        return self._number(f'SELECT count(*) FROM "{name}" WHERE "{column}" IS NULL')

    def batch(self, context: Any, name: str) -> Any:
        source = context.data_sources.add_sqlite("rl_data", connection_string=f"sqlite:///{self._path}")
        return source.add_table_asset(name, table_name=name).add_batch_definition_whole_table("all").get_batch()

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])


def _sql_type(column: pd.Series) -> str:
    """Returns the type of a column of SQLite; one of objects holds texts, or truth values of which some are not known."""
    of_objects = column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) in ("boolean", "empty")
    return _SQL_TYPES["bool" if of_objects else str(column.dtype)]
