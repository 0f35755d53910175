"""Runs commands: errors as one line with an exit code, and several processes as one run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from lever_mlflow.exceptions import LeverError

__all__ = ["in_processes", "launch"]


def launch(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Runs a click command on these arguments, by default those of the process.

    An error that a user can mend ends as one line on stderr and a non-zero exit code.
    """
    _quieten()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(arguments, standalone_mode=False)
    except click.UsageError as error:
        _fail(error.format_message(), error.exit_code)
    except (LeverError, OSError) as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)


def in_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command run in all processes that ``accelerate launch`` started: the leader runs it, the others follow."""

    @wraps(command)
    def run(**values: Any) -> None:
        from lever_mlflow import distributed
        from lever_mlflow.pipeline.resources import Resources

        processes = distributed.join(Resources(device=values["device"]).torch_device)
        if not processes.is_main_process:
            distributed.follow(processes)
            return
        command(**values)
        distributed.release(processes)

    return run


def _quieten() -> None:
    """Shows this package's log, and keeps what hides it or leaves the machine from MLflow's."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file hides the log
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing here reports to third parties
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")  # hints on schemas that we state ourselves
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lever_mlflow").setLevel(logging.INFO)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # a line for each checkpoint's input example


def _terminate(number: int, frame: Any) -> None:
    """Ends as on an error, so that what is open is closed and the run marked FAILED."""
    _fail("terminated", 128 + number)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
