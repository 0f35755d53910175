"""Runs of processes that are gone, of living ones, and of those that cannot be seen from here."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent

from lever_mlflow import process_identity
from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.runs import processes
from lever_mlflow.runs.optional_runs import passing_run
from lever_mlflow.runs.steps import Step, ensure, project_run

PROCESS = multiprocessing.get_context("fork")


def open_run(process, name="left"):
    """Makes a run that is RUNNING under the name of a process."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("test").experiment_id
    return client.create_run(experiment, run_name=name, tags={"lever.process": process}).info.run_id


def status_after_a_command(run_id):
    with project_run("later"):
        pass
    return mlflow.get_run(run_id).info.status


def sleeper():
    """Starts a process that sleeps, and returns it with its name."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return child, f"{process_identity._place()} {child.pid} {process_identity._started(child.pid)}"


def test_the_run_of_a_killed_process_is_closed_and_that_of_a_living_one_is_not(mlflow_store, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    child, name = sleeper()
    run_id = open_run(name)
    assert status_after_a_command(run_id) == "RUNNING"
    child.kill()
    time.sleep(0.2)  # it is a zombie now
    assert status_after_a_command(run_id) == "KILLED"
    child.wait()
    assert caplog.messages == [f"marked as KILLED, since their processes are gone: left (run {run_id})"]
    tags = mlflow.get_run(run_id).data.tags
    assert tags["lever.killed"] == "its process was gone, and had not closed it"
    assert tags["mlflow.note.content"] == "killed: its process ended without closing this run; a later command closed it"


def test_what_is_closed_and_what_cannot_be_known(mlflow_store, monkeypatch):
    child, _ = sleeper()
    child.kill()
    child.wait()
    host, _, boot, namespace, number, started = process_identity.this_process().split()
    monkeypatch.setattr(process_identity, "_OF_MACHINE", namespace)
    monkeypatch.setattr(process_identity, "_machine", lambda: "a1")
    here, gone = f"{host} a1 {boot} {namespace}", f"{child.pid} 5"
    cases = {
        f"{here} {gone}": "KILLED",
        f"{here} {number} {int(started) - 1}": "KILLED",  # the number is another process' by now
        f"{host} a1 {boot[:-1]}x {namespace} {number} {started}": "KILLED",  # before this machine was started anew
        f"{here} {number} {started}": "RUNNING",
        f"other a1 {boot} {namespace} {gone}": "RUNNING",
        f"{host} b2 {boot[:-1]}x {namespace} {gone}": "RUNNING",  # another machine of that name
        f"{host} a1 {boot[:-1]}x pid:[4026500000] {gone}": "RUNNING",  # a container, which may be on another machine
        f"{host} a1 {boot} pid:[4026500000] {gone}": "RUNNING",  # another container with that host name
        f"{here} some 5": "RUNNING",
        f"{host} ": "RUNNING",
        f"{host} {child.pid} 1699999999.12": "RUNNING",  # as earlier versions of this package wrote it
    }
    runs = {process: open_run(process) for process in cases}
    with project_run("later"):
        pass
    assert {process: mlflow.get_run(run_id).info.status for process, run_id in runs.items()} == cases


def test_runs_of_others_and_of_other_experiments_are_left_alone(mlflow_store):
    client = MlflowClient()
    child, name = sleeper()
    child.kill()
    child.wait()
    foreign = client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id
    elsewhere = client.create_run(client.create_experiment("other"), tags={"lever.process": name}).info.run_id
    with project_run("later"):
        pass
    for run_id in (foreign, elsewhere):
        assert client.get_run(run_id).info.status == "RUNNING"


def test_a_process_that_cannot_be_looked_at_is_not_taken_for_gone(mlflow_store, monkeypatch):
    """Where another user's processes are hidden, as by hidepid=2, they exist but tell nothing."""
    child, name = sleeper()
    run_id = open_run(name)

    def hidden(number, entries):
        raise PermissionError

    monkeypatch.setattr(os, "kill", hidden)
    monkeypatch.setattr(process_identity, "_started", lambda number: None)
    assert processes.is_running(mlflow.get_run(run_id)) is None
    monkeypatch.undo()
    child.kill()
    child.wait()


def test_a_run_that_ended_after_the_look_at_it_keeps_its_status(mlflow_store):
    child, name = sleeper()
    child.kill()
    child.wait()
    run = mlflow.get_run(open_run(name))
    MlflowClient().set_terminated(run.info.run_id, "FINISHED")
    assert not processes._close(run)
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


def test_a_run_names_its_process_while_it_is_open(mlflow_store):
    process_tags = []

    def look():
        process_tags.append(mlflow.get_run(mlflow.active_run().info.run_id).data.tags["lever.process"])

    with project_run("parent") as run:
        look()
        child = ensure(Step("s", "s", {}, {}, look))
    assert process_tags == [process_identity.this_process()] * 2
    for run_id in (run.info.run_id, child):
        assert "lever.process" not in mlflow.get_run(run_id).data.tags


def killed_within(uri, depth):
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("test")
    with project_run("main"):
        if depth == 2:
            ensure(Step("rollout", "rollout", {}, {}, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("depth", [1, 2])
def test_all_runs_of_a_killed_process_are_closed_with_one_line(mlflow_store, depth, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    process = PROCESS.Process(target=killed_within, args=(mlflow_store, depth))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with project_run("later") as later:
        pass
    runs = mlflow.search_runs(output_format="list")
    assert sorted(run.info.status for run in runs) == ["FINISHED", *["KILLED"] * depth]
    (line,) = [message for message in caplog.messages if message.startswith("marked as KILLED")]
    for run in runs:
        assert (run.info.run_id in line) == (run.info.run_id != later.info.run_id)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_id_left_over_in_the_environment_is_named_and_the_run_stays_as_it_is(mlflow_store, monkeypatch, status):
    client = MlflowClient()
    run_id = open_run("", "of somebody")
    client.set_terminated(run_id, status)
    before = client.get_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    message = rf"MLFLOW_RUN_ID={run_id}: that run has ended \({status}\), and plan of main would write into it; unset"
    with pytest.raises(MissingRunError, match=message), passing_run("plan of main", "plan"):
        pass
    assert client.get_run(run_id).to_dictionary() == before.to_dictionary()


def test_a_run_that_another_process_works_on_is_not_joined(mlflow_store, monkeypatch):
    child, name = sleeper()
    monkeypatch.setenv("MLFLOW_RUN_ID", open_run(name))
    with pytest.raises(MissingRunError, match="is being worked on by another process"), project_run("later"):
        pass
    child.kill()
    child.wait()


def test_a_plan_in_a_run_that_the_user_opened_never_sends_it_to_the_trash(mlflow_store, monkeypatch):
    run_id = open_run("", "of somebody")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with passing_run("plan of main", "plan"):
        pass
    with passing_run("plan of main", "plan"):
        pass
    run = mlflow.get_run(run_id)
    assert run.info.lifecycle_stage == "active"
    assert "lever.step" not in run.data.tags


def test_a_clock_that_was_set_back_is_said_and_gives_no_negative_time(mlflow_store, monkeypatch, caplog):
    with project_run("first") as first:
        pass
    now, now_ns = time.time, time.time_ns
    with project_run("during") as during:
        monkeypatch.setattr(time, "time", lambda: now() - 7200)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() - 7200 * 10**9)
    info = mlflow.get_run(during.info.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", info.start_time)
    assert not caplog.messages
    with project_run("later"):
        pass
    (message,) = caplog.messages
    assert message.startswith(
        f"the clock says that during (run {during.info.run_id}) began 2 h 0 min from now; it was set back, or is wrong"
    )
    assert first.info.run_id not in message


@pytest.mark.parametrize("setting", [None, "5"])
def test_a_server_that_is_gone_is_not_waited_for_once_more_by_each_open_run(mlflow_store, monkeypatch, setting):
    """MLflow waits about four minutes for it: in the call that failed, and again in ending each of the nested runs."""
    if setting is not None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", setting)
    end_run, retries = fluent.end_run, []

    def ending(status):
        retries.append(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())
        end_run(status)

    monkeypatch.setattr(fluent, "end_run", ending)
    with pytest.raises(MlflowException), processes.run_of_this_process(), processes.run_of_this_process(nested=True):
        raise MlflowException("API request failed")
    assert retries == [0, 0]
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw() == setting
    with pytest.raises(ValueError, match="other"), processes.run_of_this_process():
        raise ValueError("other")
    assert retries[2:] == [int(setting or 7)]
