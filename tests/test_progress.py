"""Progress of long work: lines of the log every half a minute, a bar on a terminal, and nothing for what is done at once."""

import os
import pty
import subprocess
import sys
import termios

import pytest
from helpers.projects import ROOT

from lever_mlflow import progress
from lever_mlflow.progress import REACHED, Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until clock.now is set."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def follow(clock, seconds, **choices):
    """100 answers in five parts, one after each of these times in seconds."""
    with Progress("rollout", 100, "answers", **choices) as work:
        for second in seconds:
            clock.now = 1000.0 + second
            work.update(20)


def test_a_line_every_half_a_minute_and_one_at_the_end(clock, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    follow(clock, (10, 40, 60, 80, 81))
    assert caplog.messages == [
        "rollout: 40 of 100 answers (40 %), 1 per second, 1 min 0 s left",
        "rollout: 80 of 100 answers (80 %), 1 per second, 20 s left",
        "rollout: 100 of 100 answers (100 %), 1.23 per second, 0.0 s left",
    ]
    assert [getattr(record, REACHED) for record in caplog.records] == [("answers", count, 100) for count in (40, 80, 100)]


def test_what_an_earlier_process_has_done_makes_the_rate_no_higher(clock, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    with Progress("RCE", 1_000, "steps", done=900) as work:
        clock.now += 50
        work.update(10)
    assert caplog.messages == ["RCE: 910 of 1,000 steps (91 %), 0.2 per second, 7 min 30 s left"]


@pytest.mark.parametrize(("seconds", "choices"), [((5, 10, 15, 20, 29), {}), ((40, 80, 120, 160, 200), {"hidden": True})])
def test_short_work_and_followers_say_nothing(clock, caplog, seconds, choices):
    caplog.set_level("INFO", logger="lever_mlflow")
    follow(clock, seconds, **choices)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (252, "4 min 12 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def on_a_terminal(code):
    """What a Python process writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the process has closed its side
                break
            output += part
            if not part:
                break
    os.close(ours)
    assert process.returncode == 0, output.decode()
    return output.decode()


LONG = """
import logging, time
from lever_mlflow import progress
from lever_mlflow.cli.launching import launch, _quieten
_quieten()
progress._AT_ONCE, progress._EVERY = {at_once}, 0.0
with progress.Progress("rollout", 3, "answers", note="2 cached") as work:
    for i in range(3):
        time.sleep(0.15)
        work.update()
        logging.getLogger("lever_mlflow").info("line %d", i)
"""


def test_a_terminal_shows_a_bar_below_the_log_and_takes_it_away_at_the_end():
    output = on_a_terminal(LONG.format(at_once=0.1))
    assert "rollout:  67%|" in output
    assert "2/3 [" in output
    assert " answers/s, 2 cached]" in output
    assert "per second" not in output  # the bar says it
    lines = [line.rstrip("\r").rpartition("\r")[2].strip() for line in output.split("\n")]
    assert lines == ["line 0", "line 1", "line 2", ""]


def test_a_terminal_shows_no_bar_for_short_work():
    assert on_a_terminal(LONG.format(at_once=60.0)).replace("\r", "").split("\n") == ["line 0", "line 1", "line 2", ""]
