"""Checks metrics before they are logged, and reads them again by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlflow

from lever_mlflow.exceptions import DataError

__all__ = ["DATA", "ROUNDS", "epoch_metrics", "finite"]

DATA = "data/"  # what the names of figures of the data begin with; they have no epoch
ROUNDS = "rounds/"  # what the names of figures of GRPO's rounds begin with; their step is the round's number


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics that are fit to be logged.

    Raises:
        DataError: one of them is NaN or infinite.
    """
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        raise DataError(f"metrics are not finite: {bad}; lower lr, and check the data with the validate step")
    return dict(metrics)


def epoch_metrics(run_id: str) -> dict[int, dict[str, float]]:
    """Reads the metrics of a training run by epoch, ascending."""
    client = mlflow.MlflowClient()
    epochs: dict[int, dict[str, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith((DATA, ROUNDS)):
            for metric in client.get_metric_history(run_id, name):
                epochs.setdefault(metric.step, {})[name] = metric.value
    return {epoch: epochs[epoch] for epoch in sorted(epochs)}
