"""Runs commands: errors as one line with an exit code, and several processes as one run."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import wraps
from typing import Any, TextIO

import click

from lever_mlflow.cli.options import options
from lever_mlflow.exceptions import LeverError, StoreError
from lever_mlflow.files.atomic import mark_temporary_files
from lever_mlflow.files.control_characters import without_controls
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.launch import check_switches, launch_of
from lever_mlflow.settings import OutputSettings
from lever_mlflow.shortages import in_one_line

__all__ = ["in_processes", "launch", "say", "with_output"]

_PACKAGE = "lever_mlflow"
_LONGEST_ERROR = 2_000  # characters of an error's line, which may quote what a file holds
_ENVIRONMENT = {  # what a user has set stays; child processes have these too
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing here reports to third parties
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for each small file hides the log
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run on a tracking server
}


def launch(command: click.Command, arguments: Sequence[str] | None = None) -> None:
    """Runs a click command on these arguments, by default those of the process.

    An error that a user can mend ends as one line on stderr and a non-zero exit code. Passwords and tokens in URLs are masked
    in all that is written on stdout and stderr.
    """
    with _masked_output():
        _quieten()
        mark_temporary_files()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets SIGHUP
                signal.signal(number, _terminate)
        _run(command, arguments)


def _run(command: click.Command, arguments: Sequence[str] | None) -> None:
    """Runs a command, and ends the process where it fails."""
    name = command.name or ""
    try:
        os.getcwd()  # fails where the working folder was deleted, of which libraries below Python would crash
        command.main(arguments, standalone_mode=False)
    except click.UsageError as error:
        _describe_run(name, error.format_message())
        _fail(error.format_message(), error.exit_code)
    except StoreError as error:  # and so the run cannot be described either
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _describe_run(name, "interrupted")
        _fail("interrupted", 130)
    except Exception as error:
        message = str(error) if isinstance(error, LeverError) else in_one_line(error)
        if message is None:
            raise
        _describe_run(name, message)
        _fail(message, 1)


def say(text: str) -> None:
    """Writes a text to stdout, without control characters, and with one line break at its end."""
    click.echo(without_controls(text.removesuffix("\n")))


def in_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Lets a command run in all processes that ``accelerate launch`` started: the leader runs it, the others follow."""

    @wraps(command)
    def run(**values: Any) -> None:
        check_switches(os.environ)
        if launch_of(os.environ) is None:  # many commands need no PyTorch, whose import takes a second
            command(**values)
            return
        from lever_mlflow import distributed
        from lever_mlflow.pipeline.resources import Resources

        processes = distributed.join(Resources(device=values["device"]).torch_device)
        with distributed.lost_processes_named(processes):
            if not processes.is_main_process:
                logging.disable(logging.WARNING)  # the leader says it all
                # a follower has nothing to close, and waits in code that hears no signal
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                distributed.follow(processes)
                return
            command(**values)
            distributed.release(processes)

    return run


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the settings of the output to a command and applies them; the command itself does not see them."""

    @options(OutputSettings)
    @wraps(command)
    def run(verbose: bool, **values: Any) -> None:
        logging.getLogger(_PACKAGE).setLevel(logging.DEBUG if verbose else logging.INFO)
        command(**values)

    return run


def _quieten() -> None:
    """Shows this package's log, and of other packages' only warnings and errors."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs tracebacks; we say the same in one line
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")  # hints on schemas that we state ourselves
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Console()])
    logging.getLogger(_PACKAGE).setLevel(logging.INFO)


@contextmanager
def _masked_output() -> Iterator[None]:
    """Masks the secrets of URLs in all that is written within the block, by whomever: log, warnings, tracebacks, libraries."""
    with redirect_stdout(_Masked(sys.stdout)), redirect_stderr(_Masked(sys.stderr)):
        try:
            yield
        except Exception:
            traceback.print_exc()  # here, where it is masked
            sys.exit(1)
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:  # as on a full disk, which has been said
                    _write_nowhere(stream)


def _write_nowhere(stream: TextIO) -> None:
    """Lets a stream lead nowhere, also for what Python still holds back and would write at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Masked:
    """Is a stream that masks the secrets of URLs in what is written, and is otherwise the stream that it is made of.

    Where nobody reads it any more, as behind ``| head`` or when the terminal is closed, the rest is written nowhere.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes a text without secrets."""
        with self._read_by_somebody():
            self._stream.write(without_secrets(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        with self._read_by_somebody():
            self._stream.flush()

    @contextmanager
    def _read_by_somebody(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                error.filename = self._stream.name
                raise
            _write_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Console(logging.StreamHandler[TextIO]):
    """Writes the log to stderr, above a progress bar where there is one, and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the text of a record."""
        return without_controls(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, unless it says what a bar on this terminal shows."""
        from tqdm import tqdm

        from lever_mlflow.progress import REACHED

        if hasattr(record, REACHED) and self.stream.isatty():
            return
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def _describe_run(name: str, reason: str) -> None:
    """Says of the run that ``mlflow run`` made why its command failed, where that was before the run was opened."""
    if "MLFLOW_RUN_ID" in os.environ:
        from lever_mlflow.runs.steps import describe_unopened_run

        describe_unopened_run(os.environ["MLFLOW_RUN_ID"], name, reason)


def _terminate(number: int, frame: Any) -> None:
    """Ends as on an error, so that what is open is closed and the run marked FAILED."""
    _fail("terminated", 128 + number)


def _fail(message: str, code: int) -> None:
    line = without_secrets(without_controls(" ".join(message.split())))
    shown = line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 3]}..."
    click.echo(f"error: {shown}", err=True)
    sys.exit(code)
