"""Trains behind the data gate, and logs a checkpoint, metrics and a state of each epoch in the active run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.data.dataset import Dataset
from safetensors import SafetensorError

from lever_mlflow import distributed
from lever_mlflow.exceptions import DataError, LeverError, first_line
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.gate import find_verdict, pass_gate, rl_dataset
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.resume import Interrupted, UnsentEpochs, interrupted_training
from lever_mlflow.runs.metrics import finite, log_history, system_metrics
from lever_mlflow.runs.models import log_checkpoints
from lever_mlflow.runs.outages import persistently
from lever_mlflow.runs.processes import close_interrupted
from lever_mlflow.runs.steps import Step, active_run
from lever_mlflow.runs.stores import is_of_the_store, reason_of
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.selector.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.logged_models import log_checkpoint
from lever_mlflow.settings import Fusion, GrpoSettings, RceSettings, format_beta
from lever_mlflow.shortages import in_one_line, is_of_the_machine
from lever_mlflow.training.curves import training_curves
from lever_mlflow.training.diagnosis import diagnose
from lever_mlflow.training.filters import filter_summary, split_groups
from lever_mlflow.training.loop import Epoch
from lever_mlflow.trials.rl_data import RLData

__all__ = ["Training", "run_training"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """Holds what the epochs of one training run share, for the log.

    Attributes:
        origin: URI and digest of GRPO's start checkpoint.
        override: the gate's expectations that bad data were let through in spite of, by tag.
        epochs_before: number of epochs of the rounds of GRPO before this one.
    """

    context: Context
    step: str
    data: RLData
    settings: RceSettings | GrpoSettings
    fusion: Fusion
    origin: Mapping[str, str] | None = None
    override: Mapping[str, str] | None = None
    epochs_before: int = 0

    @property
    def kind(self) -> str:
        """Names the kind of training, as checkpoints do."""
        return "grpo" if isinstance(self.settings, GrpoSettings) else "rce"

    @property
    def title(self) -> str:
        """Names the training in logs and figures."""
        return f"GRPO beta {format_beta(self.settings.kl_beta)}" if isinstance(self.settings, GrpoSettings) else "RCE"

    def params(self, epoch: int) -> dict[str, Any]:
        """Returns everything that made an epoch's checkpoint what it is."""
        context = {"seed": self.context.seed, "reward_mode": self.context.reward.label, "rl_data_digest": self.data.digest}
        return {"epoch": self.numbered(epoch), **context, **asdict(self.settings), **(self.origin or {})}

    def numbered(self, epoch: int) -> int:
        """Returns the number of an epoch of this training among the epochs of all rounds."""
        return epoch + self.epochs_before


def run_training(
    training: Training, train: Callable[..., Iterator[Epoch]], step: Step, resume: str, start: PointerSelector | None = None
) -> None:
    """Trains behind the gate, going on from an interrupted training where there is one."""
    context, data = training.context, training.data
    let_through = pass_gate(context, data, find_verdict(context, data))
    training = replace(training, override={**(training.override or {}), **let_through})
    summary = filter_summary(data, training.settings, context.seed)
    if summary:
        log.info("%s: the filters leave %s", training.title, summary)
        record({Tag.FILTERED: summary})
    interrupted = interrupted_training(step, resume)
    arguments = {"data": data, "settings": training.settings, **({} if start is None else {"start": start})}
    epochs = _begin(training, train, interrupted, arguments)
    unsent = UnsentEpochs(context.resources.cache_dir / "unsent" / active_run().info.run_id, step.key)
    with system_metrics(active_run().info.run_id, context.resources.torch_device):
        _log_training(training, epochs, interrupted, unsent)
    unsent.remove_interrupted(step)


def _begin(
    training: Training, train: Callable[..., Iterator[Epoch]], interrupted: Interrupted | None, arguments: Mapping[str, Any]
) -> Iterator[Epoch]:
    """Starts a training here and in the processes that follow."""
    context, resources = training.context, training.context.resources
    features_SD = resources.features("train").of(training.fusion)  # now they are on disk, where the others find them
    state = None if interrupted is None else interrupted.state
    arguments = {**arguments, "seed": context.seed, "reward": context.reward, "state": state}
    processes = distributed.join(resources.torch_device)
    distributed.call_followers(processes, _train_along, train, replace(resources), training.fusion, arguments)
    try:
        return train(**arguments, features_SD=features_SD, device=resources.torch_device)
    except DataError as error:
        raise DataError(f"{training.data.source}: {error}") from None


def _train_along(
    train: Callable[..., Iterator[Epoch]], resources: Resources, fusion: Fusion, arguments: Mapping[str, Any]
) -> None:
    """Takes the part of a training that a following process has."""
    for _ in train(**arguments, features_SD=resources.features("train").of(fusion), device=resources.torch_device):
        pass


def _log_training(training: Training, epochs: Iterator[Epoch], interrupted: Interrupted | None, unsent: UnsentEpochs) -> None:
    """Logs each epoch when it has finished, and at the end the best epoch and the diagnosis.

    The epochs of an interrupted run are logged first.
    What is to be logged is on this machine's disk first, until all has arrived.

    Raises:
        LeverError: MLflow, the disk or memory failed; the message says where the epochs are and how to go on.
    """
    dataset = rl_dataset(training.data)
    record({Tag.THREADS: torch.get_num_threads()})
    history: list[dict[str, float]] = []
    models: dict[int, str] = {}
    try:
        if interrupted is not None:
            models = _replay(training, interrupted, history, unsent, dataset)
        for epoch, metrics, selector, state in epochs:
            history.append(finite(metrics))
            meta = {"step": training.kind, **training.params(epoch), **(training.override or {})}
            save_selector(unsent.checkpoint(epoch), selector, meta)
            unsent.save_state(state, models)
            models[epoch] = persistently(partial(_log_model, training, epoch, unsent.checkpoint(epoch)))
            log_metrics = partial(mlflow.log_metrics, step=training.numbered(epoch), model_id=models[epoch], dataset=dataset)
            persistently(partial(log_metrics, metrics, timestamp=time.time_ns() // 10**6))  # one time, so that it is one record
            persistently(partial(unsent.log_state, state, models))
        _conclude(training, history, models)
    except Exception as error:
        if not (isinstance(error, OSError | SafetensorError) or is_of_the_store(error) or is_of_the_machine(error)):
            raise
        reason = reason_of(error) if is_of_the_store(error) else in_one_line(error) or first_line(error)
        if not unsent.hold_a_state:
            raise LeverError(f"{reason}; no epoch was finished") from error
        raise LeverError(
            f"{reason}; the epochs until then are safe in {unsent.folder}: once this is mended, run the same command again, or "
            f"{training.kind} with the same settings and -P resume={unsent.folder} logs them and goes on"
        ) from error
    unsent.remove()


def _replay(
    training: Training,
    interrupted: Interrupted,
    history: list[dict[str, float]],
    unsent: UnsentEpochs,
    dataset: Dataset,
) -> dict[int, str]:
    """Logs the epochs of an interrupted run in this one and returns their models, the unsent ones logged now."""
    log.info("resuming after epoch %d of %s", len(interrupted.state.history), interrupted.source)
    if interrupted.threads != torch.get_num_threads():
        message = "it ran with %d threads, this with %d, so that last digits may differ; OMP_NUM_THREADS sets them"
        log.warning(message, interrupted.threads, torch.get_num_threads())
    record({Tag.RESUMED_FROM: interrupted.source})
    models = dict(interrupted.models)
    unsent.save_state(interrupted.state, models)
    for epoch, path in interrupted.unsent.items():
        shutil.copytree(path, unsent.checkpoint(epoch))
        models[epoch] = _log_model(training, epoch, path)
    for epoch, metrics in enumerate(interrupted.state.history, start=1):
        history.append(dict(metrics))
        mlflow.log_metrics(dict(metrics), step=training.numbered(epoch), dataset=dataset)
    unsent.log_state(interrupted.state, models)
    if not Path(interrupted.source).is_dir():
        close_interrupted(interrupted.source)
    unsent.remove_former(interrupted.source)
    return models


def _conclude(training: Training, history: list[dict[str, float]], models: Mapping[int, str]) -> None:
    """Logs which epoch is best, the curves, and how training went in words."""
    best = max(range(1, len(history) + 1), key=lambda epoch: (history[epoch - 1]["val/expected_reward"], -epoch))
    _, val = split_groups(training.data.groups, training.settings.val_share, training.context.seed)
    diagnosis = diagnose(history, len(val), best)
    title = f"{training.title} (the line marks epoch {best}, which has the highest expected reward)"
    mlflow.log_figure(training_curves(history, title, [best]), "training_curves.png")
    log_checkpoints({training.numbered(epoch): model_id for epoch, model_id in models.items()})
    log_history({training.numbered(epoch): metrics for epoch, metrics in enumerate(history, start=1)})
    record({Tag.BEST_EPOCH: training.numbered(best), Tag.BEST_MODEL: models[best], Tag.DIAGNOSIS: diagnosis})
    set_description(diagnosis)


def _log_model(training: Training, epoch: int, checkpoint: Path) -> str:
    """Logs a checkpoint folder as a model and returns its id."""
    first, train_SD = training.data.groups[0], training.context.resources.features("train").of(training.fusion)
    rows = {"query": [train_SD[first.query_id].tolist()], "candidates": [train_SD[list((first.pool * 4)[:4])].tolist()]}
    name = training.title.lower().replace(" ", "-").replace(".", "-")
    return log_checkpoint(
        f"{name}-epoch-{training.numbered(epoch)}",
        checkpoint,
        epoch=training.numbered(epoch),
        params=training.params(epoch),
        tags={Tag.CHECKPOINT_DIGEST: selector_digest(load_selector(checkpoint)), **(training.override or {})},
        example=pd.DataFrame(rows),
    )
