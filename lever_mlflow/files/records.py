"""Reads typed records, which are pydantic models, from JSON files; one line says what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import read_object

__all__ = ["first_misfit", "read_record"]

Record = TypeVar("Record", bound=BaseModel)


def read_record(model: type[Record], path: Path, name: str, step: str) -> Record:
    """Reads a record from a JSON file that a step wrote.

    Args:
        model: the type of the record.
        name: what the file holds, with its article, such as ``an evaluation``.
        step: the step that writes the file again.

    Raises:
        DataError: there is no such file, it cannot be read strictly (``read_object``), or it was written by another version of
            this package.
    """
    remedy = f"run the {step} step again with rerun=true"
    content = read_object(path, missing=remedy, damaged=remedy)
    try:
        return model.model_validate_json(json.dumps(content))  # a model takes objects in place of dataclasses from JSON alone
    except ValidationError as error:
        raise DataError(f"{path}: not {name} of this version ({first_misfit(error)}); {remedy}") from None


def first_misfit(error: ValidationError) -> str:
    """Names the first field that does not fit, and says why."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
