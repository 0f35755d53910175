"""Passwords and tokens in URLs are shown nowhere: not on the terminal, and not in what MLflow holds."""

import os
import subprocess
import sys

import click
import mlflow
import pytest
from helpers.projects import ROOT
from mlflow import MlflowClient

from lever_mlflow import invocation
from lever_mlflow.cli.launching import launch
from lever_mlflow.exceptions import DataError
from lever_mlflow.runs.links import ui_command
from lever_mlflow.runs.steps import Step, project_run, run_here
from lever_mlflow.runs.tags import Tag, record, set_description

SECRET = "hunter2"
URL = f"http://me:{SECRET}@host/v1?api_key={SECRET}&page=2"
MASKED = "http://***@host/v1?api_key=***&page=2"


LEAVING = f"""
import logging, sys, warnings
import click
from lever_mlflow.cli.launching import launch

def leave():
    click.echo("{URL}")
    print("{URL}")
    click.echo("{URL}", err=True)
    sys.stderr.write("{URL}")
    logging.getLogger("lever_mlflow").info("at %s", "{URL}")
    logging.getLogger("another").warning("at %s", "{URL}")
    warnings.warn("{URL}")
    import mlflow
    logging.getLogger("mlflow").error("at {URL}")
    print("{URL}", file=mlflow.utils.logging_utils.MLFLOW_LOGGING_STREAM)

launch(click.Command("x", callback=leave), [])
"""


def test_whatever_a_command_writes_is_masked(tmp_path):
    ended = subprocess.run([sys.executable, "-c", LEAVING], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.count(MASKED) == 2
    assert ended.stderr.count(MASKED) >= 7
    assert SECRET not in ended.stdout + ended.stderr


def fails(error):
    def raise_it():
        raise error

    return raise_it


@pytest.mark.parametrize("error", [DataError(f"{URL}: no"), click.UsageError(URL), OSError(URL), ZeroDivisionError(URL)])
def test_errors_and_tracebacks_are_masked(error, capfd):
    with pytest.raises(SystemExit) as end:
        launch(click.Command("x", callback=fails(error)), [])
    output = "".join(capfd.readouterr())
    assert end.value.code != 0
    assert MASKED in output
    assert SECRET not in output


def everything(run_id):
    """Returns all that MLflow holds of a run, as one text."""
    data = mlflow.get_run(run_id).data
    files = [mlflow.artifacts.load_text(f"runs:/{run_id}/{item.path}") for item in MlflowClient().list_artifacts(run_id)]
    return "\n".join([*map(str, data.params.items()), *map(str, data.tags.items()), *files])


def test_what_mlflow_holds_is_masked(mlflow_store, tmp_path):
    def execute():
        record({Tag.START: URL, Tag.GATE_OVERRIDE: URL})
        set_description(f"from {URL}")

    with project_run(f"at {URL}"):
        step = Step(
            "rollout", f"rollout {URL}", {"vlm": URL}, {Tag.RL_DATA_SOURCE: URL}, execute, {"dataset": URL}, {"vlm": URL}
        )
        run_id = run_here(step)
    with pytest.raises(DataError), project_run("failing") as run:
        raise DataError(URL)
    contents = everything(run_id) + everything(run.info.run_id)
    assert contents.count(MASKED) >= 9
    assert SECRET not in contents
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_commands_to_paste_hold_no_secret(mlflow_store, monkeypatch):
    with mlflow.start_run():
        assert f"--backend-store-uri {mlflow_store} " in ui_command()
        monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"postgresql://me:{SECRET}@h/db")
        assert '--backend-store-uri "$MLFLOW_TRACKING_URI" ' in ui_command()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://h/db?password={SECRET}")
    invocation.begin({}, {})
    assert SECRET not in invocation.command("grpo")


def test_a_command_as_a_whole(make_store, tmp_path):
    uri = f"{make_store(tmp_path)}?password={SECRET}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "x", "LEVER_MLFLOW_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "entrypoints.grpo", "-v", "--vlm", URL, "--config", f"/no/{URL}"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "***" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
