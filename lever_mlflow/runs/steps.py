"""Steps as MLflow runs: how a step is started, found again, and what it logs.

Every step's run carries tags ``lever.*`` with the digests of all that decides its result; ``lever.key`` names all of them
and the settings together. A step is looked up by these tags, never by its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import psutil
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import PandasDataset, from_pandas
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lever_mlflow import __version__, mini, served_retriever, serving
from lever_mlflow.exceptions import CheckpointError, DataError, LeverError, MissingRunError
from lever_mlflow.gate.tables import trial_table
from lever_mlflow.rl_data import RLData

__all__ = [
    "TAG",
    "Step",
    "active_run_id",
    "any_run_tags",
    "artifact",
    "checkpoint_folder",
    "close_interrupted",
    "describe",
    "ensure",
    "epoch_metrics",
    "find_run",
    "find_runs",
    "finite",
    "is_training",
    "list_artifacts",
    "log_checkpoint",
    "log_frame",
    "log_retriever",
    "project_run",
    "rl_dataset",
    "run_here",
    "run_settings",
    "run_tags",
    "this_process",
    "ui_command",
]

TAG = "lever."
_LONGEST_NOTE = 4_000  # characters; MLflow refuses descriptions above 5,000
_PACKAGES = ("torch", "transformers", "mlflow", "great-expectations", "numpy")
_LOGGED_MODEL_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch")
_RETRIEVER_REQUIREMENTS = (
    *_LOGGED_MODEL_REQUIREMENTS,
    *("huggingface-hub", "pillow", "pydantic", "qwen-vl-utils", "torchvision", "tqdm", "transformers"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A step that is ready to run.

    Attributes:
        step: its kind, such as ``grpo``; ``name``: the run's name in the UI.
        settings: what the user can choose; logged as parameters.
        inputs: digests and origins of all that it works on; logged as tags ``lever.<name>``, by which it is found again.
        execute: does the work inside the active run.
        labels: the names by which the user gave the inputs; logged as parameters, but not part of the key.
    """

    step: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    execute: Callable[[], None]
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the step with all its settings, inputs and this package's code; the same key means the same result."""
        content = json.dumps([code_digest(), self.step, self.settings, self.inputs], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@cache
def code_digest() -> str:
    """SHA-256 over this package's modules, 16 hex characters."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def project_run(name: str) -> Iterator[Run]:
    """The run that ``mlflow run`` made, or a new one: FINISHED at the end of the block, FAILED when an exception leaves it.

    It is called ``name`` until a step gives it a name of its own; its description says why it failed.

    Raises:
        LeverError: MLflow refused something or its store cannot be reached.
    """
    failure: LeverError | None = None
    try:
        with mlflow.start_run() as active:
            mlflow.set_tag("mlflow.runName", name)
            try:
                yield active
            except LeverError as error:
                failure = error
                if not isinstance(error.__cause__, MlflowException):  # else MLflow is not there to be told
                    _describe_failure(active.info.run_id, error)
                raise
    except MlflowException as error:
        if failure is not None:  # and then not even that could be recorded; what failed first says more
            raise failure from error
        raise LeverError(f"MLflow at {mlflow.get_tracking_uri()}: {_first_line(error)}") from error


def _describe_failure(run_id: str, error: LeverError) -> None:
    """Says in a run's description why it failed, unless its step has said something there."""
    if "mlflow.note.content" not in mlflow.get_run(run_id).data.tags:
        mlflow.set_tag("mlflow.note.content", f"failed: {error}"[:_LONGEST_NOTE])


def active_run_id() -> str:
    """Id of the run that a step works in."""
    active = mlflow.active_run()
    assert active is not None, "a step works in a run"
    return str(active.info.run_id)


def run_here(step: Step) -> str:
    """Runs a step in the active run and returns the run's id.

    Parameters that ``mlflow run`` has logged already are left as the user typed them.
    """
    active = mlflow.active_run()
    assert active is not None, "run_here needs an active run"
    known = mlflow.get_run(active.info.run_id).data.params
    parameters = {**step.labels, **step.settings}
    mlflow.log_params({name: _plain(value) for name, value in parameters.items() if name not in known})
    mlflow.set_tags(
        {
            **{f"{TAG}{name}": _plain(value) for name, value in step.inputs.items()},
            f"{TAG}settings": json.dumps(dict(step.settings)),
            f"{TAG}step": step.step,
            f"{TAG}key": step.key,
            f"{TAG}version": __version__,
            f"{TAG}code": code_digest(),
            "mlflow.runName": step.name,
            **{f"lib.{package}": version(package) for package in _PACKAGES},
            "lib.python": platform.python_version(),
        }
    )
    step.execute()
    return str(active.info.run_id)


def ensure(step: Step) -> str:
    """The id of a finished run of exactly this step, or of a child run that does it now."""
    finished = find_run(step.step, {"key": step.key})
    if finished is not None:
        log.info("%s: reused from %s", step.name, describe(finished))
        return str(finished.info.run_id)
    log.info("%s: running", step.name)
    with mlflow.start_run(nested=True, run_name=step.name):
        return run_here(step)


def find_run(step: str, tags: Mapping[str, Any], *, having: str | None = None) -> Run | None:
    """The newest of ``find_runs``."""
    runs = find_runs(step, tags, having=having, most=1)
    return runs[0] if runs else None


def find_runs(
    step: str, tags: Mapping[str, Any], *, having: str | None = None, unfinished: bool = False, most: int = 10_000
) -> list[Run]:
    """The finished runs of a step in the active run's experiment whose ``lever.*`` tags have these values, newest first.

    With ``having``, those that have this tag, whether they finished or not; with ``unfinished``, that did not finish.
    """
    active = mlflow.active_run()
    assert active is not None, "find_runs needs an active run"
    wanted = {"step": step, **tags}
    conditions = [f"tags.`{TAG}{key}` = '{_plain(value)}'" for key, value in wanted.items()]
    if having:
        conditions.append(f"tags.`{TAG}{having}` LIKE '%'")
    if unfinished or not having:
        conditions.append(f"attributes.status {'!=' if unfinished else '='} 'FINISHED'")
    return list(
        mlflow.search_runs(
            experiment_ids=[active.info.experiment_id],
            filter_string=" and ".join(conditions),
            order_by=["attributes.start_time DESC"],
            max_results=most,
            output_format="list",
        )
    )


def any_run_tags(run_id: str) -> dict[str, str]:
    """The ``lever.*`` tags of any run, without the prefix.

    Raises:
        MissingRunError: no such run.
    """
    try:
        tags = mlflow.get_run(run_id).data.tags
    except MlflowException as error:
        raise MissingRunError(f"run {run_id}: {_first_line(error)}; look its id up in the UI") from None
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


def this_process() -> str:
    """This process by machine, number and start, for the tag by which others see whether a run's process is still there."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_training(run: Run) -> bool | None:
    """Whether the process of a run that is RUNNING is still there; None if that is another machine's."""
    if run.info.status != "RUNNING":
        return False
    host, number, started = run.data.tags.get(f"{TAG}process", "? 0 0").rsplit(" ", 2)
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(number))
        return process.status() != psutil.STATUS_ZOMBIE and f"{process.create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False


def close_interrupted(run_id: str) -> None:
    """Marks a run as KILLED whose process ended without a word, so that it does not seem to run for ever."""
    if mlflow.get_run(run_id).info.status == "RUNNING":
        mlflow.MlflowClient().set_terminated(run_id, "KILLED")


def run_settings(run_id: str) -> dict[str, Any]:
    """The settings that a step ran with."""
    return dict(json.loads(mlflow.get_run(run_id).data.tags[f"{TAG}settings"]))


def epoch_metrics(run_id: str) -> list[dict[str, float]]:
    """Metrics of a training run, one mapping per epoch, ``epoch`` among them."""
    client = mlflow.MlflowClient()
    epochs: dict[int, dict[str, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith("data/"):
            for metric in client.get_metric_history(run_id, name):
                epochs.setdefault(metric.step, {"epoch": metric.step})[name] = metric.value
    return [epochs[step] for step in sorted(epochs)]


def describe(run: Run) -> str:
    """A run in words, for logs: its name and id."""
    return f"{run.info.run_name} (run {run.info.run_id})"


def artifact(run_id: str, path: str) -> Path:
    """Local copy of a run's artifact.

    Raises:
        DataError: the run or its artifact is not there.
    """
    try:
        return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path, dst_path=_download_folder()))
    except (MlflowException, OSError) as error:
        raise DataError(f"run {run_id}: artifact {path} cannot be read ({_first_line(error)}); run that step again") from None


def list_artifacts(run_id: str, folder: str) -> list[str]:
    """Paths of what a run has in an artifact folder, in order of their names; empty where it has none."""
    return sorted(item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder))


def ui_command() -> str:
    """The command that opens the MLflow UI on the store in use, and the address of the active run in it."""
    active = mlflow.active_run()
    assert active is not None, "ui_command needs an active run"
    page = f"/#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http"):
        return uri + page
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}   # then open http://127.0.0.1:5000{page}"


def rl_dataset(data: RLData) -> PandasDataset:
    """RL data as an MLflow data set under our content digest (MLflow's own covers the first 10,000 rows only)."""
    source = CodeDatasetSource(tags={"source": data.source})  # MLflow resolves no ``runs:/`` URIs as a source
    return from_pandas(trial_table(data), source=source, name="rl_data", digest=data.digest)


def log_checkpoint(
    name: str, folder: Path, *, epoch: int, params: Mapping[str, Any], tags: Mapping[str, Any], example: pd.DataFrame
) -> str:
    """Logs a checkpoint folder as a LoggedModel of the active run and returns its model id; ``example`` is an input row."""
    with _no_bytecode():
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(serving.__file__)),
            artifacts={serving.CHECKPOINT_ARTIFACT: str(folder)},
            step=epoch,
            params={key: _plain(value) for key, value in params.items()},
            tags={f"{TAG}{key}": str(value) for key, value in tags.items()},
            signature=serving.model_signature(),
            input_example=example,
            pip_requirements=_pinned(_LOGGED_MODEL_REQUIREMENTS),
        )
    assert info.model_id is not None
    return info.model_id


def log_retriever(name: str, folder: Path, params: Mapping[str, Any], tags: Mapping[str, Any]) -> str:
    """Logs the folder of a retriever as a LoggedModel of the active run, with this package's code, and returns its model id.

    The code goes with the model, since no registry of packages offers it to whoever serves the model; that of the VLM does not.
    """
    with tempfile.TemporaryDirectory() as code, _no_bytecode():
        package = Path(code) / "lever_mlflow"
        shutil.copytree(Path(__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", mini.VLM_PATH.name))
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(served_retriever.__file__)),
            code_paths=[str(package)],
            artifacts={path.name: str(path) for path in folder.iterdir()},
            params={key: str(value) for key, value in params.items()},
            tags={f"{TAG}{key}": str(value) for key, value in tags.items()},
            input_example=served_retriever.input_example(),
            pip_requirements=_pinned(_RETRIEVER_REQUIREMENTS),
        )
    assert info.model_id is not None
    return info.model_id


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """MLflow imports a model's script where it is logged from; what Python would write beside it is not to be logged too."""
    former, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = former


def checkpoint_folder(reference: str) -> Path:
    """The checkpoint behind a model URI (``models:/...``) as a local folder, or a local path as it is.

    Raises:
        CheckpointError: the URI leads to no checkpoint.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return Path(reference)
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=reference, dst_path=_download_folder()))
    except (MlflowException, OSError) as error:
        raise CheckpointError(f"{reference}: no such model ({_first_line(error)}); look its name up in the UI") from None
    found = sorted(folder.glob("artifacts/*/selector.json"))
    if len(found) != 1:
        raise CheckpointError(f"{reference}: holds {len(found)} selector checkpoints, expected 1")
    return found[0].parent


def log_frame(frame: pd.DataFrame, path: Path) -> None:
    """Logs a table as a Parquet artifact of the active run."""
    frame.to_parquet(path, index=False)
    mlflow.log_artifact(str(path))


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics fit to be logged.

    Raises:
        DataError: one of them is not finite.
    """
    bad = {name: value for name, value in metrics.items() if not np.isfinite(value)}
    if bad:
        raise DataError(f"metrics are not finite: {bad}; lower lr, and check the data with the validate step")
    return dict(metrics)


@cache
def _downloads() -> tempfile.TemporaryDirectory[str]:
    """Holds what this process downloads, and goes with it."""
    return tempfile.TemporaryDirectory(prefix="lever-mlflow-")


def _download_folder() -> str:
    return tempfile.mkdtemp(dir=_downloads().name)


def _plain(value: Any) -> str:
    """A setting as text: numbers in their shortest form, lists with commas."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_plain(item)}" for name, item in value.items()) or "none"
    return ",".join(map(_plain, value)) if isinstance(value, tuple) else str(value)


def _pinned(packages: Iterable[str]) -> list[str]:
    return [f"{package}=={version(package)}" for package in packages]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
