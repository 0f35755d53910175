"""Tells the run that ``mlflow run`` made for a command from one that a stale ``MLFLOW_RUN_ID`` names.

MLflow lets a process go on in the run that this variable names, whatever run that is. A variable that was left in the
environment would so put the results of a command beside the parameters and results of another one.
"""

from __future__ import annotations

import os

import mlflow
from mlflow.entities import Run

from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.runs.artifacts import living_run
from lever_mlflow.runs.processes import is_running
from lever_mlflow.runs.tags import PREFIX, Tag

__all__ = ["ENTRY_POINT", "OPEN", "RUN_ID", "check_environment_run", "environment_run"]

OPEN = ("RUNNING", "SCHEDULED")  # states of a run that has not ended
RUN_ID, ENTRY_POINT = "MLFLOW_RUN_ID", "mlflow.project.entryPoint"  # MLflow's own variable and tag


def environment_run() -> Run | None:
    """Returns the run that ``MLFLOW_RUN_ID`` names; None where the variable is not set, or a run is active already.

    Raises:
        MissingRunError: there is no such run, or it is in MLflow's bin.
    """
    run_id = os.environ.get(RUN_ID)
    if not run_id or mlflow.active_run() is not None:
        return None
    try:
        return living_run(run_id)
    except MissingRunError as error:
        raise MissingRunError(f"{RUN_ID}={run_id}: {error}; unset {RUN_ID}") from None


def check_environment_run(name: str) -> None:
    """Checks that the run that ``MLFLOW_RUN_ID`` names, if it names one, is one for this command to go on in.

    It is a run that ``mlflow run`` has just made for this entry point, or one that a user has opened for the command.

    Args:
        name: of the entry point; a plan of it is called ``plan of ...``.

    Raises:
        MissingRunError: the run has ended, is worked on by another process, holds the result of a step, or was made for
            another entry point.
    """
    run = environment_run()
    if run is None:
        return
    entry_point = run.data.tags.get(ENTRY_POINT, name)
    if run.info.status not in OPEN:
        reason = f"has ended ({run.info.status})"
    elif is_running(run):
        reason = "is being worked on by another process"
    elif f"{PREFIX}{Tag.KEY}" in run.data.tags:
        reason = "holds the result of a step already"
    elif entry_point not in (name, name.removeprefix("plan of ")):
        reason = f"was made for the entry point {entry_point}"
    else:
        return
    raise MissingRunError(f"{RUN_ID}={run.info.run_id}: that run {reason}, and {name} would write into it; unset {RUN_ID}")
