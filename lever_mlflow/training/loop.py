"""Runs the training loop that RCE and GRPO share: batches, optimiser, learning rate, epochs and early stopping.

All randomness is drawn from the seed and the epoch's number, so that an epoch does not depend on whether the epochs before it
ran in this process.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lever_mlflow import distributed
from lever_mlflow.exceptions import LeverError
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import LrScheduler
from lever_mlflow.training.batches import GroupBatch, GroupTable
from lever_mlflow.training.state import Metrics, TrainingState, restore_state, take_state

__all__ = ["Epoch", "Objective", "StepOutput", "TrainingState", "lr_factor", "train_epochs"]


class StepOutput(NamedTuple):
    """Holds what an objective computes of one batch.

    Attributes:
        loss: scalar to minimise, the mean over the counted queries.
        n_counted: number of queries that ``loss`` and ``means`` are means over.
        means: further scalars, to be averaged over the epoch's counted queries.
        values: tensors to be collected over the whole epoch.
    """

    loss: Tensor
    n_counted: int
    means: Mapping[str, Tensor] = {}
    values: Mapping[str, Tensor] = {}


class Objective(Protocol):
    """Describes what a trainer gives to the loop: the loss of a step, and the metrics of an epoch."""

    @property
    def title(self) -> str:
        """What is trained, for the progress bar."""
        ...

    def step(self, model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        """Computes the loss of a batch.

        Args:
            model: the module whose call returns step log-probs, so that gradients reach all processes.
            batch: the queries of the step.
            progress: share of all training steps that are done, from 0 at the first to 1 at the last.
        """
        ...

    def finish(self, metrics: Metrics, values: Mapping[str, Tensor]) -> Metrics:
        """Returns the metrics to add at the end of an epoch, given its mean metrics and its collected values."""
        ...


class LoopSettings(Protocol):
    """Describes what the loop reads of a trainer's settings."""

    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def lr_scheduler(self) -> LrScheduler: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def grad_clip(self) -> float: ...
    @property
    def early_stopping(self) -> int: ...


class Epoch(NamedTuple):
    """Holds one finished epoch.

    Attributes:
        epoch: its number, from 1.
        metrics: its metrics by name.
        selector: the selector in training; the next epoch changes it, so use or copy it before.
        state: what a training needs to go on after this epoch.
    """

    epoch: int
    metrics: Metrics
    selector: PointerSelector
    state: TrainingState


def lr_factor(kind: LrScheduler, progress: float) -> float:
    """Returns the share of the learning rate at ``progress`` in [0, 1] of all steps: 1, linear to 0, or half a cosine to 0."""
    match kind:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def train_epochs(
    selector: PointerSelector,
    groups: GroupTable,
    objective: Objective,
    settings: LoopSettings,
    *,
    seed: int,
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains ``selector`` in place, in every process of the training, and yields each epoch when it is finished.

    Each epoch has these metrics: ``train_loss`` and the step's means, over the training queries; ``grad_norm``, the mean norm
    before clipping; ``reward_mean`` and ``frac_reward_zero_std`` of the training trials; ``lr`` at the epoch's last step; those
    of the objective; and ``seconds``. Training ends early when ``early_stopping`` epochs in a row did not raise
    ``expected_reward``.

    Args:
        selector: moved by the optimiser where its parameters require gradients.
        groups: the training queries.
        objective: gives the loss and further metrics, ``expected_reward`` among them.
        settings: of the optimiser and of the number of steps.
        seed: decides the order of the queries and the hidden units that dropout takes out.
        device: ``cpu`` or ``cuda``.
        state: of an earlier run with the same arguments, after whose last epoch training goes on.

    Raises:
        LeverError: the loss is not finite.
        CheckpointError: ``state`` is of another selector.
    """
    trainable = {name: parameter for name, parameter in selector.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=settings.lr)
    history: list[Metrics] = []
    if state is not None:
        history = [dict(metrics) for metrics in state.history]
        restore_state(state, selector, optimizer, trainable)
    model = distributed.wrapped(distributed.join(device), selector)
    training = _Training(model, trainable, optimizer, groups, objective, settings, seed, device)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        if _has_stalled(history, settings.early_stopping):
            return
        history.append(_train_epoch(training, epoch))
        yield Epoch(epoch, history[-1], selector, take_state(history, selector, optimizer, trainable))


@dataclass(frozen=True)
class _Training:
    """Holds what all epochs of a training share."""

    model: nn.Module  # the selector, wrapped where several processes train it
    trainable: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    groups: GroupTable
    objective: Objective
    settings: LoopSettings
    seed: int
    device: str

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in which an epoch goes once through all queries."""
        return math.ceil(len(self.groups) / self.settings.batch_size)


class _EpochSums:
    """Collects the figures of an epoch's steps."""

    def __init__(self) -> None:
        self.weighted: dict[str, float] = defaultdict(float)  # sum over steps of mean times number of counted queries
        self.n_counted = 0
        self.norms: list[float] = []  # gradient norm times number of queries
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, means: Mapping[str, float], n_counted: int, grad_norm: float, n_queries: int) -> None:
        """Adds the figures of one step, which are the same in all processes."""
        for name, mean in means.items():
            self.weighted[name] += mean * n_counted
        self.n_counted += n_counted
        self.norms.append(grad_norm * n_queries)

    def means(self, n_queries: int) -> Metrics:
        """Returns the means over the epoch's counted queries, and that of the gradient norm over all ``n_queries``."""
        metrics = {name: total / max(self.n_counted, 1) for name, total in self.weighted.items()}
        metrics["grad_norm"] = sum(self.norms) / n_queries
        return metrics


def _train_epoch(training: _Training, epoch: int) -> Metrics:
    """Trains on all queries once and returns the epoch's metrics."""
    groups, batch_size = training.groups, training.settings.batch_size
    processes = distributed.join(training.device)
    started = time.perf_counter()
    torch.manual_seed(_dropout_seed(training.seed, epoch, processes.process_index))
    order = np.random.default_rng([training.seed, epoch]).permutation(len(groups))
    starts = range(0, len(groups), batch_size)
    title = f"{training.objective.title} epoch {epoch}"
    sums, lr = _EpochSums(), 0.0
    for i, start in enumerate(tqdm(starts, title, unit="step", disable=None if processes.is_main_process else True)):
        done = (epoch - 1) * training.steps_per_epoch + i
        lr = _train_step(training, done, order[start : start + batch_size], sums)
    metrics = sums.means(len(groups))
    metrics |= {"reward_mean": groups.reward_mean, "frac_reward_zero_std": groups.frac_zero_spread, "lr": lr}
    values = {name: distributed.gathered(processes, tensors) for name, tensors in sums.values.items()}
    metrics |= training.objective.finish(metrics, values)
    metrics["seconds"] = time.perf_counter() - started
    return metrics


def _train_step(training: _Training, done: int, rows: np.ndarray, sums: _EpochSums) -> float:
    """Takes an optimiser step on the queries of ``rows``, after ``done`` steps of all epochs, and returns the learning rate."""
    settings, optimizer = training.settings, training.optimizer
    processes = distributed.join(training.device)
    n_steps = settings.epochs * training.steps_per_epoch
    lr = settings.lr * lr_factor(settings.lr_scheduler, done / n_steps)  # by n_steps: the last step still moves something
    for group in optimizer.param_groups:
        group["lr"] = lr
    share = distributed.share(processes, rows)
    # All processes take part in every step: one without a query, in a small last step, computes a query that does not count.
    batch = training.groups.batch(share if len(share) else rows[:1], str(processes.device), rows)
    output = training.objective.step(training.model, batch, done / max(n_steps - 1, 1))
    figures = {"train_loss": output.loss, **output.means}
    stacked = torch.stack([figure.detach() for figure in figures.values()])
    averaged = distributed.average(processes, stacked, output.n_counted if len(share) else 0)
    _check_finite(float(averaged.means_M[0]), training.groups.query_ids_Q[rows])
    optimizer.zero_grad()
    processes.backward(output.loss * averaged.loss_factor)
    norm = torch.nn.utils.clip_grad_norm_(list(training.trainable.values()), settings.grad_clip)
    optimizer.step()
    sums.add(dict(zip(figures, averaged.means_M.tolist(), strict=True)), averaged.total_weight, norm.item(), len(rows))
    for name, tensor in output.values.items():
        sums.values[name].append(tensor.detach().cpu()[: None if len(share) else 0])
    return lr


def _dropout_seed(seed: int, epoch: int, process: int) -> int:
    """Returns a seed for each process: with the same one, dropout would take the same hidden units from all their queries."""
    return int(np.random.SeedSequence([seed, epoch, process] if process else [seed, epoch]).generate_state(1)[0])


def _check_finite(loss: float, query_ids: np.ndarray) -> None:
    if not math.isfinite(loss):
        raise LeverError(
            f"loss is {loss} on queries {query_ids.tolist()}; choose a smaller lr or smaller weights in the loss, "
            "or check the features of these queries and their pools"
        )


def _has_stalled(history: list[Metrics], patience: int) -> bool:
    """Tells whether the last ``patience`` epochs brought no higher expected reward than the best before; never if it is 0."""
    rewards = [metrics["expected_reward"] for metrics in history]
    return bool(patience) and len(rewards) > patience and max(rewards[-patience:]) <= max(rewards[:-patience])
