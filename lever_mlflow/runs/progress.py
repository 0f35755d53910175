"""Records how far long work has come as metrics of the active run, so that it can be watched in the MLflow UI."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow

from lever_mlflow import progress
from lever_mlflow.exceptions import StoreError
from lever_mlflow.runs.metrics import PROGRESS
from lever_mlflow.runs.stores import store_errors

__all__ = ["recorded_progress"]


@contextmanager
def recorded_progress() -> Iterator[None]:
    """Records the progress of all work inside the block as metrics ``progress/<unit>`` of whichever run is active.

    The value is the share that is done, and the step is the number of items. There are about two records a minute. When MLflow
    refuses one there are no further ones, so that an outage of the tracking server holds up the work once at most.
    """
    recorder, level = _Recorder(), progress.log.level
    progress.log.addHandler(recorder)
    progress.log.setLevel(logging.INFO)
    try:
        yield
    finally:
        progress.log.setLevel(level)
        progress.log.removeHandler(recorder)


class _Recorder(logging.Handler):
    """Logs the numbers of each record of ``lever_mlflow.progress`` in the active run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the numbers of a record."""
        unit, done, total = getattr(record, progress.REACHED)
        try:
            with store_errors():
                mlflow.log_metrics({f"{PROGRESS}{unit}": done / total}, step=done)
        except StoreError:
            progress.log.removeHandler(self)
