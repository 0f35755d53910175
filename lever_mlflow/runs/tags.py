"""The tags of our runs: their names, and how values become texts and are read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import MissingRunError, first_line

__all__ = ["TAG", "any_run_tags", "as_text", "run_tags"]


TAG = "lever."


def any_run_tags(run_id: str) -> dict[str, str]:
    """The ``lever.*`` tags of any run, without the prefix.

    Raises:
        MissingRunError: no such run.
    """
    try:
        tags = mlflow.get_run(run_id).data.tags
    except MlflowException as error:
        raise MissingRunError(f"run {run_id}: {first_line(error)}; look its id up in the UI") from None
    return {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}


def run_tags(run_id: str, step: str) -> dict[str, str]:
    """The ``lever.*`` tags of a finished run of a step, without the prefix.

    Raises:
        MissingRunError: no such run, one of another step, or one that has not finished.
    """
    tags = any_run_tags(run_id)
    if tags.get("step") != step:
        raise MissingRunError(f"run {run_id} is not a {step} run but {tags.get('step', 'none of this project')!r}")
    status = mlflow.get_run(run_id).info.status
    if status != "FINISHED":
        raise MissingRunError(f"run {run_id} is {status}, not FINISHED; run the {step} step again")
    return tags


def as_text(value: Any) -> str:
    """A setting as text: numbers in their shortest form, lists with commas."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={as_text(item)}" for name, item in value.items()) or "none"
    return ",".join(map(as_text, value)) if isinstance(value, tuple) else str(value)
