"""Ends, starves and misleads the process of an experiment: signals, memory, the clock, its output and its folders."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from benchmarks.outage_cases import Cases, Row, fill, small_disk
from benchmarks.outage_inputs import plain
from benchmarks.outage_world import ROOT, SMALL, Ended, World, variables


def signals(cases: Cases) -> Iterator[Row]:
    """Sends signals that end processes."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for stage in cases.stages:
            world = cases.world(f"{number.name}-{stage}")
            yield cases.disturbed(number.name, stage, world, partial(signal.raise_signal, number), goes_on=False)


def memory(cases: Cases) -> Iterator[Row]:
    """Lets memory run out: as Python says it, as PyTorch says it of a GPU, and as it says it of a CPU."""
    for kind in (_of_python, _of_a_gpu, _of_a_cpu):
        for stage in cases.stages:
            world = cases.world(f"memory-{kind.__name__}-{stage}")
            yield cases.disturbed(f"out of memory ({kind.__name__[1:]})", stage, world, kind, goes_on=False)


def _of_python() -> None:
    raise MemoryError


def _of_a_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of 1 GiB")


def _of_a_cpu() -> None:
    import torch

    torch.empty(2**50)


def address_space(cases: Cases) -> Iterator[Row]:
    """Allows the process, from a stage on, a few megabytes more than it has."""
    for stage in cases.stages:
        world = cases.world(f"limit-{stage}", answers=False)
        yield cases.disturbed("ulimit -v reached", stage, world, _starve, may_die=True)


def _starve() -> None:
    """Limits the address space of this process to what it has and 8 MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + 8 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def clock(cases: Cases) -> Iterator[Row]:
    """Sets the clock of the command back by a day."""
    for stage in cases.stages:
        world = cases.world(f"clock-{stage}")
        yield cases.disturbed("clock set back by a day", stage, world, _set_back, goes_on=True)


def _set_back() -> None:
    """Sets the clock of this process back by a day, as Python's functions tell it."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - 86_400
    time.time_ns = lambda: now_ns() - 86_400 * 10**9


def surroundings(cases: Cases) -> Iterator[Row]:
    """Closes the output of a process of its own, deletes its folder, its home and its temporary folder."""
    world = cases.world("surroundings")
    ended = world.main()
    assert ended.code == 0, ended.errors
    compare = f"compare --results {ROOT}/tests/data/predecessor_results.json"
    for case, script in {
        "stdout closed": f"{_python(compare)} | true",
        "stderr closed": f"{_python(compare)} 2>&1 >/dev/null | true",
        "stdout on a full disk": f"{_python(compare)} > /dev/full",
        "working folder deleted": f"mkdir gone; cd gone; rmdir ../gone; {_python(compare)}",
        "HOME not there, cache by default": f"export HOME=/dev/null/home; unset LEVER_MLFLOW_CACHE; {_python(compare)}",
        "HOME not there": f"export HOME=/dev/null/home; {_python(compare)}",
        "no temporary folder": f"export TMPDIR=/nowhere; {_python(compare)}",
    }.items():
        yield plain(world, case, "compare", _shell(world, script), "")
    with small_disk(world.folder / "tiny") as disk:
        fill(disk)
        for case, script in {
            "TMPDIR on a full disk": f"export TMPDIR={disk}; {_python(_options('main'))}",
            "cache on a full disk": f"export LEVER_MLFLOW_CACHE={disk}/cache; {_python(compare)}",
            "database on a full disk": f"export MLFLOW_TRACKING_URI=sqlite:///{disk}/mlflow.db; {_python(compare)}",
        }.items():
            yield plain(world, case, "main", _shell(world, script), "")


def _options(command: str) -> str:
    return " ".join([command, *(f"--{name} {value}" for name, value in SMALL.items())])


def _python(command: str) -> str:
    name, _, options = command.partition(" ")
    return f"{sys.executable} -m entrypoints.{name} {options}"


def _shell(world: World, script: str) -> Ended:
    """Runs a script in bash in a world; the exit code is that of the first part of its last pipe."""
    environment = {**variables(world.folder, world.uri), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    line, started = f"{script}\nexit ${{PIPESTATUS[0]}}", time.monotonic()
    process = subprocess.run(["bash", "-c", line], env=environment, cwd=world.part("work"), capture_output=True, text=True)
    return Ended(process.returncode, process.stdout, process.stderr, time.monotonic() - started)


def newer_schema(cases: Cases) -> Iterator[Row]:
    """Has a newer MLflow upgrade the database before a command, and in the middle of one."""

    def upgrade(world: World, version: str) -> None:
        with closing(sqlite3.connect(world.part("store") / "mlflow.db")) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", [version])
            connection.execute("ALTER TABLE runs ADD COLUMN of_the_future TEXT")
            connection.commit()

    for stage in cases.stages[:1]:
        world = cases.world(f"schema-{stage}")
        database = world.part("store") / "mlflow.db"
        former = shutil.copy(database, world.folder / "kept.db")
        upgrade(world, "ffffffffffff")
        ended = world.main()
        shutil.copy(former, database)
        yield plain(world, "database of a newer MLflow", "start", ended, "" if ended.code else "went on")


PROCESS_CASES: dict[str, Callable[[Cases], Iterator[Row]]] = {
    "signals": signals,
    "memory": memory,
    "address-space": address_space,
    "clock": clock,
    "surroundings": surroundings,
    "newer-schema": newer_schema,
}
