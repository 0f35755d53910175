"""Names processes so that a later process of the same machine can see whether they are still there.

A process is named by the machine's host name, id and boot, the PID namespace, its number and its start. A process of the same
machine, boot and PID namespace sees whether it is still there. After a restart of the machine, it is gone. Any other process
cannot know that.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path

__all__ = ["is_leftover", "is_there", "mark_of_this_process", "this_process"]

_OF_MACHINE = "pid:[4026531836]"  # PID namespace outside of all containers (PROC_PID_INIT_INO in Linux)
_STATE, _START = 0, 19  # of the fields of /proc/<pid>/stat that follow the name: proc_pid_stat(5) counts them as 3 and 22
_MARK = re.compile(r"lever-mlflow-([0-9a-f]{12})-(\d+)-(\d+)-")


def this_process() -> str:
    """Names this process: its place, number and start, separated by spaces."""
    return f"{_place()} {os.getpid()} {_started(os.getpid())}"


def is_there(process: str) -> bool | None:
    """Says whether a process is still there, given by its name; None where it cannot be seen from here."""
    place, number, started = (["", "", "", *process.rsplit(" ", 2)])[-3:]
    if _before_restart(place):
        return False
    if place != _place() or "?" in place or not number.isdecimal():
        return None
    try:
        os.kill(int(number), 0)  # sends nothing, but fails where there is no such process
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's, and what follows may not be readable
        pass
    now = _started(int(number))
    return None if now is None else now == started


def mark_of_this_process() -> str:
    """Returns what the names of this process' temporary files hold, by which ``is_leftover`` recognises them."""
    return f"lever-mlflow-{_digest_of_place()}-{os.getpid()}-{_started(os.getpid())}-"


def is_leftover(name: str) -> bool:
    """Says whether a file is called as a temporary one of a process of this place that is gone."""
    mark = _MARK.search(name)
    return mark is not None and mark[1] == _digest_of_place() and is_there(f"{_place()} {mark[2]} {mark[3]}") is False


@cache
def _digest_of_place() -> str:
    return hashlib.sha256(_place().encode()).hexdigest()[:12]


def _place() -> str:
    """Names what the number of a process counts in: host name, machine, boot and PID namespace; ``?`` for what is not told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, namespace = "?", "?"
    return f"{socket.gethostname()} {_machine()} {boot} {namespace}"


def _machine() -> str:
    """Returns the id of this installation of the system, machine-id(5); ``-`` where it has none."""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or "-"
    except (OSError, ValueError):
        return "-"


def _before_restart(place: str) -> bool:
    """Says whether a place is this machine before it was started anew, after which none of its processes is there.

    Of containers this cannot be said: those of one image may have the same names on several machines.
    """
    then, now = place.split(" "), _place().split(" ")
    same_machine = then[:2] == now[:2] and now[1] != "-" and then[3:] == now[3:] == [_OF_MACHINE]
    return same_machine and then[2] != now[2]


def _started(number: int) -> str | None:
    """Returns when a process started, in clock ticks since the boot; empty for a zombie, None where it cannot be read.

    Unlike a time of day, this is the same whatever happens to the clock.
    """
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in brackets may hold spaces and brackets
    return "" if fields[_STATE] in "ZX" else fields[_START]
