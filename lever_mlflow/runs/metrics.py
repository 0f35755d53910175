"""Checks metrics before they are logged, and reads them again by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lever_mlflow.exceptions import DataError
from lever_mlflow.runs.artifacts import list_artifacts, log_json, read_json

__all__ = [
    "ANSWER_RATE",
    "DATA",
    "PROGRESS",
    "ROLLOUT",
    "ROUNDS",
    "TRAIN",
    "VAL",
    "epoch_metrics",
    "finite",
    "log_history",
    "system_metrics",
]

# what the names of our metrics begin with; others may log metrics on our runs too, as MLflow does with those of the system
TRAIN, VAL = "train/", "val/"  # of an epoch of training; their step is the epoch's number
DATA = "data/"  # of the RL data that the data gate judged; they have no step
PROGRESS = "progress/"  # of shares of long work that are done; their step is a number of items
ANSWER_RATE = "pool/answer_rate"  # share of queries or questions with a right answer in their pool; it has no step
ROLLOUT = "rollout/"  # of the trials that a rollout recorded; they have no step
HISTORY_FILE = "epochs.json"  # metrics of a finished training by epoch
ROUNDS = "rounds/"  # of the rounds of GRPO; their step is the round's number


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns metrics that are fit to be logged.

    Raises:
        DataError: one of them is NaN or infinite.
    """
    bad = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if bad:
        raise DataError(f"metrics are not finite: {bad}; lower lr, and check the data with the validate step")
    return dict(metrics)


def log_history(history: Mapping[int, Mapping[str, float]]) -> None:
    """Logs the metrics of a finished training by epoch as an artifact of the active run, for ``epoch_metrics``."""
    log_json({str(epoch): dict(metrics) for epoch, metrics in history.items()}, HISTORY_FILE)


def epoch_metrics(run_id: str) -> dict[int, dict[str, float]]:
    """Reads the metrics of a training run by epoch, ascending, as the training left them in an artifact.

    What others have logged in the run is left out, whatever it is called. The runs of earlier versions of this package have no
    such artifact; of those, metrics whose names begin otherwise than those of epochs are left out, such as system metrics.
    """
    client = mlflow.MlflowClient()
    if HISTORY_FILE in list_artifacts(run_id, ""):
        return {int(epoch): metrics for epoch, metrics in read_json(run_id, HISTORY_FILE).items()}
    epochs: dict[int, dict[str, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        if name.startswith((TRAIN, VAL)):
            for metric in client.get_metric_history(run_id, name):
                epochs.setdefault(metric.step, {})[name] = metric.value
    return {epoch: epochs[epoch] for epoch in sorted(epochs)}


@contextmanager
def system_metrics(run_id: str, device: str) -> Iterator[None]:
    """Logs the load of processor, memory, disk, network and GPU in a run while the block works on a GPU.

    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` decides where it is set, whatever the device: MLflow itself then logs them from the
    start of a run, or does not.

    Args:
        run_id: the run.
        device: ``cpu`` or ``cuda``.
    """
    if device != "cuda" or MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set():
        yield
        return
    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
