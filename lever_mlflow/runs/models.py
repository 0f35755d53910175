"""Notes which logged models a run stands for, by epoch, and reads them again."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow

from lever_mlflow.runs.artifacts import as_recorded, list_artifacts, log_json, read_json

__all__ = ["checkpoints_of", "log_checkpoints", "logged_models_of"]

CHECKPOINTS_FILE = "checkpoints.json"


def log_checkpoints(models: Mapping[int, str]) -> None:
    """Logs the ids of a training's logged models by epoch in the active run."""
    log_json({str(epoch): model_id for epoch, model_id in models.items()}, CHECKPOINTS_FILE)


def checkpoints_of(run_id: str) -> dict[int, str]:
    """Returns the ids of a finished training's logged models by epoch.

    Raises:
        DataError: the run does not hold them.
    """
    with as_recorded(f"run {run_id}", f"artifact {CHECKPOINTS_FILE}"):
        return {int(epoch): str(model_id) for epoch, model_id in read_json(run_id, CHECKPOINTS_FILE).items()}


def logged_models_of(run_id: str) -> set[str]:
    """Returns the ids of the models that a run logged, and of those by epoch that others logged for it."""
    outputs = mlflow.get_run(run_id).outputs
    logged = {output.model_id for output in outputs.model_outputs} if outputs else set()
    return logged | ({*checkpoints_of(run_id).values()} if CHECKPOINTS_FILE in list_artifacts(run_id, "") else set())
