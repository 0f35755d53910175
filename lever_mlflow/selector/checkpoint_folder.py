"""Reads what a checkpoint folder says of itself. This needs no PyTorch, whose import takes longer than all of it."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lever_mlflow.exceptions import CheckpointError, DataError
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.settings import Fusion

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "StatedSelector", "digest_of", "read_description", "read_meta", "stated_selector"]

CONFIG_FILE = "selector.json"
WEIGHTS_FILE = "selector.safetensors"


def read_description(folder: Path) -> dict[str, Any]:
    """Reads the description of a checkpoint: ``config``, ``digest`` and ``meta``.

    Raises:
        CheckpointError: no readable ``selector.json`` in the folder.
    """
    path, remedy = folder / CONFIG_FILE, "copy the folder again"
    try:
        content = read_object(path, missing=remedy, damaged=remedy)
    except DataError as error:
        raise CheckpointError(str(error)) from None
    for name in ("config", "meta"):
        if not isinstance(content.get(name), dict):
            raise CheckpointError(f"{path}: {name} is {reprlib.repr(content.get(name))}, expected an object; {remedy}")
    return content


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Reads the ``meta`` that ``save_selector`` wrote into a checkpoint folder.

    Raises:
        CheckpointError: no readable ``selector.json`` in the folder.
    """
    meta = read_description(Path(folder))["meta"]
    return dict(meta)


def digest_of(n_heads: Any, weights: Mapping[str, np.ndarray]) -> str:
    """Returns a digest of a selector's weights, by name, and number of heads, 32 hex characters."""
    digest = hashlib.sha256(str(n_heads).encode())
    for name, array in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


class StatedSelector(NamedTuple):
    """Holds what a whole checkpoint folder says of its selector."""

    feature_dim: int
    fusion: Fusion
    digest: str


def stated_selector(path: Path) -> StatedSelector | None:
    """Returns what a checkpoint folder says of its selector, if its weights have the digest that it states.

    For anything else it is None: files of other programs, older folders, and damaged ones, of which ``load_selector`` says what
    is wrong.
    """
    try:
        description = read_description(path)
        weights = load_file(path / WEIGHTS_FILE)
    except (CheckpointError, OSError, SafetensorError, TypeError):  # the last one where NumPy lacks the type of the weights
        return None
    config, digest = description["config"], description.get("digest")
    length, fusion = config.get("feature_dim"), config.get("fusion")
    if digest != digest_of(config.get("n_heads"), weights) or not isinstance(length, int) or fusion not in get_args(Fusion):
        return None
    return StatedSelector(length, fusion, digest)
