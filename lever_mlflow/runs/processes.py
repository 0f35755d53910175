"""Records on each run which process works on it, and closes runs whose process is gone.

A process that is killed cannot close its run, which would stay RUNNING for ever. So each run has a tag that names its process
by the machine's host name, id and boot, the PID namespace, the number and the start. A later process of the same machine, boot
and PID namespace sees whether that process is still there. After a restart of the machine, it is gone. Any other process cannot
know that, and leaves the run alone.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException

from lever_mlflow.runs.clock import end_not_before_the_start
from lever_mlflow.runs.stores import is_of_the_store
from lever_mlflow.runs.tags import DESCRIPTION, PREFIX, Tag, prefixed, tags_of

__all__ = ["close_interrupted", "close_runs_left", "is_running", "run_of_this_process", "this_process"]

_PARENT = "mlflow.parentRunId"  # MLflow's own tag
_SHOWN = 5  # runs named in a line of the log
_OF_MACHINE = "pid:[4026531836]"  # PID namespace outside of all containers (PROC_PID_INIT_INO in Linux)
_STATE, _START = 0, 19  # of the fields of /proc/<pid>/stat that follow the name: proc_pid_stat(5) counts them as 3 and 22

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


def this_process() -> str:
    """Names this process for the tag by which others see whether it is still there."""
    return f"{_place()} {os.getpid()} {_started(os.getpid())}"


def is_running(run: Run) -> bool | None:
    """Says whether a run is RUNNING and its process is still there; None where the process cannot be seen from here."""
    if run.info.status != "RUNNING":
        return False
    place, number, started = (["", "", "", *tags_of(run).get(Tag.PROCESS, "").rsplit(" ", 2)])[-3:]
    if _before_restart(place):
        return False
    if place != _place() or "?" in place or not number.isdecimal():
        return None
    try:
        os.kill(int(number), 0)  # sends nothing, but fails where there is no such process
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's, and what follows may not be readable
        pass
    now = _started(int(number))
    return None if now is None else now == started


def close_runs_left() -> None:
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


def _place() -> str:
    """Names what the number of a process counts in: host name, machine, boot and PID namespace; ``?`` for what is not told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = "?", "?"
    return f"{socket.gethostname()} {_machine()} {boot} {namespace}"


def _machine() -> str:
    """Returns the id of this installation of the system, machine-id(5); ``-`` where it has none."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or "-"
    except (OSError, ValueError):
        return "-"


def _before_restart(place: str) -> bool:
    """Says whether a place is this machine before it was started anew, after which none of its processes is there.

    Of containers this cannot be said: those of one image may have the same names on several machines.
    """
    then, now = place.split(" "), _place().split(" ")
    same_machine = then[:2] == now[:2] and now[1] != "-" and then[3:] == now[3:] == [_OF_MACHINE]
    return same_machine and then[2] != now[2]


def _started(number: int) -> str | None:
    """Returns when a process started, in clock ticks since the boot; empty for a zombie, None where it cannot be read.

    Unlike a time of day, this is the same whatever happens to the clock.
    """
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in brackets may hold spaces and brackets
    return "" if fields[_STATE] in "ZX" else fields[_START]
