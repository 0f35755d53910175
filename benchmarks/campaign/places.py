"""Gives each round of the campaign a store, a cache and a folder for temporary files of its own, and runs commands in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

ROOT = Path(__file__).parents[2]
# what libraries leave: a folder of PyTorch and a lock of MLflow, which are used again, and the empty file with a name of eight
# characters with which Python tries the folder
LEFT_BY_LIBRARIES = re.compile(r"torchinductor_.*|db_init_lock-.*|[a-z0-9_]{8}")
LIMIT = 900  # seconds of a command
TICK = 0.02  # seconds between two looks at a process


class Kill(NamedTuple):
    """Says when a process group is killed: after so many seconds of processor time, or before a write by its number."""

    cpu: float | None = None
    write: int | None = None

    def __str__(self) -> str:
        return f"before write {self.write}" if self.cpu is None else f"after {self.cpu:.1f} s of processor time"


class Ended(NamedTuple):
    """Holds how a command ended: its exit status, whether it was killed, its output and its processor time in seconds."""

    status: int
    killed: bool
    output: str
    cpu: float


@dataclass(frozen=True)
class Place:
    """Is a folder with a store, a cache and temporary files.

    Attributes:
        folder: is always at the same path, as stores hold the paths of their artifacts.
        uri: of the store, by default a SQLite file in the folder.
    """

    folder: Path
    uri: str = ""

    @property
    def store(self) -> str:
        """Returns the address of the store."""
        return self.uri or f"sqlite:///{self.folder / 'mlflow.db'}"

    @property
    def environment(self) -> dict[str, str]:
        """Returns the environment of the commands."""
        return {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.store,
            "LEVER_MLFLOW_CACHE": str(self.folder / "cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def begin(self, former: Path | None = None) -> None:
        """Makes the folder anew, as a copy of a former one or empty."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if former is not None:
            shutil.copytree(former, self.folder, symlinks=True)
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)

    def keep(self, name: Path) -> None:
        """Copies the folder, so that rounds begin with it; a copy that was begun before is made anew."""
        shutil.rmtree(name, ignore_errors=True)
        partial = name.with_name(f"{name.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.folder, partial, symlinks=True)
        partial.rename(name)

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a command as a process group of its own, whose output goes to the end of a file."""
        with log.open("ab") as file:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )

    def run(self, command: Sequence[str], kill: Kill | None = None) -> Ended:
        """Runs a command until it ends or is killed; one that takes longer than ``LIMIT`` is killed and counts as failed."""
        log = self.folder / "output.txt"
        before = log.stat().st_size if log.exists() else 0
        process, cpu = self.start(command, log), 0.0
        since = time.monotonic()
        try:
            while process.poll() is None and time.monotonic() - since < LIMIT:
                cpu = max(cpu, cpu_of_group(process.pid))
                if kill is not None and kill.cpu is not None and cpu >= kill.cpu:
                    break
                time.sleep(TICK)
        finally:
            kill_group(process)
        status = process.wait()
        text = log.read_bytes()[before:].decode(errors="replace")
        return Ended(status, status == -signal.SIGKILL, text, cpu)

    def outcome(self) -> dict[str, Any]:
        """Returns what the commands left, as ``benchmarks.campaign.outcome`` describes it."""
        command = [sys.executable, "-m", "benchmarks.campaign.outcome"]
        process = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if process.returncode:
            return {"unreadable": process.stderr.strip().splitlines()[-1:]}
        return dict(json.loads(process.stdout))

    def strays(self) -> list[str]:
        """Lists what is left of temporary and half-written files."""
        temporary = [path for path in (self.folder / "tmp").iterdir() if not LEFT_BY_LIBRARIES.fullmatch(path.name)]
        cache = self.folder / "cache"
        half = [path for path in cache.rglob("*") if path.name.startswith(".") or ".damaged-" in path.name]
        unsent = list((cache / "unsent").glob("*"))
        return sorted(str(path.relative_to(self.folder)) for path in (*temporary, *half, *unsent))


def entry_point(name: str, *options: str, write: int = 0) -> list[str]:
    """Returns the command of an entry point; it is killed before the write of this number, and 0 counts the writes."""
    return [sys.executable, "-m", "benchmarks.campaign.killed", str(write), name, *options]


def cpu_of_group(pid: int) -> float:
    """Returns the seconds of processor time that a process and those that it started have taken."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            times = member.cpu_times()
            total += times.user + times.system
    return total


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all of its group at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
