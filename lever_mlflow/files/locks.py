"""Lets one process of several do something while the others wait."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["lock_of", "one_at_a_time"]

_PAUSE = 0.5  # seconds between two looks at a lock that another process holds
_held: set[Path] = set()  # by this process

log = logging.getLogger(__name__)


def lock_of(thing: str) -> Path:
    """Names the file by which processes of this user and machine take turns at a thing, which any text names."""
    return Path(tempfile.gettempdir()) / f"lever-mlflow-{os.getuid()}-{hashlib.sha256(thing.encode()).hexdigest()[:32]}.lock"


@contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """Lets one process at a time into the block, all those that name the same file; a process that is in may enter again.

    The lock ends with its process, also where that is killed. Where the file cannot be made or locked, nobody waits.

    Args:
        path: the file, which is made for the block and removed at its end, in a folder that exists.
        waiting: what the log says where another process has to be waited for.
    """
    descriptor = None if path in _held else _locked(path, waiting)
    if descriptor is None:
        yield
        return
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        # while it is locked, so that those who have opened it see that it is not the file any more
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, waiting: str) -> int | None:
    """Waits for the lock of a file and returns the file's descriptor; None where it cannot be made or locked."""
    announced = False
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, path):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if not announced:
                log.info("%s", waiting)
                announced = True
            time.sleep(_PAUSE)
        except OSError:
            os.close(descriptor)
            return None


def _is_file(descriptor: int, path: Path) -> bool:
    """Says whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
