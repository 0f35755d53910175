"""Converts RL data between JSON and Parquet without loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.strict_json import iterate_object
from lever_mlflow.trials.parquet import SUFFIX, entries, is_parquet, tables
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import RLData, write_rl_data

__all__ = ["convert"]

_SUFFIXES = (".json", SUFFIX)


def convert(source: str | Path, target: str | Path) -> RLData:
    """Writes RL data in the form that the name of the new file ends with, and returns them as read from there.

    Every field of the source is in the target, and both have the same digest. The order of fields within an object is not kept.

    Args:
        source: RL data as JSON or Parquet.
        target: the new file, which ends in ``.json`` or ``.parquet``; an existing one is replaced.

    Raises:
        ParameterError: the name of the target ends in neither, or is that of the source.
        DataError: the source cannot be read.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in _SUFFIXES:
        raise ParameterError(f"{target}: ends in {target.suffix or 'no suffix'}; give a name that ends in .json or .parquet")
    if target.exists() and target.samefile(source):
        raise ParameterError(f"{target}: is the file that is to be converted; give another name for the new file")
    data = load_rl_data(source)
    try:
        write_rl_data(target, _content(source), data.meta)
    except ValueError as error:  # a file may hold 1e999, which is read as infinity
        raise DataError(f"{source}: {error}; correct the number") from None
    converted = load_rl_data(target)
    if converted.digest != data.digest:
        target.unlink()
        raise DataError(f"{source}: has changed while it was converted; convert it again")
    return converted


def _content(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields train index and object of each query."""
    if is_parquet(path):
        for first_row, table in tables(path):
            yield from ((key, entry) for _, key, entry in entries(path, table, first_row))
    else:
        yield from ((key, entry) for key, entry in iterate_object(path, missing="", damaged="") if key != "_meta")
