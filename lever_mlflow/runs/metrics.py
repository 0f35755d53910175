"""Metrics of runs: checked before they are logged, and read again by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlflow

from lever_mlflow.exceptions import DataError

__all__ = ["epoch_metrics", "finite"]


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics fit to be logged.

    Raises:
        DataError: one of them is not finite.
    """
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        raise DataError(f"metrics are not finite: {bad}; lower lr, and check the data with the validate step")
    return dict(metrics)


def epoch_metrics(run_id: str) -> list[dict[str, float]]:
    """Metrics of a training run, one mapping per epoch, ``epoch`` among them."""
    client = mlflow.MlflowClient()
    epochs: dict[int, dict[str, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith("data/"):
            for metric in client.get_metric_history(run_id, name):
                epochs.setdefault(metric.step, {"epoch": metric.step})[name] = metric.value
    return [epochs[step] for step in sorted(epochs)]
