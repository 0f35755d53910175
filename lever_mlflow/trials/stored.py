"""Holds groups of RL data that stay in their files, so that RL data need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, overload

from lever_mlflow.trials.rl_data import Group

if TYPE_CHECKING:
    from lever_mlflow.trials.columns import GroupColumns

__all__ = ["StoredGroups"]


class StoredGroups(Sequence[Group]):
    """Reads groups from their files whenever they are gone through, some hundred queries at a time, in the order of the files.

    Attributes:
        files: the files.
        blocks: reads the groups anew and yields them as columns, some hundred queries at a time.
        n_trials: number of trials of all groups.
    """

    def __init__(
        self, files: Sequence[Path], blocks: Callable[[], Iterator[GroupColumns]], n_queries: int, n_trials: int
    ) -> None:
        self.files, self.blocks, self.n_trials, self._n_queries = files, blocks, n_trials, n_queries

    def __len__(self) -> int:
        return self._n_queries

    def __iter__(self) -> Iterator[Group]:
        return chain.from_iterable(self.blocks())

    @overload
    def __getitem__(self, row: int) -> Group: ...

    @overload
    def __getitem__(self, row: slice) -> list[Group]: ...

    def __getitem__(self, row: int | slice) -> Group | list[Group]:
        rows = range(len(self))[row]
        if isinstance(rows, int):
            return next(islice(self, rows, None))
        wanted = dict.fromkeys(rows)
        groups = {place: group for place, group in enumerate(self) if place in wanted}
        return [groups[place] for place in rows]

    def converted(self, convert: Callable[[GroupColumns], GroupColumns], n_queries: int, n_trials: int) -> StoredGroups:
        """Returns groups that are converted block by block when they are read, of which so many queries and trials are left."""

        def blocks() -> Iterator[GroupColumns]:
            return (block for block in map(convert, self.blocks()) if len(block))

        return StoredGroups(self.files, blocks, n_queries, n_trials)
