"""What the campaign's verdicts rest on: moments, differences and orders."""

import os
import sys
import time

import pytest

from benchmarks.campaign.killed import Writes
from benchmarks.campaign.kills import differences
from benchmarks.campaign.outcome import without_ids
from benchmarks.campaign.places import Kill, Place
from benchmarks.campaign.several import serial_order, unclear
from lever_mlflow import process_identity


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ([], [None]),
        ([("1", "2"), (None, "1")], [None, "1", "2"]),
        ([(None, "1"), ("1", "2"), ("2", "1")], [None, "1", "2", "1"]),
        ([("1", "2"), ("2", "1"), ("1", "3"), (None, "1")], [None, "1", "2", "1", "3"]),
        ([(None, "1"), (None, "2")], None),  # both found no champion
        ([(None, "1"), ("1", "2"), ("1", "3")], None),  # both took the place of version 1
    ],
)
def test_changes_of_champion_that_can_have_happened_one_after_the_other(changes, order):
    assert serial_order(changes, None) == order


def test_a_difference_is_named_where_it_is():
    undisturbed = {"a": {"b": [1, {"c": "same text 1"}], "d": 2}}
    assert differences(undisturbed, {"a": {"b": [1, {"c": "same text 1"}], "d": 2}}) == []
    faults = differences(undisturbed, {"a": {"b": [1, {"c": "same text 2"}]}, "e": None})
    assert faults == [
        '/a/b/1/c: ..."same text 1"... undisturbed, but ...2"',
        "/a/d: ...2... undisturbed, but ...null",
    ]


def test_ids_times_and_seconds_are_no_differences_but_digests_are():
    run, model, digest = "a" * 32, f"m-{'b' * 32}", "c" * 32
    content = {"text": f"runs:/{run}/x of {model}, {digest}, 2026-01-31T12:00:00+00:00.", "train/seconds": 1.5}
    assert without_ids([content], {run, model}) == [{"text": f"runs:/ID/x of ID, {digest}, TIME."}]


def test_a_process_is_killed_before_a_write_of_a_number_and_reading_is_none(tmp_path, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *_: killed.append(writes.count))
    writes = Writes(3)
    writes.audit("open", (str(tmp_path / "a"), "r", os.O_RDONLY))
    writes.audit("open", (str(tmp_path / "a"), "w", os.O_WRONLY | os.O_CREAT))
    writes.audit("open", ("/dev/null", "w", os.O_WRONLY))
    writes.audit("os.rename", (str(tmp_path / "a"), str(tmp_path / "b"), -1, -1))
    assert (writes.count, killed) == (2, [])
    writes()  # a commit
    writes()
    assert (writes.count, killed) == (4, [3])


def test_a_command_is_killed_after_its_processor_time_with_all_that_it_started(tmp_path):
    place = Place(tmp_path / "store")
    place.begin()
    program = "import os\nif started := os.fork(): print(started, flush=True)\nwhile True: pass"
    ended = place.run([sys.executable, "-c", program], Kill(cpu=0.2))
    assert ended.killed
    assert ended.cpu >= 0.2
    deadline = time.monotonic() + 10  # the system takes a moment to end a process
    while process_identity._started(int(ended.output)) not in ("", None):  # not yet a zombie, or gone
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert place.run([sys.executable, "-c", "print('whole')"], Kill(cpu=60.0))[:3] == (0, False, "whole\n")
    (tmp_path / "store" / "cache" / "unsent" / "x").mkdir(parents=True)
    (tmp_path / "store" / "tmp" / "tmpabc").mkdir()
    (tmp_path / "store" / "tmp" / "db_init_lock-1").touch()
    assert place.strays() == ["cache/unsent/x", "tmp/tmpabc"]


def test_one_line_of_refusal_is_clear_and_anything_else_is_not():
    refusal = (1, "log\nerror: somebody else changed it meanwhile\n")
    assert unclear([(0, "done"), refusal], may_refuse=True) == []
    assert len(unclear([refusal])) == 1
    others = [(1, "no line"), (1, "error: a\nerror: b"), (0, "Traceback (most"), (0, "database is locked"), (-9, "")]
    assert len(unclear(others, may_refuse=True)) == len(others)
