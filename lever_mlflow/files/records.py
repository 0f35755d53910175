"""Reads typed records, which are pydantic models, from JSON files; one line says what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.text import read_text
from lever_mlflow.shortages import let_through

__all__ = ["first_misfit", "read_record"]

Record = TypeVar("Record", bound=BaseModel)


def read_record(model: type[Record], path: Path, name: str, step: str) -> Record:
    """Reads a record from a JSON file that a step wrote.

    Args:
        model: the type of the record.
        name: what the file holds, with its article, such as ``an evaluation``.
        step: the step that writes the file again.

    Raises:
        DataError: the file cannot be read, or was written by another version of this package.
    """
    try:
        return model.model_validate_json(read_text(path))
    except (OSError, UnicodeError) as error:
        let_through(error)
        reason = str(error)
    except ValidationError as error:
        reason = first_misfit(error)
    raise DataError(f"{path}: not {name} of this version ({reason}); run the {step} step again with rerun=true")


def first_misfit(error: ValidationError) -> str:
    """Names the first field that does not fit, and says why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
