"""Connects the processes that work on one run, as ``accelerate launch`` starts them.

The first process leads. It does what a single process would do, and it alone speaks to MLflow. The other processes follow:
they wait for the leader to send a function and its arguments, and call it. In this way they take part in a training, or answer
a share of the prompts.

In training, each of P processes takes every P-th query of a step. Gradients and figures are averaged over all queries of the
step, so that the number of processes changes nothing but the order in which numbers are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

__all__ = [
    "WeightedMeans",
    "average",
    "call_followers",
    "collect",
    "follow",
    "gathered",
    "join",
    "release",
    "share",
    "total",
    "wrapped",
]

_PATIENCE = timedelta(days=1)  # followers wait while the leader prepares the data or waits for MLflow


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
    """
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[patience])  # log-probs stay float32


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
