"""Connects the processes that work on one run, as ``accelerate launch`` starts them.

The first process leads. It does what a single process would do, and it alone speaks to MLflow. The other processes follow:
they wait for the leader to send a function and its arguments, and call it. In this way they take part in a training, or answer
a share of the prompts.

In training, each of P processes takes every P-th query of a step. Gradients and figures are averaged over all queries of the
step, so that the number of processes changes nothing but the order in which numbers are added.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed import DistError, Store, TCPStore  # type: ignore[attr-defined]

from lever_mlflow.exceptions import LeverError, ParameterError, first_line
from lever_mlflow.launch import REMEDY, Launch, check_switches, launch_of

__all__ = [
    "JOIN_SECONDS",
    "WeightedMeans",
    "average",
    "call_followers",
    "collect",
    "follow",
    "gathered",
    "join",
    "lost_processes_named",
    "machine",
    "release",
    "share",
    "total",
    "wrapped",
]

JOIN_SECONDS = "LEVER_MLFLOW_JOIN_SECONDS"  # environment variable: how long processes wait for each other at the start
_PATIENCE = timedelta(days=1)  # followers wait while the leader prepares the data or waits for MLflow
_MACHINE = "GROUP_RANK"  # variable of torchrun and accelerate
_USUAL_SECONDS = 5  # in which the processes of a launch find each other
log = logging.getLogger(__name__)


class WeightedMeans(NamedTuple):
    """Holds means over all processes, in which each process counts by its weight.

    Attributes:
        means_M: weighted mean of each of the M values.
        loss_factor: factor by which this process scales its loss, so that plain averaging of gradients over the processes
            equals the weighted mean.
        total_weight: sum of the weights of all processes.
    """

    means_M: Tensor
    loss_factor: float
    total_weight: int


@cache
def join(device: str) -> Accelerator:
    """Joins the processes that were launched together, and returns the connection to them.

    A process that was launched alone gets a connection to itself only. The connection's ``device`` is that of this process.

    Args:
        device: ``cpu``, or anything else for the accelerator of this process.

    Raises:
        ParameterError: the environment describes a launch in part only, or the other processes of the launch do not come.
    """
    launch = launch_of(os.environ)
    check_switches(os.environ)
    meeting_point = _roll_call(launch) if launch else None
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    try:
        processes = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[patience])  # log-probs stay float32
    except (ImportError, RuntimeError, ValueError) as error:
        raise ParameterError(f"accelerate cannot connect the processes ({first_line(error)}); {REMEDY}") from error
    del meeting_point  # which had to last until here
    if device in ("cpu", "cuda") and processes.device.type != device:
        raise ParameterError(
            f"device={device}, but accelerate takes {processes.device.type}; "
            "unset ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE"
        )
    return processes


def machine(processes: Accelerator) -> int:
    """Returns the number of this machine among those of a launch; 0 where the process was launched alone."""
    number = os.environ.get(_MACHINE, "0")
    return int(number) if processes.num_processes > 1 and number.isdecimal() else 0


@contextmanager
def lost_processes_named(processes: Accelerator) -> Iterator[None]:
    """Turns the error of a connection to a process that is gone into one line.

    Raises:
        LeverError: another process of the launch ended.
    """
    try:
        yield
    except RuntimeError as error:  # of which PyTorch's own errors of connections are kinds
        lost = isinstance(error, DistError) or "onnection" in str(error)
        if processes.num_processes == 1 or not lost:
            raise
        raise LeverError(
            f"process {processes.process_index} of {processes.num_processes}: another process of this launch ended "
            f"({first_line(error)[-200:]}); the line that it printed, or its signal, says why; run the command again"
        ) from error


def call_followers(processes: Accelerator, function: Callable[..., object], *arguments: Any) -> None:
    """Has every follower call a function, and returns at once.

    If the function exchanges data between processes, then the leader must take part in each exchange.
    """
    if processes.num_processes > 1:
        broadcast_object_list([(function, arguments)])


def follow(processes: Accelerator) -> None:
    """Calls each function that the leader sends, until the leader releases the followers; only followers call this."""
    while (call := broadcast_object_list([None])[0]) is not None:
        function, arguments = call
        function(*arguments)
    _disconnect(processes)


def release(processes: Accelerator) -> None:
    """Ends the work of the followers; only the leader calls this."""
    if processes.num_processes > 1:
        broadcast_object_list([None])
        _disconnect(processes)


def _disconnect(processes: Accelerator) -> None:
    """Closes the connections in all processes at the same time.

    A process that ends while others still use its connections may be aborted.
    """
    processes.wait_for_everyone()
    torch.distributed.destroy_process_group()


def _roll_call(launch: Launch) -> Store:
    """Waits until all processes of a launch are there; returns the meeting point, which must last until they are connected.

    PyTorch would wait in code that hears no signal. Here no call takes much longer than a second.

    Raises:
        ParameterError: they are not there in time, or where they are to meet does not answer.
    """
    patience, began, announced, reason = _join_seconds(), time.monotonic(), False, ""
    store, missing = None, [rank for rank in range(launch.size) if rank != launch.rank]
    while True:
        try:
            store = store or _meeting_point(launch)
            missing = [rank for rank in missing if not store.check([_key(rank)])]
            if not missing:
                return store
        except DistError as error:  # nothing listens there yet, or something else does
            store, reason = None, f" ({first_line(error)[:200]})"
        waited = time.monotonic() - began
        if waited >= patience:
            raise ParameterError(
                f"process {launch.rank} of {launch.size} waited {waited:.0f} seconds for {_absent(launch, missing)}{reason}; "
                f"{REMEDY}; {JOIN_SECONDS} sets how long is waited"
            )
        if waited >= _USUAL_SECONDS and not announced:
            log.warning("waiting up to %g seconds for %s", patience, _absent(launch, missing))
            announced = True
        time.sleep(0.05)


def _meeting_point(launch: Launch) -> Store:
    """Connects to where the processes of a launch meet, as ``torch.distributed`` does, and says that this one is there.

    The first process opens it, unless torchrun has done so. PyTorch opens it once more in this process, and shares it then.
    """
    host, _, port = launch.place.rpartition(":")
    opens = launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(host, int(port), None, opens, timedelta(seconds=1), wait_for_workers=False, multi_tenant=True)
    store.set(_key(launch.rank), "here")
    return store


def _key(rank: int) -> str:
    return f"lever_mlflow/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}"


def _absent(launch: Launch, ranks: list[int]) -> str:
    """Names the processes that are still waited for, and where."""
    if not ranks:
        return f"an answer at {launch.place}"
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"process{'es' * (len(ranks) > 1)} {shown} of {launch.size} at {launch.place}"


def _join_seconds() -> float:
    text = os.environ.get(JOIN_SECONDS, "60")
    try:
        seconds = float(text)
        if 0 < seconds < 1e6:
            return seconds
    except ValueError:
        pass
    raise ParameterError(f"{JOIN_SECONDS}={text} is not a number of seconds above 0")


def wrapped(processes: Accelerator, model: nn.Module) -> nn.Module:
    """Returns the model, wrapped so that its gradients are averaged over the processes where there are several."""
    return processes.prepare(model) if processes.num_processes > 1 else model


def share(processes: Accelerator, rows: np.ndarray) -> np.ndarray:
    """Returns this process's share of the rows: every P-th of them, where P is the number of processes."""
    return rows[processes.process_index :: processes.num_processes]


def average(processes: Accelerator, values_M: Tensor, weight: int) -> WeightedMeans:
    """Averages values over all processes, each weighted by ``weight``; means and factor are 0 where all weights are 0.

    A single process gets its values back as they are.
    """
    if processes.num_processes == 1:
        return WeightedMeans(values_M, 1.0, weight)
    sums = processes.reduce(torch.cat([values_M.double() * weight, values_M.new_tensor([weight], dtype=torch.float64)]), "sum")
    divisor = float(sums[-1]) or 1.0
    return WeightedMeans(sums[:-1] / divisor, weight * processes.num_processes / divisor, int(sums[-1]))


def total(processes: Accelerator, values: Iterable[float]) -> list[float]:
    """Returns the sum of each value over all processes."""
    sums: Tensor = processes.reduce(torch.tensor(list(values), dtype=torch.float64, device=processes.device), "sum")
    return sums.tolist()


def collect(processes: Accelerator, items: list[Any]) -> list[Any]:
    """Returns the items of all processes in one list, in the order of the processes."""
    return list(gather_object(items)) if processes.num_processes > 1 else items


def gathered(processes: Accelerator, tensors: list[Tensor]) -> Tensor:
    """Returns the tensors of all processes, joined along their first dimension in the order of the processes."""
    return torch.cat(collect(processes, tensors))
