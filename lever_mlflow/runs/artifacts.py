"""Reads the artifacts of runs."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from pydantic import ValidationError

from lever_mlflow.exceptions import DataError, MissingRunError, first_line
from lever_mlflow.files.records import first_misfit
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.shortages import let_through

__all__ = [
    "artifact",
    "as_recorded",
    "delete_artifacts",
    "download_folder",
    "list_artifacts",
    "living_run",
    "log_json",
    "log_text",
    "read_json",
]

_OF_A_FILE = " #####\n"  # in MLflow's error of a download, before what failed
_REMEDY = "run that step again with rerun=true"

log = logging.getLogger(__name__)


def living_run(run_id: str) -> Run:
    """Returns a run that is not in MLflow's bin.

    Raises:
        MissingRunError: there is no such run, or somebody has moved it to the bin.
    """
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise MissingRunError(f"run {run_id}: {first_line(error)}; look its id up in the MLflow UI") from None
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise MissingRunError(
            f"run {run_id} is in MLflow's bin; `mlflow runs restore --run-id {run_id}` takes it out, or run that step again"
        )
    return run


def log_json(content: Mapping[str, Any], path: str) -> None:
    """Logs a mapping as a JSON file of the active run, without the secrets of URLs."""
    log_text(json.dumps(dict(content), indent=2, default=str), path)


def log_text(text: str, path: str) -> None:
    """Logs a text as a file of the active run, without the secrets of URLs."""
    mlflow.log_text(without_secrets(text), path)


def artifact(run_id: str, path: str) -> Path:
    """Returns the path of a file or a folder of a run: where it lies on a disk of this machine, or where it was downloaded to.

    It is to be read only, as it may be the artifact itself.

    Raises:
        DataError: the run or its artifact is not there.
    """
    try:
        # not by mlflow.artifacts.download_artifacts, whose error does not tell why a download failed
        files = get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri)
        on_this_machine = isinstance(files, LocalArtifactRepository)
        return Path(files.download_artifacts(path, dst_path=None if on_this_machine else download_folder()))
    except (MlflowException, OSError) as error:
        let_through(error)
        reason = str(error).rpartition(_OF_A_FILE)[2].partition("\n")[0]
        raise DataError(f"run {run_id}: artifact {path} cannot be read ({reason}); {_REMEDY}") from None


def read_json(run_id: str, path: str) -> dict[str, Any]:
    """Reads an artifact that holds a JSON object.

    Raises:
        DataError: the artifact is not there, or is not a JSON object.
    """
    copy = artifact(run_id, path)
    try:
        return read_object(copy, missing=_REMEDY, damaged=_REMEDY)
    except DataError as error:
        reason = str(error).removeprefix(f"{copy}: ")
        raise DataError(f"run {run_id}: artifact {path} is no JSON object ({reason})") from None


@contextmanager
def as_recorded(holder: str, what: str) -> Iterator[None]:
    """Turns what a block raises over a tag or an artifact of another form, as an edit by hand leaves it, into one line.

    Args:
        holder: what holds it, such as ``run 123``.
        what: names the tags or artifacts that the block reads.

    Raises:
        DataError: the block raised an error of Python's own, or of pydantic.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        reason = first_misfit(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{holder}: {what} is not what this package recorded ({reason}); {_REMEDY}") from None


def list_artifacts(run_id: str, folder: str) -> list[str]:
    """Lists the paths of what a run has in an artifact folder, in order of their names; empty where it has none."""
    return sorted(item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder))


def delete_artifacts(run_id: str, path: str) -> None:
    """Deletes an artifact of a run, or a whole folder of artifacts.

    Where the store refuses that, the artifact stays, and the log says so.
    """
    try:
        get_artifact_repository(mlflow.get_run(run_id).info.artifact_uri).delete_artifacts(path)
    except (MlflowException, OSError, NotImplementedError) as error:
        log.warning("run %s: %s could not be deleted (%s); it is not needed any more", run_id, path, first_line(error))


def download_folder() -> str:
    """Makes a folder for a download, which is deleted when this process ends."""
    return tempfile.mkdtemp(dir=_downloads().name)


@cache
def _downloads() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
