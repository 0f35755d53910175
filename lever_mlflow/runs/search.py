"""Finds runs of steps by their tags."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import mlflow
from mlflow.entities import Run

from lever_mlflow.runs.planning import active_plan
from lever_mlflow.runs.tags import PREFIX, Tag
from lever_mlflow.runs.whole import lack_of
from lever_mlflow.settings import as_text

__all__ = ["absent", "auto_run_id", "describe", "find_run", "find_runs"]

log = logging.getLogger(__name__)


def find_run(step: str, tags: Mapping[str, Any], *, having: str | None = None) -> Run | None:
    """Returns the newest of the runs that ``find_runs`` lists whose files are whole, or None; the log says what others lack.

    Raises:
        LeverError: the artifact store does not answer, so that nothing is known of the files.
    """
    return next((run for run in _newest_first(step, tags, having) if _is_whole(run)), None)


def find_runs(
    step: str, tags: Mapping[str, Any], *, having: str | None = None, unfinished: bool = False, most: int = 10_000
) -> list[Run]:
    """Lists the finished runs of a step in the active run's experiment whose tags have these values, newest first.

    Args:
        having: lists runs that have this tag, whether they finished or not.
        unfinished: lists runs that did not finish instead.
        most: the largest number of runs listed.
    """
    active = mlflow.active_run()
    assert active is not None, "runs are looked up from within a run"
    conditions = [f"tags.`{PREFIX}{name}` = '{as_text(value)}'" for name, value in {Tag.STEP: step, **tags}.items()]
    if having:
        conditions.append(f"tags.`{PREFIX}{having}` LIKE '%'")
    if unfinished or not having:
        conditions.append(f"attributes.status {'!=' if unfinished else '='} 'FINISHED'")
    return list(
        mlflow.search_runs(
            experiment_ids=[active.info.experiment_id],
            filter_string=" and ".join(conditions),
            order_by=["attributes.start_time DESC"],
            max_results=most,
            output_format="list",
        )
    )


def _newest_first(step: str, tags: Mapping[str, Any], having: str | None) -> Iterator[Run]:
    """Yields the runs that ``find_runs`` lists; all but the newest are looked up only where that one is not taken."""
    newest = find_runs(step, tags, having=having, most=1)
    yield from newest
    if newest:
        yield from find_runs(step, tags, having=having)[1:]


def _is_whole(run: Run) -> bool:
    lack = lack_of(run)
    if lack:
        _say_once(f"{describe(run)} is not used again: {lack}")
    return not lack


@cache
def _say_once(message: str) -> None:
    log.info("%s", message)


def auto_run_id(option: str, step: str, run: Run) -> str:
    """Returns the id of the run that an option left at ``auto`` takes; the log, or the plan that is being made, names it."""
    plan = active_plan()
    if plan is None:
        log.info("%s=auto: taken from %s", option, describe(run))
    else:
        plan.look(step, 0, run.info.run_id)
    return str(run.info.run_id)


def absent(what: str) -> None:
    """Says in the log that a run is missing and made first, unless only a plan is being made."""
    if active_plan() is None:
        log.info("this experiment has no finished %s, so it runs first", what)


def describe(run: Run) -> str:
    """Names a run in words, for logs: its name and id."""
    return f"{run.info.run_name} (run {run.info.run_id})"
