"""Says so where the clock was set back, and lets no run end before it began.

MLflow orders runs by the time at which they began, and so does whatever is left at ``auto``. No other order is recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lever_mlflow.progress import duration
from lever_mlflow.runs.search import describe

__all__ = ["end_not_before_the_start", "warn_of_the_clock"]

_TOLERANCE = 60.0  # seconds by which the clocks of machines may differ

log = logging.getLogger(__name__)


def warn_of_the_clock(run: Run) -> None:
    """Warns where a run of the same experiment began later than one that begins now, so that this one is not the newest."""
    runs: Sequence[Run] = mlflow.search_runs(
        experiment_ids=[run.info.experiment_id],
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    ahead = max(((newest.info.start_time - run.info.start_time) / 1000 for newest in runs), default=0.0)
    if ahead > _TOLERANCE:
        log.warning(
            "the clock says that %s began %s from now; it was set back, or is wrong here or there. Of several runs, auto takes "
            "the one that began last by the clock: set the clock right, or name runs by their ids",
            describe(runs[0]),
            duration(ahead),
        )


def end_not_before_the_start(run: Run) -> None:
    """Ends a run once more where the clock says a time before its start, so that it took no negative time."""
    if time.time_ns() // 10**6 >= run.info.start_time:
        return
    with suppress(MlflowException):
        client = mlflow.MlflowClient()
        status = client.get_run(run.info.run_id).info.status
        client.set_terminated(run.info.run_id, status, end_time=run.info.start_time)
