"""How OpenMP's threads wait for each other: asleep, unless the user has chosen otherwise, and with the same results."""

import os
import re
import subprocess
import sys

import pytest
from helpers.projects import ROOT

from benchmarks import threads

FREE = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


@pytest.mark.parametrize(
    ("chosen", "turns"), [({}, "0"), ({"OMP_WAIT_POLICY": "active"}, "30000000000"), ({"GOMP_SPINCOUNT": "77"}, "77")]
)
def test_waiting_threads_take_no_turns_unless_the_user_has_them_do_so(chosen, turns):
    """OpenMP's library says how many turns a thread waits actively when PyTorch loads it."""
    result = subprocess.run(
        [sys.executable, "-c", "import lever_mlflow, torch"],
        env={**FREE, **chosen, "OMP_DISPLAY_ENV": "verbose"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", result.stderr)) == {turns}


@pytest.mark.slow
def test_weights_do_not_depend_on_how_threads_wait(monkeypatch):
    monkeypatch.chdir(ROOT)
    active, passive = (threads.figures_of_process(way, 8) for way in ("active", "passive"))
    for training in threads.TRAININGS:
        assert active[f"{training} digest"] == passive[f"{training} digest"]
        assert len(active[f"{training} digest"]) == 64
