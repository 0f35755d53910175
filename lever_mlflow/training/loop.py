"""The training loop that RCE and GRPO share: batches, optimiser, learning rate, epochs, and what is needed to go on later.

Everything random is drawn from the seed and the epoch's number, so that an epoch does not depend on whether the ones before
it ran in this process.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lever_mlflow import distributed
from lever_mlflow.exceptions import CheckpointError, LeverError
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import LrScheduler
from lever_mlflow.training.batches import GroupBatch, GroupTable

__all__ = ["Epoch", "StepOutput", "TrainingState", "lr_factor", "train_epochs"]

Metrics = dict[str, float]


class LoopSettings(Protocol):
    """What the loop needs of a stage's settings."""

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
    """One step: the loss to follow, scalars to be averaged over queries, and values to be kept for the whole epoch.

    ``counted``: the number of queries that the loss and the scalars are means of.
    """

    loss: Tensor
    counted: int
    means: Mapping[str, Tensor] = {}
    values: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class TrainingState:
    """What training needs to go on after an epoch: the metrics of all epochs so far, weights, and the optimiser's state.

    ``optimizer`` maps ``<parameter name>/<quantity>`` to tensors.
    """

    history: tuple[Metrics, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


class Epoch(NamedTuple):
    """One finished epoch (1-based), its metrics, the selector as it is now (use it before asking for the next), the state."""

    epoch: int
    metrics: Metrics
    selector: PointerSelector
    state: TrainingState


def lr_factor(kind: LrScheduler, progress: float) -> float:
    """Share of the learning rate at ``progress`` in [0, 1] of all steps: constant, linear to 0, or half a cosine to 0."""
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
    step: Callable[[nn.Module, GroupBatch, float], StepOutput],
    finish: Callable[[Metrics, dict[str, Tensor]], Metrics],
    *,
    seed: int,
    name: str,
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains ``selector`` in place and yields each epoch, in every process of the training.

    Args:
        step: from the module to call for log-probs, a batch and the share of all steps done, in [0, 1], the loss.
        finish: from the epoch's mean metrics and kept values, the metrics to add.
        state: of an earlier run with the same arguments, to go on after its last epoch; the selector's weights are replaced.

    Metrics: ``train_loss``, the step's means, ``frac_reward_zero_std``, ``reward_mean`` (of the training trials),
    ``grad_norm`` (mean before clipping), ``lr`` (at the epoch's last step), ``seconds``, and what ``finish`` adds. Ends early
    where ``early_stopping`` epochs in a row did not raise ``expected_reward``.

    Raises:
        LeverError: the loss is not finite. CheckpointError: the state is of another selector.
    """
    trainable = {name: parameter for name, parameter in selector.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=settings.lr)
    history: list[Metrics] = []
    if state is not None:
        history = [dict(metrics) for metrics in state.history]
        _restore(selector, optimizer, trainable, state)
    processes = distributed.join(device)
    model = distributed.wrapped(processes, selector)
    steps_per_epoch = -(-len(groups) // settings.batch_size)
    all_steps = settings.epochs * steps_per_epoch
    for epoch in range(len(history) + 1, settings.epochs + 1):
        if _stopped(history, settings.early_stopping):
            return
        started = time.perf_counter()
        torch.manual_seed(_dropout_seed(seed, epoch, processes.process_index))
        order = np.random.default_rng([seed, epoch]).permutation(len(groups))
        sums: dict[str, float] = defaultdict(float)
        n_counted, norms = 0, []
        kept: dict[str, list[Tensor]] = defaultdict(list)
        quiet = None if processes.is_main_process else True
        for i in tqdm(range(steps_per_epoch), f"{name} epoch {epoch}", unit="step", disable=quiet):
            done = (epoch - 1) * steps_per_epoch + i
            lr = settings.lr * lr_factor(settings.lr_scheduler, done / all_steps)  # so that the last step still moves something
            for group in optimizer.param_groups:
                group["lr"] = lr
            rows = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            own = distributed.share(processes, rows)
            # a process without a query in a small last step takes part with one that counts for nothing
            batch = groups.batch(own if len(own) else rows[:1], str(processes.device), rows)
            output = step(model, batch, done / max(all_steps - 1, 1))
            figures = {"train_loss": output.loss, **output.means}
            own_values = torch.stack([value.detach() for value in figures.values()])
            values, weight, counted = distributed.average(processes, own_values, output.counted if len(own) else 0)
            _check_finite(float(values[0]), groups.query_ids_Q[rows])
            optimizer.zero_grad()
            processes.backward(output.loss * weight)
            norm = torch.nn.utils.clip_grad_norm_(list(trainable.values()), settings.grad_clip)
            optimizer.step()
            for key, value in zip(figures, values.tolist(), strict=True):
                sums[key] += value * counted
            n_counted += counted
            norms.append(norm.item() * len(rows))
            for key, tensor in output.values.items():
                kept[key].append(tensor.detach().cpu()[: None if len(own) else 0])
        metrics: Metrics = {key: total / max(n_counted, 1) for key, total in sums.items()}
        metrics["grad_norm"] = sum(norms) / len(groups)
        metrics |= {"reward_mean": groups.reward_mean, "frac_reward_zero_std": groups.frac_zero_spread, "lr": lr}
        metrics |= finish(metrics, {key: distributed.gathered(processes, tensors) for key, tensors in kept.items()})
        metrics["seconds"] = time.perf_counter() - started
        history.append(metrics)
        yield Epoch(epoch, metrics, selector, _state(history, selector, optimizer, trainable))


def _dropout_seed(seed: int, epoch: int, process: int) -> int:
    """Another one for each process, whose queries would else lose the same hidden units."""
    return int(np.random.SeedSequence([seed, epoch, process] if process else [seed, epoch]).generate_state(1)[0])


def _check_finite(loss: float, query_ids: np.ndarray) -> None:
    if not math.isfinite(loss):
        raise LeverError(
            f"loss is {loss} on queries {query_ids.tolist()}; lower lr or what weighs in the loss, or check their data"
        )


def _stopped(history: list[Metrics], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought no higher expected reward than the best before them."""
    rewards = [metrics["expected_reward"] for metrics in history]
    return bool(patience) and len(rewards) > patience and max(rewards[-patience:]) <= max(rewards[:-patience])


def _state(
    history: list[Metrics], selector: PointerSelector, optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor]
) -> TrainingState:
    moments = {
        f"{name}/{key}": value.detach().cpu().clone()
        for name, parameter in trainable.items()
        for key, value in optimizer.state[parameter].items()
    }
    weights = {name: tensor.detach().cpu().clone() for name, tensor in selector.state_dict().items()}
    return TrainingState(tuple(dict(metrics) for metrics in history), weights, moments)


def _restore(
    selector: PointerSelector, optimizer: torch.optim.Optimizer, trainable: Mapping[str, Tensor], state: TrainingState
) -> None:
    expected = {name: tensor.shape for name, tensor in selector.state_dict().items()}
    known = {name.rsplit("/", 1)[0] for name in state.optimizer}
    if {name: tensor.shape for name, tensor in state.weights.items()} != expected or known != trainable.keys():
        raise CheckpointError("the training state is of another selector, or of one with other frozen parts; train anew")
    selector.load_state_dict(dict(state.weights))
    for name, parameter in trainable.items():
        quantities = {key.rsplit("/", 1)[1]: value for key, value in state.optimizer.items() if key.rsplit("/", 1)[0] == name}
        # AdamW counts steps on the CPU; its moments live beside the parameter
        optimizer.state[parameter] = {
            key: value.clone() if key == "step" else value.to(parameter.device).clone() for key, value in quantities.items()
        }
