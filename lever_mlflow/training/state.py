"""Takes, restores, writes and reads training states, from which a training goes on after its last whole epoch.

On disk a state is a folder of two files: ``state.safetensors`` holds the tensors; ``state.json`` holds the metrics of all
epochs, what the caller adds, and the digest of the tensor file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.files.atomic import write_folder
from lever_mlflow.selector.network import PointerSelector

__all__ = ["Metrics", "TrainingState", "load_state", "restore_state", "save_state", "take_state"]

Metrics = dict[str, float]  # of one epoch, by name

_TENSORS_FILE, _JSON_FILE = "state.safetensors", "state.json"
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


@dataclass(frozen=True)
class TrainingState:
    """Holds what a training needs to go on after an epoch.

    Attributes:
        history: the metrics of all epochs so far.
        weights: the selector's weights by name.
        optimizer: the optimiser's tensors, named ``<parameter name>/<quantity>``.
    """

    history: tuple[Metrics, ...]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def take_state(
    history: list[Metrics],
    selector: PointerSelector,
    optimizer: torch.optim.Optimizer,
    trainable: Mapping[str, nn.Parameter],
) -> TrainingState:
    """Copies the state of a running training to the CPU; ``trainable`` are the parameters that the optimiser moves, by name."""
    moments = {
        f"{name}/{quantity}": value.detach().cpu().clone()
        for name, parameter in trainable.items()
        for quantity, value in optimizer.state[parameter].items()
    }
    weights = {name: tensor.detach().cpu().clone() for name, tensor in selector.state_dict().items()}
    return TrainingState(tuple(dict(metrics) for metrics in history), weights, moments)


def restore_state(
    state: TrainingState,
    selector: PointerSelector,
    optimizer: torch.optim.Optimizer,
    trainable: Mapping[str, nn.Parameter],
) -> None:
    """Gives a selector and its optimiser the weights and tensors of a state; ``trainable`` as for ``take_state``.

    Raises:
        CheckpointError: the state is of a selector with other weights, or with other trainable parameters.
    """
    expected_shapes = {name: tensor.shape for name, tensor in selector.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in state.weights.items()}
    optimised = {name.rsplit("/", 1)[0] for name in state.optimizer}
    if shapes != expected_shapes or optimised != trainable.keys():
        raise CheckpointError(
            "the training state is of another selector, or of one with other frozen parts; train anew with resume=none"
        )
    selector.load_state_dict(dict(state.weights))
    for key, value in state.optimizer.items():
        name, quantity = key.rsplit("/", 1)
        parameter = trainable[name]
        # AdamW counts its steps on the CPU; its moments are kept on the parameter's device.
        copy = value.clone() if quantity == "step" else value.to(parameter.device).clone()
        optimizer.state[parameter][quantity] = copy


def save_state(folder: Path, state: TrainingState, meta: Mapping[str, Any]) -> None:
    """Writes a state into a new folder, whole or not at all.

    Args:
        folder: must not exist.
        meta: what the caller wants to find beside the state, as JSON.
    """
    tensors = {f"{_WEIGHTS}{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"{_OPTIMIZER}{name}": tensor.contiguous() for name, tensor in state.optimizer.items()}

    def fill(temporary: Path) -> None:
        save_file(tensors, temporary / _TENSORS_FILE)
        content = {"history": state.history, "meta": dict(meta), "digest": _digest(temporary / _TENSORS_FILE)}
        (temporary / _JSON_FILE).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    write_folder(folder, fill)


def load_state(folder: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Reads a state and the ``meta`` that was saved with it.

    Raises:
        CheckpointError: the folder holds no whole state.
    """
    try:
        content = json.loads((folder / _JSON_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS_FILE)
        if content["digest"] != _digest(folder / _TENSORS_FILE):
            raise ValueError(f"{_JSON_FILE} holds another digest than that of {_TENSORS_FILE}")
        weights, optimizer = _with_prefix(tensors, _WEIGHTS), _with_prefix(tensors, _OPTIMIZER)
        return TrainingState(tuple(content["history"]), weights, optimizer), dict(content["meta"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no whole training state ({error}); go on from an earlier one") from None


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with ``prefix``, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
