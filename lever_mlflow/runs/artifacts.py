"""Reads and writes the artifacts of runs."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import DataError, first_line

__all__ = ["artifact", "download_folder", "list_artifacts", "log_frame"]


def artifact(run_id: str, path: str) -> Path:
    """Local copy of a run's artifact.

    Raises:
        DataError: the run or its artifact is not there.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=download_folder()))
    except (MlflowException, OSError) as error:
        raise DataError(f"run {run_id}: artifact {path} cannot be read ({first_line(error)}); run that step again") from None


def list_artifacts(run_id: str, folder: str) -> list[str]:
    """Paths of what a run has in an artifact folder, in order of their names; empty where it has none."""
    return sorted(item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder))


def log_frame(frame: pd.DataFrame, path: Path) -> None:
    """Logs a table as a Parquet artifact of the active run."""
    frame.to_parquet(path, index=False)
    mlflow.log_artifact(str(path))


@cache
def _downloads() -> tempfile.TemporaryDirectory[str]:
    """Holds what this process downloads, and goes with it."""
    return tempfile.TemporaryDirectory(prefix="lever-mlflow-")


def download_folder() -> str:
    return tempfile.mkdtemp(dir=_downloads().name)
