"""Records on each run which process works on it, and closes runs whose process is gone.

A process that is killed cannot close its run, which would stay RUNNING for ever. So each run has a tag that names its process.
A later process closes the run if it sees that the process is gone. One that cannot see this leaves the run alone.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

from lever_mlflow.process_identity import is_there, this_process
from lever_mlflow.runs.clock import end_not_before_the_start
from lever_mlflow.runs.stores import is_of_the_store
from lever_mlflow.runs.tags import DESCRIPTION, PREFIX, Tag, prefixed, tags_of

__all__ = ["close_interrupted", "close_runs_without_process", "is_running", "run_of_this_process"]

_PARENT = "mlflow.parentRunId"  # MLflow's own tag
_SHOWN = 5  # runs named in a line of the log

log = logging.getLogger(__name__)


@contextmanager
def run_of_this_process(**arguments: Any) -> Iterator[Run]:
    """Opens a run as ``mlflow.start_run`` does, and names this process on it for as long as the run is open.

    A run that ends by an exception keeps the name. Where the clock was set back meanwhile, the run ends when it began.
    """
    process = prefixed({Tag.PROCESS: this_process()})
    with ExitStack() as ending, mlflow.start_run(**arguments, tags=process) as run:
        ending.callback(end_not_before_the_start, run)
        try:
            yield run
        except Exception as error:
            if is_of_the_store(error) or is_of_the_store(error.__cause__):
                ending.enter_context(_without_patience())
            raise
    with suppress(MlflowException):  # the run has ended, and the tag of an ended run means nothing
        mlflow.MlflowClient().delete_tag(run.info.run_id, f"{PREFIX}{Tag.PROCESS}")


@contextmanager
def _without_patience() -> Iterator[None]:
    """Has MLflow ask a server once within the block: after minutes without it, no minutes more are spent on each open run."""
    former = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw()
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
    try:
        yield
    finally:
        if former is None:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
        else:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(former)


def is_running(run: Run) -> bool | None:
    """Says whether a run is RUNNING and its process is still there; None where the process cannot be seen from here."""
    if run.info.status != "RUNNING":
        return False
    return is_there(tags_of(run).get(Tag.PROCESS, ""))


def close_runs_without_process() -> None:
    """Marks as KILLED the runs of the active run's experiment that are RUNNING without a process; the log names them."""
    active = mlflow.active_run()
    assert active is not None, "runs are looked up from within a run"
    closed = []
    with suppress(MlflowException):  # on a server with permissions, the runs of others may not be changed
        runs = mlflow.search_runs(
            experiment_ids=[active.info.experiment_id],
            filter_string=f"attributes.status = 'RUNNING' and tags.`{PREFIX}{Tag.PROCESS}` LIKE '{socket.gethostname()} %'",
            output_format="list",
        )
        closed += [f"{run.info.run_name} (run {run.info.run_id})" for run in runs if is_running(run) is False and _close(run)]
    if closed:
        more = f" and {len(closed) - _SHOWN} more" if len(closed) > _SHOWN else ""
        log.info("marked as KILLED, since their processes are gone: %s%s", ", ".join(closed[:_SHOWN]), more)


def close_interrupted(run_id: str) -> None:
    """Marks a run as KILLED whose process ended without marking it, and its parents likewise where their process is gone."""
    run = mlflow.get_run(run_id)
    gone = True
    while gone and _close(run):
        parent = run.data.tags.get(_PARENT)
        if parent is None:
            return
        run = mlflow.get_run(parent)
        gone = is_running(run) is False


def _close(run: Run) -> bool:
    """Marks a run as KILLED whose process is gone, and says whether it was still RUNNING.

    The status is read again: the process may have ended its run after this one had looked at it.
    """
    client, run_id = mlflow.MlflowClient(), run.info.run_id
    now = client.get_run(run_id)
    if now.info.status != "RUNNING":
        return False
    client.set_tag(run_id, f"{PREFIX}{Tag.KILLED}", "its process was gone, and had not closed it")
    if DESCRIPTION not in now.data.tags:
        client.set_tag(run_id, DESCRIPTION, "killed: its process ended without closing this run; a later command closed it")
    client.set_terminated(run_id, "KILLED")
    return True
