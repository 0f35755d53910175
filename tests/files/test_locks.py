"""Locks between processes: who is in, who waits, and what a killed process leaves."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lever_mlflow.files import locks

HOLDER = """
import sys, time
from pathlib import Path
from lever_mlflow.files.locks import one_at_a_time
with one_at_a_time(Path(sys.argv[1]), ""):
    print("in", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1] + ".done").touch()
"""


def holder(path, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    return process


@pytest.fixture
def path(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    monkeypatch.setattr(locks, "_PAUSE", 0.05)
    return tmp_path / "a.lock"


def test_another_process_waits_says_so_once_and_leaves_no_file(path, caplog):
    process = holder(path, 0.5)
    with locks.one_at_a_time(path, "waiting"):
        assert path.with_name("a.lock.done").exists()
    assert caplog.messages == ["waiting"]
    assert not path.exists()
    assert process.wait(10) == 0


def test_the_lock_of_a_killed_process_is_free(path, caplog):
    process = holder(path, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.exists()
    with locks.one_at_a_time(path, "waiting"):
        assert path.exists()
    assert not path.exists()
    assert caplog.messages == []


def test_of_many_only_one_is_in_at_a_time(path):
    exit_codes = []
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            for _ in range(20):
                with locks.one_at_a_time(path, "waiting"):
                    mark = path.with_name("mark")
                    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails where another one is in
                    time.sleep(0.001)
                    mark.unlink()
            os._exit(number)
        children.append(child)
    for child in children:
        exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert exit_codes == list(range(6))


def test_the_same_process_enters_again_and_where_nothing_can_be_locked_nobody_waits(path, tmp_path, monkeypatch):
    with locks.one_at_a_time(path, "waiting"), locks.one_at_a_time(path, "waiting"):
        assert path.exists()
    with locks.one_at_a_time(tmp_path / "nowhere" / "a.lock", "waiting"):
        pass

    def unknown(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", unknown)
    with locks.one_at_a_time(path, "waiting"):
        pass
