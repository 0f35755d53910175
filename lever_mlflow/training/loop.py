"""Runs the training loop that RCE and GRPO share: batches, optimiser, learning rate, epochs, early stopping, and states.

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

from lever_mlflow import distributed
from lever_mlflow.exceptions import CheckpointError, LeverError
from lever_mlflow.progress import Progress
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import LrScheduler
from lever_mlflow.training.batches import GroupBatch, GroupTable
from lever_mlflow.training.diagnosis import no_longer_rising

__all__ = ["Epoch", "Metrics", "Objective", "StepOutput", "TrainingState", "lr_factor", "train_epochs"]

Metrics = dict[str, float]  # of one epoch, by name


class LoopSettings(Protocol):
    """Describes what the loop needs of a trainer's settings."""

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


class StepOutput(NamedTuple):
    """Holds the loss of one batch, and the figures of the batch that the metrics of the epoch are made of.

    Attributes:
        loss: the scalar to minimise.
        counted: the number of queries that the loss and ``means`` are means over.
        means: scalars that are averaged over the queries of the epoch.
        values: tensors that are collected over the whole epoch.
    """

    loss: Tensor
    counted: int
    means: Mapping[str, Tensor] = {}
    values: Mapping[str, Tensor] = {}


class Objective(Protocol):
    """Describes what a trainer optimises; one object lives as long as the training."""

    def step(self, model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        """Computes the loss of a batch.

        Args:
            model: the module to call for log-probs; in several processes it wraps the selector.
            batch: the queries of the step, or this process's share of them.
            progress: the share of the training's steps that are done, from 0 at the first step to 1 at the last.
        """

    def finish(self, metrics: Metrics, values: Mapping[str, Tensor]) -> Metrics:
        """Returns the metrics to add at an epoch's end to the mean ones, ``val/expected_reward`` among them.

        Args:
            metrics: the mean metrics of the epoch.
            values: the ``values`` of the epoch's steps in all processes, concatenated.
        """


@dataclass(frozen=True)
class TrainingState:
    """Holds what training needs to go on after an epoch.

    Attributes:
        history: the metrics of all epochs so far.
        weights: the selector's weights.
        optimizer: the optimiser's tensors, by ``<parameter name>/<quantity>``.
    """

    history: tuple[Metrics, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


class Epoch(NamedTuple):
    """Holds one finished epoch.

    Attributes:
        epoch: its number, from 1.
        metrics: its metrics by name.
        selector: the selector in training; the next epoch changes it, so use it or copy it before.
        state: what training needs to go on after this epoch.
    """

    epoch: int
    metrics: Metrics
    selector: PointerSelector
    state: TrainingState


def lr_factor(kind: LrScheduler, progress: float) -> float:
    """Returns the share of the learning rate at ``progress`` in [0, 1] of all steps.

    The share is 1 throughout, falls linearly to 0, or falls to 0 along half a cosine.
    """
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
    settings: LoopSettings,
    objective: Objective,
    *,
    seed: int,
    name: str,
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains ``selector`` in place and yields each epoch, in every process of the training.

    An epoch has these metrics: ``train/loss`` and the steps' means, over the training queries; ``train/grad_norm``, the mean
    norm before clipping; ``train/reward_mean`` and ``train/frac_reward_zero_std`` of the training trials; ``train/lr`` at the
    epoch's last step; what the objective adds; and ``train/seconds``. Training ends early when ``early_stopping`` epochs in a
    row did not raise ``val/expected_reward``.

    Args:
        selector: the optimiser moves those of its parameters that require gradients.
        groups: the training queries.
        settings: of the optimiser, and of the number of steps.
        objective: computes the loss, and further metrics.
        seed: decides the order of the queries, and which hidden units dropout takes out.
        name: says in the log and beside the progress bar what is trained.
        device: ``cpu`` or ``cuda``.
        state: of an earlier run with the same arguments, after whose last epoch training goes on with its weights.

    Raises:
        LeverError: the loss is not finite.
        CheckpointError: ``state`` is of another selector.
    """
    trainer = _Trainer(selector, groups, settings, objective, seed, name, device)
    history: list[Metrics] = []
    if state is not None:
        history = [dict(metrics) for metrics in state.history]
        trainer.restore(state)
    with trainer.progress(len(history)) as progress:
        for epoch in range(len(history) + 1, settings.epochs + 1):
            if no_longer_rising([metrics["val/expected_reward"] for metrics in history], settings.early_stopping):
                return
            history.append(trainer.run(epoch, progress))
            yield Epoch(epoch, history[-1], selector, trainer.state(history))


class _Trainer:
    """Runs the epochs of one training."""

    def __init__(
        self,
        selector: PointerSelector,
        groups: GroupTable,
        settings: LoopSettings,
        objective: Objective,
        seed: int,
        name: str,
        device: str,
    ) -> None:
        self.selector, self.groups, self.settings, self.objective = selector, groups, settings, objective
        self.seed, self.name = seed, name
        self.trainable = {name: parameter for name, parameter in selector.named_parameters() if parameter.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=settings.lr)
        self.processes = distributed.join(device)
        self.model = distributed.wrapped(self.processes, selector)
        self.steps_per_epoch = -(-len(groups) // settings.batch_size)

    def progress(self, epochs: int) -> Progress:
        """Returns the progress of a training of which so many epochs are done; the leading process shows it."""
        total, done = (count * self.steps_per_epoch for count in (self.settings.epochs, epochs))
        return Progress(self.name, total, "steps", done=done, hidden=not self.processes.is_main_process)

    def run(self, epoch: int, progress: Progress) -> Metrics:
        """Trains on all queries once, in the epoch of this number from 1, and returns the epoch's metrics."""
        started = time.perf_counter()
        torch.manual_seed(_dropout_seed(self.seed, epoch, self.processes.process_index))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        sums = _EpochSums()
        for i in range(self.steps_per_epoch):
            rows = order[i * self.settings.batch_size : (i + 1) * self.settings.batch_size]
            lr = self._step((epoch - 1) * self.steps_per_epoch + i, rows, sums)
            progress.update()
        metrics = sums.means()
        metrics["train/grad_norm"] = sums.norm / len(self.groups)
        metrics["train/reward_mean"] = self.groups.reward_mean
        metrics["train/frac_reward_zero_std"] = self.groups.frac_zero_spread
        metrics["train/lr"] = lr
        values = {name: distributed.gathered(self.processes, tensors) for name, tensors in sums.values.items()}
        metrics |= self.objective.finish(metrics, values)
        metrics["train/seconds"] = time.perf_counter() - started
        return metrics

    def _step(self, steps_done: int, rows: np.ndarray, sums: _EpochSums) -> float:
        """Takes one step on these rows of the groups, and returns its learning rate."""
        settings, processes = self.settings, self.processes
        all_steps = settings.epochs * self.steps_per_epoch
        # by the steps before this one, so that the learning rate of the last step is not yet 0
        lr = settings.lr * lr_factor(settings.lr_scheduler, steps_done / all_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        share = distributed.share(processes, rows)
        # All processes take part in every step. One without a query, in a small last step, computes one that does not count.
        batch = self.groups.batch(share if len(share) else rows[:1], str(processes.device), rows)
        output = self.objective.step(self.model, batch, steps_done / max(all_steps - 1, 1))
        figures = {"train/loss": output.loss, **output.means}
        figures_M = torch.stack([value.detach() for value in figures.values()])
        means_M, loss_factor, counted = distributed.average(processes, figures_M, output.counted if len(share) else 0)
        _check_finite(float(means_M[0]), self.groups.query_ids_Q[rows])
        self.optimizer.zero_grad()
        processes.backward(output.loss * loss_factor)
        norm = torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), settings.grad_clip)
        self.optimizer.step()
        sums.add(dict(zip(figures, means_M.tolist(), strict=True)), counted, norm.item() * len(rows))
        for name, tensor in output.values.items():
            sums.values[name].append(tensor.detach().cpu()[: None if len(share) else 0])
        return lr

    def state(self, history: list[Metrics]) -> TrainingState:
        """Copies to the CPU what training needs to go on from here."""
        moments = {
            f"{name}/{quantity}": value.detach().cpu().clone()
            for name, parameter in self.trainable.items()
            for quantity, value in self.optimizer.state[parameter].items()
        }
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.selector.state_dict().items()}
        return TrainingState(tuple(dict(metrics) for metrics in history), weights, moments)

    def restore(self, state: TrainingState) -> None:
        """Gives the selector and its optimiser the weights and tensors of a state.

        Raises:
            CheckpointError: the state is of another selector.
        """
        expected_shapes = {name: tensor.shape for name, tensor in self.selector.state_dict().items()}
        shapes = {name: tensor.shape for name, tensor in state.weights.items()}
        by_parameter: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in state.optimizer.items():
            name, _, quantity = key.rpartition("/")
            by_parameter[name][quantity] = value
        if shapes != expected_shapes or by_parameter.keys() != self.trainable.keys():
            raise CheckpointError(
                "the training state is of another selector, or of one with other frozen parts; train anew with resume=none"
            )
        self.selector.load_state_dict(dict(state.weights))
        for name, parameter in self.trainable.items():
            # AdamW counts its steps on the CPU; its moments are on the parameter's device.
            self.optimizer.state[parameter] = {
                quantity: value.clone() if quantity == "step" else value.to(parameter.device).clone()
                for quantity, value in by_parameter[name].items()
            }


class _EpochSums:
    """Adds up the figures of an epoch's steps."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counted = 0  # queries that the sums are over
        self.norm = 0.0  # of the gradients, times the queries of the step
        self.values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, means: Mapping[str, float], counted: int, norm: float) -> None:
        """Adds one step.

        Args:
            means: its figures by name.
            counted: the number of queries that they are means over.
            norm: the norm of its gradient, times the number of its queries.
        """
        for name, value in means.items():
            self.sums[name] += value * counted
        self.counted += counted
        self.norm += norm

    def means(self) -> Metrics:
        """Returns the mean figures per query; 0 where no query counted."""
        return {name: total / max(self.counted, 1) for name, total in self.sums.items()}


def _dropout_seed(seed: int, epoch: int, process: int) -> int:
    """Returns a seed for each process; with the same one, dropout would take the same hidden units from all their queries."""
    return int(np.random.SeedSequence([seed, epoch, process] if process else [seed, epoch]).generate_state(1)[0])


def _check_finite(loss: float, query_ids: np.ndarray) -> None:
    if not math.isfinite(loss):
        raise LeverError(
            f"loss is {loss} on queries {query_ids.tolist()}; choose a smaller lr or smaller weights in the loss, "
            "or check the features of these queries and of their pools"
        )
