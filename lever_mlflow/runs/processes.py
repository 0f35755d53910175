"""Tells whether the process of a run is still there, and closes runs whose process is gone."""

from __future__ import annotations

import os
import socket

import mlflow
import psutil
from mlflow.entities import Run

from lever_mlflow.runs.tags import Tag, tags_of

__all__ = ["close_interrupted", "is_training", "this_process"]

_PARENT = "mlflow.parentRunId"  # MLflow's own tag


def this_process() -> str:
    """Names this process by machine, number and start, for the tag by which others see whether it is still there."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_training(run: Run) -> bool | None:
    """Says whether the process of a run that is RUNNING is still there; None if the process is another machine's."""
    if run.info.status != "RUNNING":
        return False
    host, number, started = tags_of(run).get(Tag.PROCESS, "? 0 0").rsplit(" ", 2)
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(number))
        return process.status() != psutil.STATUS_ZOMBIE and f"{process.create_time():.2f}" == started
    except psutil.NoSuchProcess:
        return False


def close_interrupted(run_id: str) -> None:
    """Marks a run as KILLED whose process ended without marking it, and its parents likewise where their process is gone.

    Otherwise such runs would seem to run for ever.
    """
    run = mlflow.get_run(run_id)
    gone = True
    while gone and run.info.status == "RUNNING":
        mlflow.MlflowClient().set_terminated(run.info.run_id, "KILLED")
        parent = run.data.tags.get(_PARENT)
        if parent is None:
            return
        run = mlflow.get_run(parent)
        gone = is_training(run) is False
