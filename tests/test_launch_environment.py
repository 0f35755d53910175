"""What an earlier launch of several processes left in the environment: named in a line, and waited for a minute at most."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.projects import ROOT
from helpers.servers import free_port

from lever_mlflow import distributed
from lever_mlflow.exceptions import LeverError, ParameterError
from lever_mlflow.launch import Launch, check_switches, launch_of

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"},
        {"LOCAL_RANK": ""},
        {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
    ],
)
def test_environments_without_a_launch(environment):
    assert launch_of(environment) is None


def test_launches():
    assert launch_of(WHOLE) == Launch(1, 2, "here:29500")
    mpi = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert launch_of({**mpi, "MASTER_ADDR": "a", "MASTER_PORT": "7"}) == Launch(3, 4, "a:7")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"LOCAL_RANK": "0"},
            r"^LOCAL_RANK=0, as in a launch .* but without RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; unset",
        ),
        ({"WORLD_SIZE": "2"}, r"^WORLD_SIZE=2, .* but without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; unset"),
        ({"PMI_SIZE": "4"}, r"^PMI_SIZE=4, .* but without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; unset"),
        ({**WHOLE, "MASTER_ADDR": ""}, "but without MASTER_ADDR; unset"),
        ({**WHOLE, "LOCAL_RANK": "a"}, "^LOCAL_RANK=a is not a number; unset"),
        ({**WHOLE, "RANK": "-1"}, "^RANK=-1 is not a number; unset"),
        ({**WHOLE, "RANK": "2"}, "RANK=2, WORLD_SIZE=2, .*: there is no such launch; unset"),
        ({**WHOLE, "MASTER_PORT": "99999"}, "there is no such launch; unset"),
    ],
)
def test_what_is_missing_or_cannot_be_is_named(environment, message):
    with pytest.raises(ParameterError, match=message):
        launch_of(environment)


@pytest.mark.parametrize(
    ("name", "value"), [("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_USE_DEEPSPEED", "true")]
)
def test_switches_that_would_change_a_training_are_refused(name, value):
    with pytest.raises(ParameterError, match=f"{name}={value}: trainings here know no such thing; unset it"):
        check_switches({name: value})
    check_switches({"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_MIXED_PRECISION": "no"})


def test_only_a_launch_of_several_has_machines(monkeypatch):
    monkeypatch.setenv("GROUP_RANK", "2")
    assert distributed.machine(SimpleNamespace(num_processes=1)) == 0
    assert distributed.machine(SimpleNamespace(num_processes=2)) == 2


def test_a_lost_process_is_one_line():
    pair = SimpleNamespace(num_processes=2, process_index=0)
    with (
        pytest.raises(LeverError, match="process 0 of 2: another process of this launch ended"),
        distributed.lost_processes_named(pair),
    ):
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:46")
    with pytest.raises(RuntimeError, match="other"), distributed.lost_processes_named(pair):
        raise RuntimeError("other")
    with pytest.raises(torch.distributed.DistError), distributed.lost_processes_named(SimpleNamespace(num_processes=1)):
        raise torch.distributed.DistError("lost")


@pytest.mark.parametrize("seconds", ["0", "soon", "nan"])
def test_how_long_is_waited_is_checked(monkeypatch, seconds):
    monkeypatch.setenv("LEVER_MLFLOW_JOIN_SECONDS", seconds)
    with pytest.raises(ParameterError, match=f"LEVER_MLFLOW_JOIN_SECONDS={seconds} is not a number of seconds above 0"):
        distributed._join_seconds()


def command(**environment):
    variables = {name: value for name, value in os.environ.items() if name not in (*WHOLE, "MLFLOW_RUN_ID")}
    return subprocess.Popen(
        [sys.executable, "-m", "entrypoints.rce", "--rl_data", "/nowhere.json", "--device", "cpu"],
        cwd=ROOT,
        env={**variables, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_half_a_launch_is_one_line_of_a_command():
    process = command(LOCAL_RANK="0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: LOCAL_RANK=0, as in a launch of several processes, but without RANK, WORLD_SIZE,")
    assert len(errors.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_named_after_a_while(rank):
    place = {**WHOLE, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = command(**place, LEVER_MLFLOW_JOIN_SECONDS="3")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    line = errors.splitlines()[-1]
    where = f"127.0.0.1:{place['MASTER_PORT']}"
    assert re.match(rf"error: process {rank} of 2 waited [3-9] seconds for process {1 - int(rank)} of 2 at {where}", line)
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_wait_for_others_says_so_and_ends_on_a_signal(rank):
    place = {**WHOLE, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = command(**place)
    lines = []
    while "waiting up to 60 seconds for process" not in "".join(lines[-1:]):
        lines.append(process.stderr.readline())
        assert process.poll() is None, lines
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "error: terminated"
