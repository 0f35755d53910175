"""Training states on disk: a folder of safetensors and JSON from which training goes on after its last whole epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.files.atomic import write_folder
from lever_mlflow.training.loop import TrainingState

__all__ = ["load_state", "save_state"]

_TENSORS_FILE, _JSON_FILE = "state.safetensors", "state.json"
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


def save_state(folder: Path, state: TrainingState, meta: Mapping[str, Any]) -> None:
    """Writes a state into a new folder, whole or not at all.

    Args:
        meta: any JSON, kept beside the state. The file also holds the digest of the tensors, by which half a state is known.
    """
    tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in state.weights.items()}
    tensors |= {f"{_OPTIMIZER}{name}": tensor for name, tensor in state.optimizer.items()}

    def fill(building: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, building / _TENSORS_FILE)
        content = {"history": state.history, "meta": dict(meta), "digest": _digest(building / _TENSORS_FILE)}
        (building / _JSON_FILE).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")

    write_folder(folder, fill)


def load_state(folder: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Reads a state and its ``meta``.

    Raises:
        CheckpointError: the folder holds no whole state.
    """
    try:
        content = json.loads((folder / _JSON_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS_FILE)
        if content["digest"] != _digest(folder / _TENSORS_FILE):
            raise ValueError("tensors and description do not belong together")
        return _state(content["history"], tensors), dict(content["meta"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: no whole training state ({error}); go on from an earlier one") from None


def _state(history: list[dict[str, float]], tensors: Mapping[str, Any]) -> TrainingState:
    parts = {
        prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (_WEIGHTS, _OPTIMIZER)
    }
    return TrainingState(tuple(history), parts[_WEIGHTS], parts[_OPTIMIZER])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
