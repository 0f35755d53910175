"""Training: RCE and GRPO behind the data gate, with a checkpoint, metrics and a state to go on from per epoch."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.data.pandas_dataset import PandasDataset
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError

from lever_mlflow import distributed, gate
from lever_mlflow.exceptions import CheckpointError, DataError, LeverError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.gate import pass_gate, rl_dataset
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.runs import artifacts, processes
from lever_mlflow.runs.metrics import finite
from lever_mlflow.runs.tags import TAG
from lever_mlflow.selector.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving import logged_models
from lever_mlflow.settings import Fusion, GrpoSettings, RceSettings
from lever_mlflow.training.batches import split_groups
from lever_mlflow.training.curves import training_curves
from lever_mlflow.training.diagnosis import diagnose
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.loop import Epoch, TrainingState
from lever_mlflow.training.rce import train_rce
from lever_mlflow.training.state import load_state, save_state
from lever_mlflow.trials.rl_data import RLData, check_fits

__all__ = ["STATE_TAG", "Interrupted", "Launch", "Start", "find_state", "train_by_grpo", "train_by_rce"]

STATES_FOLDER, STATE_TAG = "training_states", "state_epoch"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interrupted:
    """A training that ended early: its last whole state, and of its epochs the logged models or, unsent, the checkpoints.

    ``source`` is the run's id, or the folder in which it left what it could not send; ``threads``, of torch, that it ran with.
    """

    source: str
    state: TrainingState
    models: Mapping[int, str]
    unsent: Mapping[int, Path]
    key: str
    threads: int


@dataclass(frozen=True)
class Launch:
    """How a training run starts: its step's key, the verdict on its data, and an interrupted one to go on from, if any.

    The two are asked for inside the run, once.
    """

    key: str
    verdict: Callable[[], gate.GateResult]
    interrupted: Callable[[], Interrupted | None]


@dataclass(frozen=True)
class Start:
    """What GRPO starts from: the checkpoint, where it was found, and the gate's expectations that it was trained against."""

    selector: PointerSelector
    uri: str
    override: Mapping[str, str]


@dataclass(frozen=True)
class _Training:
    """What the epochs of one training run share, for the log; ``start`` tells GRPO's start checkpoint."""

    context: Context
    step: str
    data: RLData
    settings: RceSettings | GrpoSettings
    fusion: Fusion
    start: Mapping[str, str]
    override: Mapping[str, str]
    key: str

    @property
    def title(self) -> str:
        return f"GRPO beta {self.settings.kl_beta:g}" if isinstance(self.settings, GrpoSettings) else "RCE"

    def params(self, epoch: int) -> dict[str, Any]:
        """All that made an epoch's checkpoint what it is."""
        context = {"seed": self.context.seed, "reward_mode": self.context.reward_mode, "rl_data_digest": self.data.digest}
        return {"epoch": epoch, **context, **asdict(self.settings), **self.start}


def train_by_rce(context: Context, data: RLData, settings: RceSettings, launch: Launch) -> None:
    """RCE behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = pass_gate(context, data, launch.verdict())
    earlier = launch.interrupted()
    epochs = _begin(context, train_rce, settings.fusion, earlier, data=data, settings=settings)
    training = _Training(context, "rce", data, settings, settings.fusion, {}, override, launch.key)
    _log_training(training, epochs, earlier)


def train_by_grpo(context: Context, data: RLData, start: Start, settings: GrpoSettings, launch: Launch) -> None:
    """GRPO from ``start`` behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = {**start.override, **pass_gate(context, data, launch.verdict())}
    earlier = launch.interrupted()
    fusion = start.selector.fusion
    epochs = _begin(context, train_grpo, fusion, earlier, start=start.selector, data=data, settings=settings)
    began = {"start_uri": start.uri, "start_digest": selector_digest(start.selector)}
    training = _Training(context, "grpo", data, settings, fusion, began, override, launch.key)
    _log_training(training, epochs, earlier)


def find_state(source: str) -> Interrupted:
    """The newest whole training state that a run logged, or left in a folder when it could not.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        places: Iterator[Path] = iter(sorted(folder.glob("state-*"), reverse=True))
    else:
        logged = reversed(artifacts.list_artifacts(source, STATES_FOLDER))
        places = (artifacts.artifact(source, path) for path in logged)
    for place in places:
        try:
            state, meta = load_state(place)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        models = {int(epoch): model for epoch, model in meta["models"].items()}
        missing = [epoch for epoch in range(1, len(state.history) + 1) if epoch not in models]
        unsent = {epoch: _checkpoint(folder, epoch) for epoch in missing}
        return Interrupted(source, state, models, unsent, meta["key"], meta.get("threads", 0))
    raise CheckpointError(f"{source}: no whole training state to go on from")


def _begin(
    context: Context, train: Callable[..., Iterator[Epoch]], fusion: Fusion, earlier: Interrupted | None, **arguments: Any
) -> Iterator[Epoch]:
    """Starts a training here and in the processes that follow."""
    resources = context.resources
    features_SD = resources.features("train").of(fusion)  # now they are on disk, where the others find them
    state = None if earlier is None else earlier.state
    arguments |= {"seed": context.seed, "reward_mode": context.reward_mode, "state": state}
    processes = distributed.join(resources.torch_device)
    distributed.call_followers(processes, _train_along, train, replace(resources), fusion, arguments)
    try:
        return train(**arguments, features_SD=features_SD, device=resources.torch_device)
    except DataError as error:
        raise DataError(f"{arguments['data'].source}: {error}") from None


def _train_along(
    train: Callable[..., Iterator[Epoch]], resources: Resources, fusion: Fusion, arguments: Mapping[str, Any]
) -> None:
    """The part of a training that a following process has."""
    for _ in train(**arguments, features_SD=resources.features("train").of(fusion), device=resources.torch_device):
        pass


def _log_training(training: _Training, epochs: Iterator[Epoch], earlier: Interrupted | None) -> None:
    """Logs each epoch as it comes, those of an interrupted run first, and at the end which is best and what it all came to.

    What is to be logged is on this machine's disk first, until all has arrived.

    Raises:
        LeverError: MLflow or the disk failed; the message says where the epochs are and how to go on.
    """
    active = mlflow.active_run()
    assert active is not None, "training needs an active run"
    folder = training.context.resources.cache_dir / "unsent" / active.info.run_id
    dataset = rl_dataset(training.data)
    mlflow.set_tags({f"{TAG}threads": torch.get_num_threads(), f"{TAG}process": processes.this_process()})
    history: list[dict[str, float]] = []
    try:
        models = _replay(training, earlier, history, folder, dataset) if earlier is not None else {}
        for epoch, metrics, selector, state in epochs:
            history.append(finite(metrics))
            meta = {"step": training.step, **training.params(epoch), **training.override}
            save_selector(_checkpoint(folder, epoch), selector, meta)
            _save_state(training, folder, state, models)
            models[epoch] = _log_model(training, epoch, _checkpoint(folder, epoch))
            mlflow.log_metrics(metrics, step=epoch, model_id=models[epoch], dataset=dataset)
            _log_state(training, state, models)
        _conclude(training, history, models)
    except (MlflowException, OSError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        if not any(folder.glob("state-*")):
            raise LeverError(f"{reason}; no epoch was finished") from error
        raise LeverError(
            f"{reason}; the epochs until then are safe in {folder}: once this is mended, the same command with "
            f"-P resume={folder} logs them and goes on"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)


def _replay(
    training: _Training, earlier: Interrupted, history: list[dict[str, float]], folder: Path, dataset: PandasDataset
) -> dict[int, str]:
    """Logs the epochs of an interrupted run in this one and returns their models, the unsent ones logged now."""
    log.info("goes on after epoch %d of %s", len(earlier.state.history), earlier.source)
    if earlier.threads != torch.get_num_threads():
        told = "it ran with %d threads, this with %d, so that last digits may differ; OMP_NUM_THREADS sets them"
        log.warning(told, earlier.threads, torch.get_num_threads())
    mlflow.set_tag(f"{TAG}resumed_from", earlier.source)
    models = dict(earlier.models)
    _save_state(training, folder, earlier.state, models)
    for epoch, path in earlier.unsent.items():
        shutil.copytree(path, _checkpoint(folder, epoch))
        models[epoch] = _log_model(training, epoch, path)
    for epoch, metrics in enumerate(earlier.state.history, start=1):
        history.append(dict(metrics))
        mlflow.log_metrics(dict(metrics), step=epoch, dataset=dataset)
    _log_state(training, earlier.state, models)
    if not Path(earlier.source).is_dir():
        processes.close_interrupted(earlier.source)
    shutil.rmtree(folder.parent / Path(earlier.source).name, ignore_errors=True)  # all of it is here now
    return models


def _conclude(training: _Training, history: list[dict[str, float]], models: Mapping[int, str]) -> None:
    """Which epoch is best, the curves, and the run in words."""
    best = max(range(1, len(history) + 1), key=lambda epoch: (history[epoch - 1]["expected_reward"], -epoch))
    _, val = split_groups(training.data.groups, training.settings.val_share, training.context.seed)
    told = diagnose(history, len(val), best)
    mlflow.log_figure(training_curves(history, training.title, best), "training_curves.png")
    mlflow.set_tags(
        {
            f"{TAG}models": json.dumps(models),
            f"{TAG}best_epoch": str(best),
            f"{TAG}best_model": models[best],
            f"{TAG}diagnosis": told,
            "mlflow.note.content": told,
        }
    )
    log.info("%s: %s", training.title, told)


def _log_model(training: _Training, epoch: int, checkpoint: Path) -> str:
    """Logs a checkpoint folder as a model and returns its id."""
    first, train_SD = training.data.groups[0], training.context.resources.features("train").of(training.fusion)
    rows = {"query": [train_SD[first.query_id].tolist()], "candidates": [train_SD[list((first.pool * 4)[:4])].tolist()]}
    name = training.title.lower().replace(" ", "-").replace(".", "-")
    return logged_models.log_checkpoint(
        f"{name}-epoch-{epoch}",
        checkpoint,
        epoch=epoch,
        params=training.params(epoch),
        tags={"checkpoint_digest": selector_digest(load_selector(checkpoint)), **training.override},
        example=pd.DataFrame(rows),
    )


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"checkpoint-{epoch:04d}"


def _save_state(training: _Training, folder: Path, state: TrainingState, models: Mapping[int, str]) -> None:
    """Writes the state to disk and then removes the one before it."""
    former = sorted(folder.glob("state-*"))
    save_state(folder / f"state-{len(state.history):04d}", state, _state_meta(training, models))
    for path in former:
        shutil.rmtree(path, ignore_errors=True)


def _state_meta(training: _Training, models: Mapping[int, str]) -> dict[str, Any]:
    return {"models": dict(models), "key": training.key, "threads": torch.get_num_threads()}


def _log_state(training: _Training, state: TrainingState, models: Mapping[int, str]) -> None:
    """Logs a state after everything else of its epoch, so that an epoch that can be gone on from is whole."""
    epoch = len(state.history)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"epoch-{epoch:04d}"
        save_state(path, state, _state_meta(training, models))
        mlflow.log_artifact(str(path), STATES_FOLDER)
    mlflow.set_tag(f"{TAG}{STATE_TAG}", str(epoch))
