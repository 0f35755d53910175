"""Links to pages of the MLflow UI, for descriptions in the UI and for users to open."""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

import mlflow

from lever_mlflow import invocation
from lever_mlflow.files.urls import without_secrets

__all__ = ["run_link", "run_page", "server_address", "ui_command"]

_MODEL_TRAINING = "?workflowType=machine_learning"  # without it the UI opens in its mode for generative AI


def run_page(run_id: str, artifact: str = "") -> str:
    """Returns the address of a run, or of one of its artifacts, within the MLflow UI."""
    experiment = mlflow.get_run(run_id).info.experiment_id
    place = f"/artifacts/{artifact}" if artifact else ""
    return f"#/experiments/{experiment}/runs/{run_id}{place}{_MODEL_TRAINING}"


def run_link(run_id: str, artifact: str = "", text: str = "") -> str:
    """Returns a Markdown link to a run, or to one of its artifacts; its text is the run's name, or the artifact's path."""
    text = text or artifact or mlflow.get_run(run_id).info.run_name
    return f"[{text}]({run_page(run_id, artifact)})"


def server_address(tracking_uri: str) -> str:
    """Returns the address of the tracking server, without a slash at its end; empty where runs are kept without a server.

    A user name and password in it are left out, because the address is shown to others.
    """
    server = urlsplit(tracking_uri)
    if server.scheme not in ("http", "https"):
        return ""
    return server._replace(netloc=server.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def ui_command() -> str:
    """Returns the command that opens the MLflow UI on the store in use, and the address of the active run in it."""
    active = mlflow.active_run()
    assert active is not None, "ui_command needs an active run"
    page = run_page(active.info.run_id)
    uri = mlflow.get_tracking_uri()
    if server := server_address(uri):
        return f"{server}/{page}"
    shown = shlex.quote(uri) if uri == without_secrets(uri) else '"$MLFLOW_TRACKING_URI"'
    return f"{invocation.program('mlflow')} ui --backend-store-uri {shown}   # then open http://127.0.0.1:5000/{page}"
