"""Stores that are used for the first time: by several processes at once, and by one that is killed meanwhile."""

import multiprocessing
import os
import signal

import mlflow
from mlflow import MlflowClient
from sqlalchemy import Engine, event

from lever_mlflow.runs.stores import check_stores

PROCESS = multiprocessing.get_context("fork")
FEW, MANY = 5, 1000  # SQL statements; MLflow makes its tables with more than 1,600


def first_use(uri, kill_at):
    if kill_at:
        statements = []

        def count(*_):
            statements.append(1)
            if len(statements) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "before_cursor_execute", count)
    mlflow.set_tracking_uri(uri)
    check_stores()
    with mlflow.start_run(experiment_id="0"):  # and not in that of a test before
        pass


def at_once(uri, *kills):
    """Uses a store in a process for each of the numbers of the statement before which it is killed; 0 kills none."""
    processes = [PROCESS.Process(target=first_use, args=(uri, kill_at)) for kill_at in kills]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_several_use_a_new_store_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    assert at_once(uri, 0, 0) == [0, 0]
    assert len(MlflowClient(uri).search_runs(["0"])) == 2


def test_a_process_that_is_killed_while_it_makes_the_tables_spoils_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    assert [code for kill_at in (FEW, MANY) for code in at_once(uri, kill_at)] == [-signal.SIGKILL] * 2
    assert at_once(uri, 0) == [0]
    assert len(MlflowClient(uri).search_runs(["0"])) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "mlruns"] == ["new.db"]
