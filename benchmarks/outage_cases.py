"""Takes disks and folders away from running experiments: each case is a function that yields a row for each stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.outage_world import STAGES, Ended, World, shell

_SMALL_DISK = "64m"  # several times what an experiment in small needs


class Row(NamedTuple):
    """Says what happened in a case, and whether that is what is promised."""

    case: str
    stage: str
    happened: str
    states: str
    afterwards: str
    fault: str = ""


@dataclass(frozen=True)
class Cases:
    """Holds what all cases share.

    Attributes:
        folder: where worlds are made.
        undisturbed: the results of an experiment that nothing disturbed.
        cache: its cache folder, of which each world begins with a copy.
        database: an empty database, of which each world begins with a copy.
        stages: the stages at which something is taken away.
    """

    folder: Path
    undisturbed: Mapping[str, Any]
    cache: Path
    database: Path
    stages: tuple[str, ...] = tuple(STAGES)

    def world(self, name: str, *, answers: bool = True, **attributes: Any) -> World:
        """Makes a new world whose cache has features, and answers where they are wanted."""
        folder = self.folder / name
        (folder / "store").mkdir(parents=True, exist_ok=True)
        shutil.copy(self.database, folder / "store" / "mlflow.db")
        ignored = () if answers else ("answers*",)
        shutil.copytree(self.cache, folder / "cache", ignore=shutil.ignore_patterns(*ignored), dirs_exist_ok=True)
        return World(folder, **attributes)

    def compared_with(self, undisturbed: Mapping[str, Any]) -> Cases:
        """Returns the same with the results of another undisturbed experiment."""
        return replace(self, undisturbed=undisturbed)

    def disturbed(
        self,
        case: str,
        stage: str,
        world: World,
        strike: Callable[[], object],
        restore: Callable[[], object] = lambda: None,
        *,
        goes_on: bool | None = None,
        may_die: bool = False,
        **choices: Any,
    ) -> Row:
        """Strikes in the middle of an experiment, restores what was taken away, and runs the same command again.

        Args:
            case, stage: name the row.
            world: where the experiment runs.
            strike: is called in the command's process at the stage.
            restore: is called in this process after the command has ended.
            goes_on: whether the command has to finish in spite of it; None where either may happen.
            may_die: whether a library below Python may abort the process, which then says nothing.
            choices: as for ``World.main``.
        """
        ended = world.main(stage, strike, **choices)
        restore()
        between = world.results()
        again = world.main()
        faults = [] if may_die and ended.code < 0 else [*fault_of(ended, goes_on)]
        return self.row(case, stage, ended, between.states, again, world, faults)

    def row(
        self, case: str, stage: str, ended: Ended, between: Mapping[str, int], again: Ended, world: World, faults: list[str]
    ) -> Row:
        """Adds to the faults of how a command ended what the same command came to afterwards."""
        results = world.results()
        same = results.values == self.undisturbed
        afterwards = "the same results" if same and again.code == 0 else f"exit {again.code}: {' '.join(again.lines)}"
        if again.code or again.has_traceback:
            faults.append(f"then exit {again.code}, {again.errors[-300:]}")
        elif not same:
            differing = [name for name, value in self.undisturbed.items() if results.values.get(name) != value]
            faults.append(f"other results: {', '.join(differing)}")
        if results.states.get("RUNNING"):
            faults.append("a run stays RUNNING")
        return Row(case, stage, ending(ended), counts_by_state(between), afterwards, "; ".join(faults))


def ending(ended: Ended) -> str:
    """Says how a command ended, with the line that its user saw."""
    if ended.code == 0:
        return "goes on"
    message = " ".join(ended.lines) or " ".join(ended.errors[-200:].split())
    return f"exit {ended.code}: {message}"


def counts_by_state(states: Mapping[str, int]) -> str:
    """Says how many runs are in which state."""
    return ", ".join(f"{number} {state}" for state, number in sorted(states.items()))


def fault_of(ended: Ended, goes_on: bool | None) -> Iterator[str]:
    """Yields what is wrong with how a command ended."""
    if ended.has_traceback:
        yield "TRACEBACK"
    if ended.code and len(ended.lines) != 1:
        yield f"{len(ended.lines)} lines of errors"
    if goes_on is not None and goes_on != (ended.code == 0):
        yield "did not go on" if goes_on else "went on"


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """Mounts a small disk in memory at a folder while the block runs."""
    place.mkdir(parents=True, exist_ok=True)
    shell("mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", place)
    try:
        yield place
    finally:
        shell("umount", "--lazy", place)


def fill(disk: Path) -> None:
    """Fills a disk to its last byte."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def full_disk(cases: Cases) -> Iterator[Row]:
    """Fills the disk of a part of the world: of the store, the artifacts, the cache or temporary files."""
    for part in ("store", "artifacts", "cache", "tmp"):
        for stage in cases.stages:
            with small_disk(cases.folder / f"full-{part}-{stage}" / part) as disk:
                world = cases.world(f"full-{part}-{stage}")
                yield cases.disturbed(f"disk of the {part} full", stage, world, partial(fill, disk), (disk / "ballast").unlink)


def read_only(cases: Cases) -> Iterator[Row]:
    """Makes the disk of the artifacts, or of the cache, read-only."""
    for part in ("artifacts", "cache"):
        for stage in cases.stages:
            with small_disk(cases.folder / f"read-only-{part}-{stage}" / part) as disk:
                world = cases.world(f"read-only-{part}-{stage}")
                lock, unlock = (partial(shell, "mount", "-o", f"remount,{mode}", disk) for mode in ("ro", "rw"))
                yield cases.disturbed(f"{part} read-only", stage, world, lock, unlock)


def cache_deleted(cases: Cases) -> Iterator[Row]:
    """Deletes the cache folder."""
    for stage in cases.stages:
        world = cases.world(f"cache-deleted-{stage}")
        yield cases.disturbed("cache folder deleted", stage, world, partial(shutil.rmtree, world.part("cache")))
    for stage in {"rollout", "evaluate"} & set(cases.stages):
        world = cases.world(f"cache-deleted-cold-{stage}", answers=False)
        delete = partial(shutil.rmtree, world.part("cache"))
        yield cases.disturbed("cache folder deleted, no answers known", stage, world, delete)


def database_deleted(cases: Cases) -> Iterator[Row]:
    """Moves the tracking database away, as by a deletion, and back."""
    for stage in cases.stages:
        world = cases.world(f"database-deleted-{stage}")
        store, away = world.part("store"), world.folder / "away"
        yield cases.disturbed(
            "database deleted", stage, world, partial(store.rename, away), partial(put_back, store, away), goes_on=False
        )


def put_back(place: Path, away: Path) -> None:
    """Puts a folder back that was moved away, in place of what has been made there meanwhile."""
    shutil.rmtree(place, ignore_errors=True)
    away.rename(place)
