"""Runs an entry point, and kills its process just before it writes something for the n-th time.

A write is a commit to a database, or a file or folder that is opened for writing, made, renamed or deleted. A moment that is
chosen among the writes meets the short times between two of them, which a moment that is chosen by the clock nearly never does.
With 0 for n, nothing is killed, and the number of writes is printed at the end.

    python -m benchmarks.campaign.killed 1234 promote --kl_beta 0.12
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

import entrypoints
from lever_mlflow.cli.launching import launch

WRITES = "writes: "
CHANGES = frozenset({"os.rename", "os.mkdir", "os.remove", "os.rmdir"})  # audit events of Python
OPENED = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Writes:
    """Counts the writes of this process, and kills it before the write with the number ``last``."""

    def __init__(self, last: int) -> None:
        self.last, self.count = last, 0

    def __call__(self, *_: Any) -> None:
        """Counts a write."""
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Counts an audit event of Python, if it stands for a write to a file that stays."""
        opened = name == "open" and arguments[2] is not None and arguments[2] & OPENED
        if (name in CHANGES or opened) and not str(arguments[0]).startswith(("/dev/", "/proc/")):
            self()


def main() -> None:
    """Runs the entry point that the command line names, with the options behind it."""
    last, name, *options = sys.argv[1:]
    sys.argv = [str(Path(entrypoints.__file__).with_name(f"{name}.py")), *options]  # as MLflow and our messages read it
    writes = Writes(int(last))
    sys.addaudithook(writes.audit)
    event.listen(Engine, "commit", writes)
    if not writes.last:
        atexit.register(lambda: print(f"{WRITES}{writes.count}", file=sys.stderr))
    launch(importlib.import_module(f"entrypoints.{name}").main, options)


if __name__ == "__main__":
    main()
