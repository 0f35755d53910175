"""Commands that are printed for users to paste."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow

__all__ = ["ui_command"]


def ui_command() -> str:
    """Returns the command that opens the MLflow UI on the store in use, and the address of the active run in it."""
    active = mlflow.active_run()
    assert active is not None, "ui_command needs an active run"
    page = f"/#/experiments/{active.info.experiment_id}/runs/{active.info.run_id}"
    uri = mlflow.get_tracking_uri()
    if uri.startswith("http"):
        return uri + page
    return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}   # then open http://127.0.0.1:5000{page}"
