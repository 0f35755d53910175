"""Training: RCE and GRPO behind the data gate, with a checkpoint, metrics and a state to go on from per epoch."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from lever_mlflow import tracking
from lever_mlflow.checkpoint import save_selector, selector_digest
from lever_mlflow.curves import training_curves
from lever_mlflow.diagnosis import diagnose
from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.group_batches import split_groups
from lever_mlflow.rl_data import RLData, check_fits
from lever_mlflow.selector import PointerSelector
from lever_mlflow.steps.context import Context
from lever_mlflow.steps.data import Verdict, pass_gate
from lever_mlflow.tracking import TAG
from lever_mlflow.train_grpo import train_grpo
from lever_mlflow.train_rce import train_rce
from lever_mlflow.training import Epoch, TrainingState
from lever_mlflow.training_state import load_state, save_state
from lever_mlflow.types import Fusion, GrpoSettings, RceSettings

__all__ = ["FindInterrupted", "Interrupted", "find_state", "train_by_grpo", "train_by_rce"]

STATES_FOLDER, STATE_TAG = "training_states", "state_epoch"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interrupted:
    """A run that ended before its training did: its last whole state, and the models of the epochs until then."""

    run_id: str
    state: TrainingState
    models: Mapping[int, str]


FindInterrupted = Callable[[], Interrupted | None]  # looks for one, once inside the run that may go on from it


@dataclass(frozen=True)
class _Training:
    """What the epochs of one training run share, for the log."""

    context: Context
    step: str
    data: RLData
    origin: Mapping[str, Any]
    override: Mapping[str, str]
    val_share: float
    fusion: Fusion

    @property
    def title(self) -> str:
        return f"GRPO beta {self.origin['kl_beta']:g}" if "kl_beta" in self.origin else "RCE"


def train_by_rce(context: Context, data: RLData, verdict: Verdict, settings: RceSettings, interrupted: FindInterrupted) -> None:
    """RCE behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = pass_gate(context, data, verdict())
    earlier = interrupted()
    epochs = train_rce(
        data,
        context.resources.features("train").of(settings.fusion),
        settings,
        seed=context.seed,
        reward_mode=context.reward_mode,
        device=context.resources.torch_device,
        state=None if earlier is None else earlier.state,
    )
    origin = {"rl_data_digest": data.digest}
    _log_training(_Training(context, "rce", data, origin, override, settings.val_share, settings.fusion), epochs, earlier)


def train_by_grpo(
    context: Context,
    data: RLData,
    verdict: Verdict,
    start: PointerSelector,
    start_override: Mapping[str, str],
    settings: GrpoSettings,
    interrupted: FindInterrupted,
) -> None:
    """GRPO from ``start`` behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = {**start_override, **pass_gate(context, data, verdict())}
    earlier = interrupted()
    fusion = start.fusion
    epochs = train_grpo(
        start,
        data,
        context.resources.features("train").of(fusion),
        settings,
        seed=context.seed,
        reward_mode=context.reward_mode,
        device=context.resources.torch_device,
        state=None if earlier is None else earlier.state,
    )
    origin = {"rl_data_digest": data.digest, "start_digest": selector_digest(start), "kl_beta": settings.kl_beta}
    _log_training(_Training(context, "grpo", data, origin, override, settings.val_share, fusion), epochs, earlier)


def find_state(run_id: str) -> Interrupted:
    """The newest whole training state that a run left.

    Raises:
        CheckpointError: it left none.
    """
    for path in reversed(tracking.list_artifacts(run_id, STATES_FOLDER)):
        try:
            state, meta = load_state(tracking.artifact(run_id, path))
            return Interrupted(run_id, state, {int(epoch): model for epoch, model in meta["models"].items()})
        except CheckpointError as error:
            log.warning("%s", error)
    raise CheckpointError(f"run {run_id}: no whole training state to go on from; train anew with resume=none")


def _log_training(training: _Training, epochs: Iterator[Epoch], earlier: Interrupted | None) -> None:
    """Logs each epoch as it comes, those of an interrupted run first, and at the end which is best and what it all came to."""
    dataset = tracking.rl_dataset(training.data)
    models: dict[int, str] = {}
    history: list[dict[str, float]] = []
    if earlier is not None:
        models, history = dict(earlier.models), [dict(metrics) for metrics in earlier.state.history]
        log.info("goes on after epoch %d of run %s", len(history), earlier.run_id)
        mlflow.set_tag(f"{TAG}resumed_from", earlier.run_id)
        for epoch, metrics in enumerate(history, start=1):
            mlflow.log_metrics(metrics, step=epoch, dataset=dataset)
        _log_state(earlier.state, models)
    for epoch, metrics, selector, state in epochs:
        models[epoch] = _log_epoch_model(training, epoch, selector)
        mlflow.log_metrics(tracking.finite(metrics), step=epoch, model_id=models[epoch], dataset=dataset)
        history.append(metrics)
        _log_state(state, models)
    best = max(range(1, len(history) + 1), key=lambda epoch: (history[epoch - 1]["expected_reward"], -epoch))
    _, val = split_groups(training.data.groups, training.val_share, training.context.seed)
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


def _log_epoch_model(training: _Training, epoch: int, selector: PointerSelector) -> str:
    """Logs a checkpoint as a model and returns its id."""
    first, train_SD = training.data.groups[0], training.context.resources.features("train").of(training.fusion)
    rows = {"query": [train_SD[first.query_id].tolist()], "candidates": [train_SD[list(first.pool[:4])].tolist()]}
    meta = {"epoch": epoch, "seed": training.context.seed, **training.origin}
    name = training.title.lower().replace(" ", "-").replace(".", "-")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_selector(path, selector, {"step": training.step, **meta, **training.override})
        return tracking.log_checkpoint(
            f"{name}-epoch-{epoch}",
            path,
            epoch=epoch,
            params=meta,
            tags={"checkpoint_digest": selector_digest(selector), **training.override},
            example=pd.DataFrame(rows),
        )


def _log_state(state: TrainingState, models: Mapping[int, str]) -> None:
    """Logs a state after everything else of its epoch, so that an epoch that can be gone on from is whole."""
    epoch = len(state.history)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"epoch-{epoch:04d}"
        save_state(path, state, {"models": dict(models)})
        mlflow.log_artifact(str(path), STATES_FOLDER)
    mlflow.set_tag(f"{TAG}{STATE_TAG}", str(epoch))
