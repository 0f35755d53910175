"""Finds runs of steps by their tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Run

from lever_mlflow.runs.tags import TAG, as_text

__all__ = ["describe", "find_run", "find_runs"]


def find_run(step: str, tags: Mapping[str, Any], *, having: str | None = None) -> Run | None:
    """The newest of ``find_runs``."""
    runs = find_runs(step, tags, having=having, most=1)
    return runs[0] if runs else None


def find_runs(
    step: str, tags: Mapping[str, Any], *, having: str | None = None, unfinished: bool = False, most: int = 10_000
) -> list[Run]:
    """The finished runs of a step in the active run's experiment whose ``lever.*`` tags have these values, newest first.

    With ``having``, those that have this tag, whether they finished or not; with ``unfinished``, that did not finish.
    """
    active = mlflow.active_run()
    assert active is not None, "find_runs needs an active run"
    wanted = {"step": step, **tags}
    conditions = [f"tags.`{TAG}{key}` = '{as_text(value)}'" for key, value in wanted.items()]
    if having:
        conditions.append(f"tags.`{TAG}{having}` LIKE '%'")
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


def describe(run: Run) -> str:
    """A run in words, for logs: its name and id."""
    return f"{run.info.run_name} (run {run.info.run_id})"
