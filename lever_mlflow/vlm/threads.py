"""Has several threads work through batches, each with a copy of the model and on one core.

The matrices of a small model are too small to be shared out between cores: with two threads inside each operation of PyTorch
the embedded VLM answers hardly faster than with one. Whole batches side by side use the cores.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["copies", "in_threads"]

_AHEAD = 2  # batches for each thread that are begun or wait, so that no thread is idle while the oldest result is awaited

Model = TypeVar("Model")
Item = TypeVar("Item")
Result = TypeVar("Result")


def copies(model: Any, count: int) -> list[Any]:
    """Returns a model and copies of it, ``count`` in total, that share their parameters and nothing else."""
    return [model, *(copy.deepcopy(model, {id(part): part for part in model.parameters()}) for _ in range(count - 1))]


def in_threads(work: Callable[[Model, Item], Result], items: Iterable[Item], models: Sequence[Model]) -> Iterator[Result]:
    """Yields ``work(model, item)`` for each item, in the order of the items.

    With one model the calling thread does everything. With several, as many threads work, and none shares its model with
    another one while it works. The calling thread takes the items from their iterator, so that making them need not be safe
    with several threads. PyTorch then uses one thread in each operation, and its old number when this iterator has ended.

    An error of ``work`` is raised in its place in the order. When it is raised, or the iterator is closed or interrupted, items
    that no thread has begun are dropped.
    """
    if len(models) == 1:
        for item in items:
            yield work(models[0], item)
        return
    import torch

    free: SimpleQueue[Model] = SimpleQueue()
    for model in models:
        free.put(model)

    def work_with_free_model(item: Item) -> Result:
        model = free.get()
        try:
            return work(model, item)
        finally:
            free.put(model)

    running: deque[Future[Result]] = deque()
    operation_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread and of those that begin from now on
    try:
        with ThreadPoolExecutor(len(models)) as pool:
            try:
                for item in items:
                    running.append(pool.submit(work_with_free_model, item))
                    if len(running) == _AHEAD * len(models):
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(operation_threads)
