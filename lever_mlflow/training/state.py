"""Writes and reads training states, from which a training goes on after its last whole epoch.

A state is a folder of two files: ``state.safetensors`` holds the tensors; ``state.json`` holds the metrics of all epochs, what
the caller adds, and the digest of the tensor file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lever_mlflow.exceptions import CheckpointError, DataError
from lever_mlflow.files.atomic import write_folder
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.shortages import let_through
from lever_mlflow.training.loop import TrainingState

__all__ = ["load_state", "save_state"]

_TENSORS_FILE, _JSON_FILE = "state.safetensors", "state.json"
_REMEDY = "go on from an earlier one"
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


def save_state(folder: Path, state: TrainingState, meta: Mapping[str, Any]) -> None:
    """Writes a state into a new folder, whole or not at all.

    Args:
        folder: must not exist yet.
        state: what to write.
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
        content = read_object(folder / _JSON_FILE, missing=_REMEDY, damaged=_REMEDY)
        tensors = load_file(folder / _TENSORS_FILE)
        if content["digest"] != _digest(folder / _TENSORS_FILE):
            raise ValueError(f"{_JSON_FILE} holds another digest than that of {_TENSORS_FILE}")
        weights, optimizer = _with_prefix(tensors, _WEIGHTS), _with_prefix(tensors, _OPTIMIZER)
        return TrainingState(tuple(content["history"]), weights, optimizer), dict(content["meta"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DataError) as error:
        let_through(error)
        raise CheckpointError(f"{folder}: no whole training state ({error}); {_REMEDY}") from None


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names start with ``prefix``, under their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
