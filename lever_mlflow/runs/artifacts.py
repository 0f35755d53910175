"""Reads the artifacts of runs."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import DataError, first_line

__all__ = ["artifact", "download_folder", "list_artifacts", "read_json"]


def artifact(run_id: str, path: str) -> Path:
    """Downloads an artifact of a run, and returns the path of the copy.

    Raises:
        DataError: the run or its artifact is not there.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=download_folder()))
    except (MlflowException, OSError) as error:
        raise DataError(f"run {run_id}: artifact {path} cannot be read ({first_line(error)}); run that step again") from None


def read_json(run_id: str, path: str) -> dict[str, Any]:
    """Reads an artifact that holds a JSON object.

    Raises:
        DataError: the artifact is not there, or is not a JSON object.
    """
    try:
        return dict(json.loads(artifact(run_id, path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"run {run_id}: artifact {path} is no JSON object ({error}); run that step again") from None


def list_artifacts(run_id: str, folder: str) -> list[str]:
    """Lists the paths of what a run has in an artifact folder, in order of their names; empty where it has none."""
    return sorted(item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder))


def download_folder() -> str:
    """Makes a folder for a download, which is deleted when this process ends."""
    return tempfile.mkdtemp(dir=_downloads().name)


@cache
def _downloads() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lever-mlflow-")
