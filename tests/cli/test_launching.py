"""How commands end: what the machine lacks as one line, signals of a terminal that is closed, and output that nobody reads."""

import errno
import os
import signal
import subprocess
import sys

import click
import mlflow
import pytest
import torch
from click.testing import CliRunner
from helpers.projects import ROOT
from mlflow import MlflowClient

from lever_mlflow.cli import step_commands
from lever_mlflow.cli.commands import cli
from lever_mlflow.cli.launching import launch
from lever_mlflow.exceptions import LeverError
from lever_mlflow.runs.steps import project_run

OUTPUT = "launch(click.Command('x', callback=lambda: say('a')), [])"
FAILURE = "launch(click.Command('x', callback=lambda: open('/nowhere')), [])"
RESULTS = ROOT / "tests" / "data" / "predecessor_results.json"


@pytest.fixture(autouse=True)
def _handlers():
    """Gives signals their usual meaning, also where the tests run under nohup, and leaves the handlers as they were."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def ended(callback, capfd):
    """The exit code of a command, and what it wrote on stderr."""
    with pytest.raises(SystemExit) as end:
        launch(click.Command("x", callback=callback), [])
    return end.value.code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "memory does not suffice; free memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), "memory does not suffice (CUDA out of memory. Tried); free"),
        (OSError(errno.ENOSPC, "No space left on device", "/a"), "/a: No space left on device; free some space there"),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_described_on_the_run(error, line, mlflow_store, capfd):
    def fail():
        raise error

    code, errors = ended(fail, capfd)
    assert code == 1
    assert errors.startswith(f"error: {line}")
    assert errors.count("\n") == 1
    with pytest.raises(LeverError), project_run("failing") as run:
        fail()
    run = mlflow.get_run(run.info.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"].startswith(f"failed: {line}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_an_error_does(number, capfd):
    assert ended(lambda: signal.raise_signal(number), capfd) == (128 + number, "error: terminated\n")


def test_a_terminal_that_is_closed_does_not_end_a_command_under_nohup(capfd):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    launch(click.Command("x", callback=lambda: signal.raise_signal(signal.SIGHUP)), [])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("stream", "callback", "code"), [("stdout", OUTPUT, 0), ("stderr", FAILURE, 1)])
def test_output_that_nobody_reads_is_no_error(stream, callback, code):
    script = f"import sys, click; from lever_mlflow.cli.launching import launch, say; {callback}"
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, check=False, **streams)
    os.close(write)
    assert (process.returncode, process.stdout or "", process.stderr or "") == (code, "", "")


def test_output_on_a_full_disk_is_one_line():
    script = f"import click; from lever_mlflow.cli.launching import launch, say; {OUTPUT}"
    with open("/dev/full", "w", encoding="utf-8") as full:
        process = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, text=True, check=False, stdout=full, stderr=subprocess.PIPE
        )
    assert process.returncode == 1
    assert process.stderr.startswith("error: <stdout>: No space left on device; free some space there")
    assert process.stderr.count("\n") == 1


def test_a_working_folder_that_was_deleted_is_said(tmp_path, monkeypatch, capfd):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    line = "error: [Errno 2] No such file or directory; if the working folder was deleted, change to one that is there\n"
    assert ended(lambda: None, capfd) == (1, line)


def test_a_run_whose_result_cannot_be_printed_has_finished(mlflow_store, cache_dir, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    monkeypatch.setattr(step_commands, "say", full)
    result = CliRunner().invoke(cli, ["compare", f"--results={RESULTS}"])
    assert isinstance(result.exception, OSError), result.output
    (run,) = MlflowClient().search_runs(["1"])
    assert (run.data.tags["lever.step"], run.info.status) == ("compare", "FINISHED")
