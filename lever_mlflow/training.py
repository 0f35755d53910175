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
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.group_batches import GroupBatch, GroupTable, check_finite
from lever_mlflow.objectives import zero_spread
from lever_mlflow.selector import PointerSelector

__all__ = ["Epoch", "LrScheduler", "StepOutput", "TrainingState", "lr_factor", "train_epochs"]

LrScheduler = Literal["constant", "linear", "cosine"]
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
    """One step: the loss to follow, scalars to be averaged over queries, and values to be kept for the whole epoch."""

    loss: Tensor
    means: Mapping[str, Tensor]
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
    step: Callable[[GroupBatch, float], StepOutput],
    finish: Callable[[Metrics, dict[str, Tensor]], Metrics],
    *,
    seed: int,
    name: str,
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains ``selector`` in place and yields each epoch.

    Args:
        step: from a batch and the share of all steps done, in [0, 1], the loss.
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
    steps_per_epoch = -(-len(groups) // settings.batch_size)
    last_step = max(settings.epochs * steps_per_epoch - 1, 1)
    for epoch in range(len(history) + 1, settings.epochs + 1):
        if _stopped(history, settings.early_stopping):
            return
        started = time.perf_counter()
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
        order = np.random.default_rng([seed, epoch]).permutation(len(groups))
        sums: dict[str, float] = defaultdict(float)
        kept: dict[str, list[Tensor]] = defaultdict(list)
        batches = groups.batches(order, settings.batch_size, device)
        for i, batch in enumerate(tqdm(batches, f"{name} epoch {epoch}", steps_per_epoch, unit="step", disable=None)):
            progress = ((epoch - 1) * steps_per_epoch + i) / last_step
            lr = settings.lr * lr_factor(settings.lr_scheduler, progress)
            for group in optimizer.param_groups:
                group["lr"] = lr
            output = step(batch, progress)
            optimizer.zero_grad()
            loss = check_finite(output.loss, batch)
            output.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(list(trainable.values()), settings.grad_clip)
            optimizer.step()
            spread = zero_spread(batch.rewards_BG, batch.mask_BG).float().mean()
            figures = {"frac_reward_zero_std": spread, **output.means, "grad_norm": norm}
            sums["train_loss"] += loss * len(batch.query_ids)
            for key, value in figures.items():
                sums[key] += value.item() * len(batch.query_ids)
            for key, tensor in output.values.items():
                kept[key].append(tensor.detach().cpu())
        metrics: Metrics = {key: total / len(groups) for key, total in sums.items()}
        metrics |= {"reward_mean": groups.reward_mean, "lr": lr}
        metrics |= finish(metrics, {key: torch.cat(tensors) for key, tensors in kept.items()})
        metrics["seconds"] = time.perf_counter() - started
        history.append(metrics)
        yield Epoch(epoch, metrics, selector, _state(history, selector, optimizer, trainable))


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
