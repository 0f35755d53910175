"""Merges RL data that were recorded in parts, for example on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lever_mlflow.exceptions import DataError
from lever_mlflow.trials.parquet import agreed
from lever_mlflow.trials.rl_data import Group, RLData
from lever_mlflow.trials.sharding import SHARD

__all__ = ["Merged", "merge"]


class Merged(NamedTuple):
    """Holds merged RL data.

    Attributes:
        groups: one group per query, ordered by train index.
        meta: what the meta of all parts agree in, and under ``merged`` the source and digest of each part.
        n_repeated: number of trials that were left out, because an earlier part has the same pointer of the query.
    """

    groups: list[Group]
    meta: dict[str, Any]
    n_repeated: int


def merge(parts: Sequence[RLData]) -> Merged:
    """Merges RL data; a query that several parts hold gets the trials of all of them.

    Args:
        parts: RL data that were matched with the same training items.

    Raises:
        DataError: a part is a shard of a rollout, which ``sharding`` merges; or a query has different pools in two parts, so
            that its pointers cannot be put together.
    """
    groups: dict[int, Group] = {}
    sources: dict[int, str] = {}
    n_repeated = 0
    for part in parts:
        if SHARD in part.meta:
            raise DataError(
                f"{part.source}: is shard {part.meta[SHARD]} of a rollout; name all its shards as shards=, not as parts="
            )
        for group in part.groups:
            former = groups.get(group.query_id)
            if former is not None and former.pool != group.pool:
                raise DataError(
                    f"{part.source}: query {group.query_id} (question_id {group.query.get('question_id')}) has another "
                    f"candidate pool than in {sources[group.query_id]}; remove the query from one of the files"
                )
            sources.setdefault(group.query_id, part.source)
            trials = () if former is None else former.trials
            recorded = {trial.pointer for trial in trials}
            fresh = tuple(trial for trial in group.trials if trial.pointer not in recorded)
            n_repeated += len(group.trials) - len(fresh)
            groups[group.query_id] = replace(former or group, trials=trials + fresh)
    meta = agreed([part.meta for part in parts])
    meta["merged"] = [{"source": part.source, "digest": part.digest} for part in parts]
    return Merged([groups[query] for query in sorted(groups)], meta, n_repeated)
