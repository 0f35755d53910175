"""Handles the runs that ``mlflow run`` makes for entry points that need none.

``mlflow run`` makes a run for every entry point that it starts. An entry point that is started in any other way, as
``lever-mlflow status``, makes none here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lever_mlflow.runs.environment_run import ENTRY_POINT, RUN_ID, environment_run
from lever_mlflow.runs.steps import project_run
from lever_mlflow.runs.stores import check_stores, store_errors
from lever_mlflow.runs.tags import PREFIX, RUN_NAME, Tag

__all__ = ["optional_run", "passing_run", "placeholder_run"]


@contextmanager
def optional_run(entry_point: str) -> Iterator[Run | None]:
    """Opens the run that ``mlflow run`` made for an entry point; without one, the block works in no run and is given None.

    Raises:
        StoreError: as ``store_errors`` and ``check_stores``.
    """
    with store_errors():
        check_stores()
        if _run_of_entry_point(entry_point) is None:
            yield None
        else:
            with project_run(entry_point) as run:
                yield run


@contextmanager
def placeholder_run(entry_point: str) -> Iterator[None]:
    """Does in the block what an entry point only reads, and keeps the list of runs tidy.

    The run that ``mlflow run`` made for the entry point is named after it, and the runs of earlier calls in the experiment are
    moved to MLflow's trash. The run itself cannot be: ``mlflow run`` sets its status at the end, and fails if it was deleted.

    Raises:
        StoreError: as ``store_errors`` and ``check_stores``.
    """
    with store_errors():
        check_stores(writing=False)
        if (run := _run_of_entry_point(entry_point)) is not None:
            _tidy(run, entry_point, entry_point)
        yield


@contextmanager
def passing_run(name: str, step: str) -> Iterator[Run]:
    """Opens a run for work that leaves nothing to keep, and keeps the list of runs tidy.

    At the end the run is moved to MLflow's trash. One that ``mlflow run`` made cannot be; those of earlier calls are. One that
    the user opened is left as it is.

    Raises:
        StoreError: as ``store_errors`` and ``check_stores``.
    """
    made_here = RUN_ID not in os.environ
    with project_run(name) as run:
        if made_here or ENTRY_POINT in run.data.tags:
            _tidy(run, name, step)
        yield run
    if made_here:
        with suppress(MlflowException):
            mlflow.delete_run(run.info.run_id)


def _tidy(run: Run, name: str, step: str) -> None:
    """Names a run, and moves those of earlier calls to the trash."""
    client = MlflowClient()
    client.set_tag(run.info.run_id, RUN_NAME, name)
    client.set_tag(run.info.run_id, f"{PREFIX}{Tag.STEP}", step)
    ended = f"tags.`{PREFIX}{Tag.STEP}` = '{step}' and attributes.status != 'RUNNING'"
    with suppress(MlflowException):  # on a server with permissions, only those who manage an experiment may delete its runs
        for former in client.search_runs([run.info.experiment_id], ended):
            client.delete_run(former.info.run_id)


def _run_of_entry_point(entry_point: str) -> Run | None:
    """Returns the run that ``mlflow run`` made for an entry point; None where something else started this process.

    A run that the user has opened for another purpose is never taken for it.
    """
    run = environment_run()
    return run if run is not None and run.data.tags.get(ENTRY_POINT) == entry_point else None
