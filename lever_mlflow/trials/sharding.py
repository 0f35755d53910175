"""Defines the shards of a rollout, which are recorded apart and put together again without holding them in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.trials.fields import shown
from lever_mlflow.trials.parquet import agreed, row_groups, write_tables
from lever_mlflow.trials.rl_data import RLData
from lever_mlflow.trials.stored import StoredGroups

__all__ = ["SHARD", "Shard", "in_order", "merge_shards"]

SHARD = "shard"  # in the meta of RL data that are a shard
_N_QUERIES = "n_queries"  # in the meta: of the whole rollout


class Shard(NamedTuple):
    """Names a part of a rollout: part ``number``, counted from 1, of ``of`` parts. One of one is the whole."""

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def rows(self, n_queries: int) -> slice:
        """Returns which of the queries of the rollout the shard has: equally many in each shard, one shard after the other.

        Raises:
            ParameterError: there is no such shard, or there are more shards than queries.
        """
        if self.number > self.of:
            raise ParameterError(f"shard={self.number}, but n_shards={self.of}; choose a shard from 1 to {self.of}")
        if self.of > n_queries:
            raise ParameterError(f"n_shards={self.of}, but n_queries={n_queries}; choose at most one shard for each query")
        return slice(n_queries * (self.number - 1) // self.of, n_queries * self.number // self.of)


def in_order(parts: Sequence[RLData]) -> list[RLData]:
    """Returns all shards of one rollout in the order of their numbers.

    Raises:
        DataError: one is not a shard, is of another rollout, is there twice, is not there, or lacks queries. The message is one
            line that names the file.
    """
    first = parts[0]
    shards: dict[int, RLData] = {}
    for part in parts:
        shard = _shard(part)
        _check_same_rollout(part, first)
        if shard.number in shards:
            raise DataError(f"{part.source}: shard {shard} is there twice, also as {shards[shard.number].source}; name it once")
        shards[shard.number] = part
    of = _shard(first).of
    missing = [str(number) for number in range(1, of + 1) if number not in shards]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"{first.source}: is shard {_shard(first)}, and of these {of} shards {', '.join(missing)} {verb} not named; record "
            f"them with rollout n_shards={of} shard=NUMBER, and name all"
        )
    for part in shards.values():
        _check_size(part)
    return [shards[number] for number in sorted(shards)]


def merge_shards(target: Path, shards: Sequence[RLData]) -> None:
    """Writes all shards of a rollout as one Parquet file, row group by row group.

    Args:
        target: the new file.
        shards: RL data that stay in Parquet files, in the order of ``in_order``.

    Raises:
        DataError: a shard is not Parquet.
    """
    meta = {**agreed([shard.meta for shard in shards]), "merged": [{"source": s.source, "digest": s.digest} for s in shards]}
    write_tables(target, chain.from_iterable(map(row_groups, _files(shards))), meta)


def _files(shards: Sequence[RLData]) -> Iterator[Path]:
    for shard in shards:
        if not isinstance(shard.groups, StoredGroups):
            raise DataError(
                f"{shard.source}: a shard must be Parquet; convert it with `lever-mlflow convert FILE.json FILE.parquet`"
            )
        yield from shard.groups.files


def _shard(data: RLData) -> Shard:
    """Returns the shard that RL data are, as their meta says."""
    text = data.meta.get(SHARD)
    named = re.fullmatch("([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", text) if isinstance(text, str) else None
    if named is None or int(named[1]) > int(named[2]):
        state = "has no shard" if text is None else f"has the shard {shown(text)}"
        raise DataError(f"{data.source}: _meta {state}; name files or runs that rollout recorded with n_shards above 1")
    return Shard(int(named[1]), int(named[2]))


def _check_same_rollout(part: RLData, first: RLData) -> None:
    ours, theirs = _of_rollout(part), _of_rollout(first)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise DataError(
                f"{part.source}: _meta: {name} is {shown(ours.get(name))}, but {shown(theirs.get(name))} in {first.source}; "
                "these are shards of different rollouts, name those of one"
            )


def _of_rollout(data: RLData) -> Mapping[str, Any]:
    """Returns what all shards of a rollout have in common."""
    return {**data.meta, SHARD: _shard(data).of}


def _check_size(part: RLData) -> None:
    shard, n_queries = _shard(part), part.meta.get(_N_QUERIES)
    if type(n_queries) is not int or n_queries < shard.of:
        raise DataError(f"{part.source}: _meta: n_queries is {shown(n_queries)}, expected at least {shard.of}; record it again")
    rows = shard.rows(n_queries)
    actual, expected = part.match.n_queries if part.match else len(part.groups), rows.stop - rows.start
    if actual != expected:
        raise DataError(f"{part.source}: shard {shard} holds {actual} queries, expected {expected}; copy or record it again")
