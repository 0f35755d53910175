"""Ways to make MLflow fail in the middle of a training."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from helpers.projects import run_step
from lever_mlflow.exceptions import LeverError


def failing_from(monkeypatch, name, call):
    """Makes an MLflow function fail from its n-th call with an epoch on, as when the server has gone."""
    function, calls = getattr(mlflow, name), []

    def failing(*arguments, **keywords):
        if keywords.get("step") is not None:
            calls.append(keywords["step"])
            if len(calls) >= call:
                raise MlflowException("API request failed with connection error")
        return function(*arguments, **keywords)

    monkeypatch.setattr(mlflow, name, failing)
    return calls


def lose_connection(monkeypatch, make_step, *, epoch):
    """Runs a step that MLflow leaves alone when it logs this epoch's metrics."""
    with monkeypatch.context() as patch:
        failing_from(patch, "log_metrics", epoch)
        with pytest.raises(LeverError, match="connection error"):
            run_step(make_step)
