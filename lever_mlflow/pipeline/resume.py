"""Leaves a training state after every epoch on this machine's disk and in MLflow, and finds it again to go on from."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import torch

from lever_mlflow.exceptions import CheckpointError, ParameterError
from lever_mlflow.runs.artifacts import artifact, as_recorded, delete_artifacts, list_artifacts
from lever_mlflow.runs.processes import is_running
from lever_mlflow.runs.search import describe, find_runs
from lever_mlflow.runs.steps import Step, active_run, run_settings
from lever_mlflow.runs.tags import Tag, record, remove_tags, run_tags
from lever_mlflow.runs.whole import lack_of_model
from lever_mlflow.settings import AUTO, NONE
from lever_mlflow.training.loop import TrainingState
from lever_mlflow.training.state import load_state, save_state

__all__ = ["Interrupted", "UnsentEpochs", "check_same_step", "find_state", "interrupted_training"]

STATES_FOLDER = "training_states"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interrupted:
    """Holds a training that ended early: its last whole state, and the checkpoints of its epochs.

    Attributes:
        source: the run's id, or the folder in which the run left what it could not send to MLflow.
        models: ids of the logged models, by epoch; ``unsent`` are the checkpoints that were not logged.
        key: of the training's step.
        threads: of torch, that the training ran with.
    """

    source: str
    state: TrainingState
    models: Mapping[int, str]
    unsent: Mapping[int, Path]
    key: str
    threads: int


@dataclass(frozen=True)
class UnsentEpochs:
    """Names the folder that holds a training's checkpoints and its last state until everything has arrived in MLflow.

    ``key`` is that of the training's step.
    """

    folder: Path
    key: str

    def checkpoint(self, epoch: int) -> Path:
        """Names the folder of an epoch's checkpoint."""
        return _checkpoint(self.folder, epoch)

    @property
    def hold_a_state(self) -> bool:
        """Says whether there is a state to go on from."""
        return any(_states(self.folder))

    def save_state(self, state: TrainingState, models: Mapping[int, str]) -> None:
        """Writes a state to disk, and then removes the state before it; ``models`` are the logged models by epoch."""
        former = list(_states(self.folder))
        save_state(self.folder / f"state-{len(state.history):04d}", state, self._meta(models))
        for path in former:
            shutil.rmtree(path, ignore_errors=True)

    def log_state(self, state: TrainingState, models: Mapping[int, str]) -> None:
        """Logs a state after everything else of its epoch, so that an epoch that can be gone on from is whole.

        The states of earlier epochs are then deleted, as nothing needs them any more.
        """
        epoch, run_id = len(state.history), active_run().info.run_id
        name = f"epoch-{epoch:04d}"
        former = [path for path in _logged_states(run_id) if path != f"{STATES_FOLDER}/{name}"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            save_state(path, state, self._meta(models))
            mlflow.log_artifact(str(path), STATES_FOLDER)
        record({Tag.STATE_EPOCH: epoch})
        for earlier in former:
            delete_artifacts(run_id, earlier)

    def remove_former(self, source: str) -> None:
        """Removes what an interrupted run left in the folder of unsent epochs, once all of it is here; nothing outside of it.

        Args:
            source: the run's id, or the folder in which the run left its epochs.
        """
        folder = (Path(source) if Path(source).is_dir() else self.folder.parent / source).resolve()
        if folder.parent == self.folder.parent.resolve() and re.fullmatch(r"[0-9a-f]{32}", folder.name):
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Removes the folder and the state in MLflow, once the training is finished and everything has arrived."""
        shutil.rmtree(self.folder, ignore_errors=True)
        remove_tags(Tag.STATE_EPOCH)
        run_id = active_run().info.run_id
        states = _logged_states(run_id)
        for path in [STATES_FOLDER] if states == list_artifacts(run_id, STATES_FOLDER) else states:
            delete_artifacts(run_id, path)

    def remove_interrupted(self, step: Step) -> None:
        """Removes what runs of a step that ended early left on this machine's disk, once the step has finished."""
        for run in find_runs(step.step, {Tag.KEY: step.key}, unfinished=True):
            if is_running(run) is False:
                self.remove_former(run.info.run_id)

    def _meta(self, models: Mapping[int, str]) -> dict[str, Any]:
        return {"models": dict(models), "key": self.key, "threads": torch.get_num_threads()}


def interrupted_training(step: Step, resume: str) -> Interrupted | None:
    """Finds the training to go on from.

    Args:
        resume: ``auto`` for the newest unfinished run of exactly this step whose process is gone; ``none``; or the training
            itself, by the run's id or the folder that it left.

    Raises:
        ParameterError: the training is of another step, or of other settings, data or code; or it is still running.
        CheckpointError: it left nothing to go on from.
    """
    if resume == NONE:
        return None
    if resume == AUTO:
        return _newest_interrupted(step)
    if not Path(resume).is_dir():
        check_same_step(step, resume)
    interrupted = find_state(resume)
    if interrupted.key != step.key:
        raise _refusal(step, resume)
    return interrupted


def check_same_step(step: Step, run_id: str) -> None:
    """Checks that an interrupted run is of exactly this step.

    Raises:
        ParameterError: it is of another step, or of other settings, data or code; or it is still running.
    """
    if not _is_run_of(step, run_id):
        raise _refusal(step, run_id)


def find_state(source: str) -> Interrupted:
    """Reads the newest whole training state that a run logged, or left in a folder when it could not log it.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(source)
    if folder.is_dir():
        places: Iterator[Path] = _states(folder)
    else:
        places = (artifact(source, path) for path in reversed(_logged_states(source)))
    for place in places:
        try:
            state, meta = load_state(place)
        except CheckpointError as error:
            log.warning("%s", error)
            continue
        with as_recorded(str(place), "meta of the training state"):
            recorded, key = {int(epoch): str(model) for epoch, model in meta["models"].items()}, str(meta["key"])
        models = {epoch: model for epoch, model in recorded.items() if not lack_of_model(model)}
        missing = [epoch for epoch in range(1, len(state.history) + 1) if epoch not in models]
        unsent = {epoch: _checkpoint(folder, epoch) for epoch in missing}
        if gone := [str(epoch) for epoch, path in unsent.items() if not path.is_dir()]:
            log.warning("%s: the checkpoints of its epochs %s are gone", source, ", ".join(gone))
            continue
        return Interrupted(source, state, models, unsent, key, meta.get("threads", 0))
    raise CheckpointError(f"{source}: no whole training state to go on from")


def _newest_interrupted(step: Step) -> Interrupted | None:
    """Finds what the newest run of this step left that has not finished and whose process is gone."""
    for run in find_runs(step.step, {Tag.KEY: step.key}, having=Tag.STATE_EPOCH, unfinished=True):
        running = is_running(run)
        if running:
            log.info("%s trains the same just now; starting over beside it", describe(run))
        elif running is None:
            message = (
                "%s seems to train the same on another machine or in another container; if it was interrupted, give resume=%s"
            )
            log.warning(message, describe(run), run.info.run_id)
        else:
            try:
                return find_state(run.info.run_id)
            except CheckpointError as error:
                log.warning("%s; starting over", error)
                return None
    return None


def _is_run_of(step: Step, run_id: str) -> bool:
    """Says whether a run is of exactly this step; a run that is still training is refused."""
    tags = run_tags(run_id)
    if is_running(mlflow.get_run(run_id)):
        raise ParameterError(f"resume={run_id}: that run is still training on this machine; wait for it, or stop it first")
    return tags.get(Tag.KEY) == step.key


def _refusal(step: Step, source: str) -> ParameterError:
    """Returns the error for a run or a folder that is not of this step."""
    return ParameterError(f"resume={source}: {_difference(step, source)}; give the same parameters, or resume=none")


def _difference(step: Step, source: str) -> str:
    """Says in words what keeps a run, or what a run left in a folder, from being of this step."""
    if Path(source).is_dir():
        return "that training was of another step, or of other settings, data or code"
    tags = run_tags(source)
    if tags.get(Tag.STEP) != step.step:
        return f"that is a {tags.get(Tag.STEP, 'foreign')} run, not {step.step}"
    before, now = run_settings(source), json.loads(json.dumps(dict(step.settings)))
    settings = [f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value]
    inputs = [str(name) for name, value in step.inputs.items() if tags.get(name) != str(value)]
    return f"that run differs: {'; '.join(settings or inputs or ['code of the package'])}"


def _logged_states(run_id: str) -> list[str]:
    """Lists the states that a run has logged, oldest first; anything else in their folder is not ours."""
    return [path for path in list_artifacts(run_id, STATES_FOLDER) if re.fullmatch(rf"{STATES_FOLDER}/epoch-\d{{4,}}", path)]


def _states(folder: Path) -> Iterator[Path]:
    """Yields the states in a folder, newest first."""
    return iter(sorted(folder.glob("state-*"), reverse=True))


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"checkpoint-{epoch:04d}"
