"""One run in several processes, as ``accelerate launch`` starts them.

The first process leads: it does what a single process would, and alone speaks to MLflow. The others follow: they call what it
tells them to call, with what it hands them, and so take their part of a training or of the VLM's answers. In training each
process takes every n-th query of a step, and gradients and figures are averaged over all queries of the step, so that the
number of processes changes nothing but the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import Tensor, nn

__all__ = ["average", "call_followers", "collect", "follow", "gathered", "join", "release", "share", "total", "wrapped"]

_PATIENCE = timedelta(days=1)  # followers wait while the leader makes the data, or waits for MLflow


@cache
def join(device: str) -> Accelerator:
    """The processes that were launched together, this one alone where nothing was; its ``device`` is this process's own."""
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[patience])  # log-probs stay float32


def call_followers(processes: Accelerator, function: Callable[..., object], *arguments: Any) -> None:
    """Has every follower call a function while the leader goes on; both must meet in whatever the function exchanges."""
    if processes.num_processes > 1:
        broadcast_object_list([(function, arguments)])


def follow(processes: Accelerator) -> None:
    """What a follower does: calls what the leader says, until it is released."""
    while (call := broadcast_object_list([None])[0]) is not None:
        function, arguments = call
        function(*arguments)
    _part(processes)


def release(processes: Accelerator) -> None:
    """Ends the followers, once nothing is left to do."""
    if processes.num_processes > 1:
        broadcast_object_list([None])
        _part(processes)


def _part(processes: Accelerator) -> None:
    """Closes the connections in all processes together; one that ends while others still use them may be aborted."""
    processes.wait_for_everyone()
    torch.distributed.destroy_process_group()


def wrapped(processes: Accelerator, model: nn.Module) -> nn.Module:
    """The model, with gradients averaged over the processes where there are several."""
    return processes.prepare(model) if processes.num_processes > 1 else model


def share(processes: Accelerator, rows: np.ndarray) -> np.ndarray:
    """This process's part of the rows."""
    return rows[processes.process_index :: processes.num_processes]


def average(processes: Accelerator, values_M: Tensor, weight: int) -> tuple[Tensor, float, int]:
    """Means over all processes by weight, by what to multiply a loss so that the processes' mean of it is such a mean, and all
    weights together; all 0 where the weights are.
    """
    if processes.num_processes == 1:
        return values_M, 1.0, weight
    sums = processes.reduce(torch.cat([values_M.double() * weight, values_M.new_tensor([weight], dtype=torch.float64)]), "sum")
    whole = float(sums[-1]) or 1.0
    return sums[:-1] / whole, weight * processes.num_processes / whole, int(sums[-1])


def total(processes: Accelerator, values: Iterable[float]) -> list[float]:
    """The sum of each value over all processes."""
    sums: Tensor = processes.reduce(torch.tensor(list(values), dtype=torch.float64, device=processes.device), "sum")
    return sums.tolist()


def collect(processes: Accelerator, items: list[Any]) -> list[Any]:
    """The items of all processes, one behind the other."""
    return list(gather_object(items)) if processes.num_processes > 1 else items


def gathered(processes: Accelerator, tensors: list[Tensor]) -> Tensor:
    """Tensors of all processes, one behind the other."""
    return torch.cat(collect(processes, tensors))
