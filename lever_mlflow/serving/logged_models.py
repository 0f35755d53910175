"""Logs checkpoints and retrievers as MLflow models, and finds the checkpoint of a logged model."""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

import lever_mlflow
from lever_mlflow import mini
from lever_mlflow.exceptions import CheckpointError, first_line
from lever_mlflow.runs.artifacts import download_folder
from lever_mlflow.runs.fields import LONGEST_PARAMETER, fitted
from lever_mlflow.runs.tags import prefixed
from lever_mlflow.selector.checkpoint_folder import CONFIG_FILE
from lever_mlflow.serving import selector_model
from lever_mlflow.settings import as_text
from lever_mlflow.shortages import let_through

__all__ = ["checkpoint_folder", "log_checkpoint", "log_retriever"]

_LOGGED_MODEL_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch")
_RETRIEVER_REQUIREMENTS = (
    *_LOGGED_MODEL_REQUIREMENTS,
    *("huggingface-hub", "pillow", "pydantic", "qwen-vl-utils", "torchvision", "tqdm", "transformers"),
)


def log_checkpoint(
    name: str, folder: Path, *, epoch: int, params: Mapping[str, Any], tags: Mapping[str, Any], example: pd.DataFrame
) -> str:
    """Logs a checkpoint folder as a LoggedModel of the active run, and returns its model id.

    Args:
        name: name of the model.
        folder: the checkpoint folder.
        epoch: number of the epoch.
        params: parameters of the model.
        tags: tags of the model.
        example: a row of input, which MLflow stores with the model.
    """
    with _no_bytecode():
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(selector_model.__file__)),
            artifacts={selector_model.CHECKPOINT_ARTIFACT: str(folder)},
            step=epoch,
            params={key: fitted(as_text(value), LONGEST_PARAMETER) for key, value in params.items()},
            tags=prefixed(tags),
            signature=selector_model.model_signature(),
            input_example=example,
            pip_requirements=_pinned(_LOGGED_MODEL_REQUIREMENTS),
        )
    assert info.model_id is not None
    return info.model_id


def log_retriever(name: str, folder: Path, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
    """Logs the folder of a retriever as a LoggedModel of the active run, and returns its model id.

    This package's code is part of the model, as it can be installed from no package index where the model is served. The
    weights of the embedded VLM are left out.
    """
    from lever_mlflow.serving import retriever_model

    # MLflow's own filter shows its remark that chat messages are of any type; it is recorded here, and so not printed.
    with tempfile.TemporaryDirectory() as code, _no_bytecode(), warnings.catch_warnings(record=True):
        package = Path(code) / "lever_mlflow"
        shutil.copytree(Path(lever_mlflow.__file__).parent, package, ignore=_ignored_names)
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(retriever_model.__file__)),
            code_paths=[str(package)],
            artifacts={path.name: str(path) for path in folder.iterdir()},
            params={key: fitted(str(value), LONGEST_PARAMETER) for key, value in params.items()},
            tags=prefixed(tags),
            input_example=retriever_model.input_example(),
            pip_requirements=_pinned(_RETRIEVER_REQUIREMENTS),
        )
    assert info.model_id is not None
    return info.model_id


def _ignored_names(folder: str, names: list[str]) -> list[str]:
    """Returns the entries of a folder of the package that are no part of a model: bytecode and the embedded VLM's weights."""
    return [name for name in names if name == "__pycache__" or Path(folder, name) == mini.VLM_PATH]


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Keeps Python from writing bytecode, which MLflow would log, beside a model's script when MLflow imports it."""
    former, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = former


def checkpoint_folder(reference: str) -> Path:
    """Returns the local folder of the checkpoint behind a model URI (``models:/...``); a local path is returned as it is.

    Raises:
        CheckpointError: the URI leads to no checkpoint.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=download_folder()))
    except (MlflowException, OSError) as error:
        let_through(error)
        raise CheckpointError(f"{reference}: no such model ({first_line(error)}); look its name up in the UI") from None
    if not any(folder.iterdir()):
        raise CheckpointError(f"{reference}: the files of this model are gone; run the training again with rerun=true")
    checkpoints = sorted(folder.glob(f"artifacts/*/{CONFIG_FILE}"))
    if len(checkpoints) != 1:
        raise CheckpointError(
            f"{reference}: holds {len(checkpoints)} selector checkpoints, expected 1; give a model of this project"
        )
    return checkpoints[0].parent


def _pinned(packages: Iterable[str]) -> list[str]:
    """Returns pip requirements of the installed versions of packages."""
    return [f"{package}=={version(package)}" for package in packages]
