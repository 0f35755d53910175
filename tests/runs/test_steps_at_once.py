"""Processes that run the same step at the same time: one does the work, and the others take its result."""

import multiprocessing
import os
import signal
import time

import mlflow
import pytest

from lever_mlflow.files import locks
from lever_mlflow.runs.steps import Step, ensure, project_run, run_here

PROCESS = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch):
    monkeypatch.setattr(locks, "_PAUSE", 0.05)


def step(log, killed=False):
    def execute():
        with log.open("a") as file:
            file.write("done\n")
        while len(list(log.parent.glob("begun-*"))) < 2:
            time.sleep(0.02)
        time.sleep(0.5)
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)

    return Step("rollout", "rollout", {}, {}, execute)


def run(uri, log, run_as, results, killed=False):
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("test")
    with project_run("test"):
        log.with_name(f"begun-{os.getpid()}").touch()
        results.put(run_as(step(log, killed)))


def at_once(uri, log, run_as, **first):
    """Runs the step in two processes, and returns what they say is the run with the result; the first one begins earlier."""
    results = PROCESS.Queue()
    processes = [PROCESS.Process(target=run, args=(uri, log, run_as, results), kwargs=kwargs) for kwargs in (first, {})]
    processes[0].start()
    while not log.exists():
        time.sleep(0.02)
    processes[1].start()
    for process in processes:
        process.join(60)
    return [results.get(timeout=5) for process in processes if process.exitcode == 0]


@pytest.mark.parametrize("run_as", [ensure, run_here])
def test_of_two_at_once_one_works_and_both_have_its_result(mlflow_store, tmp_path, run_as):
    results = at_once(mlflow_store, tmp_path / "log", run_as)
    assert (tmp_path / "log").read_text() == "done\n"
    assert len(results) == 2
    assert len(set(results)) == 1


def test_where_the_first_is_killed_the_second_works(mlflow_store, tmp_path):
    (result,) = at_once(mlflow_store, tmp_path / "log", ensure, killed=True)
    assert (tmp_path / "log").read_text() == "done\ndone\n"
    assert mlflow.get_run(result).info.status == "FINISHED"
