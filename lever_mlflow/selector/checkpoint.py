"""Saves selectors as folders of safetensors and JSON, and loads them, also from single files of other programs."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lever_mlflow.exceptions import CheckpointError, ParameterError
from lever_mlflow.files.atomic import write_folder
from lever_mlflow.files.text import looked_for, read_text
from lever_mlflow.selector.lever_plus import foreign_selector
from lever_mlflow.selector.network import PointerSelector

__all__ = ["CONFIG_FILE", "load_selector", "read_meta", "save_selector", "selector_digest"]

CONFIG_FILE = "selector.json"
_WEIGHTS_FILE = "selector.safetensors"
_STATE_DICTS = ("model_state_dict", "state_dict")  # the keys of files that hold more than weights
_ANCHOR = "input_proj.weight"  # every selector has it, so it shows the prefix that wrappers have put before all names
_OLD_PREFIXES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}
_HYPERPARAMETERS = ("model_config", "hyper_parameters")  # the keys under which files of other programs describe the network
_HEADS = ("num_heads", "n_heads")
_SHOWN_NAMES = 5  # of weights in a message

log = logging.getLogger(__name__)


def save_selector(folder: str | Path, selector: PointerSelector, meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint folder, as a whole or not at all.

    Args:
        folder: the new folder.
        selector: the selector; its weights, sizes and digest are saved.
        meta: any JSON, such as the epoch.

    Raises:
        CheckpointError: the folder exists already.
    """
    folder = Path(folder)

    def fill(temporary: Path) -> None:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in selector.state_dict().items()}
        save_file(weights, temporary / _WEIGHTS_FILE)
        content = {"config": selector.config, "digest": selector_digest(selector), "meta": dict(meta)}
        (temporary / CONFIG_FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    try:
        write_folder(folder, fill)
    except FileExistsError:
        raise CheckpointError(f"{folder}: exists already; choose another folder for the checkpoint") from None


def load_selector(path: str | Path) -> PointerSelector:
    """Loads a selector from a checkpoint folder or a single file, in evaluation mode on the CPU.

    A file is a ``.safetensors`` file, or one of ``torch.save`` such as ``.pt`` and Lightning's ``.ckpt``, which is read without
    executing pickled code. It holds named weights, or such weights under ``model_state_dict`` or ``state_dict``. Where wrappers
    put a prefix before the names (``module.``, ``lever_lm.pointer_selector.`` and others), the weights with the prefix of
    ``input_proj.weight`` are used. The older prefixes ``cross_attn.`` and ``attn_norm.`` stand for layer 0. Weights do not tell
    the number of heads. It is ``num_heads`` or ``n_heads`` under ``model_config`` or ``hyper_parameters`` of the file, else 1,
    which the log then says.

    Raises:
        CheckpointError: missing, damaged, holding code or non-finite weights, or not the weights of a selector.
    """
    path = Path(path)
    if path.name == _WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        path = path.parent  # the weights of a checkpoint folder, whose description states the heads
    if path.is_dir():
        weights, config, digest = _read_folder(path)
    elif path.is_file():
        (weights, config), digest = _read_file(path), None
    else:
        raise CheckpointError(
            f"{path}: no such checkpoint{looked_for(path)}; give a checkpoint folder, a .pt, .ckpt or .safetensors file"
        )
    config = {**_infer_config(path, weights), **config}
    try:
        selector = PointerSelector(**config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, ParameterError) as error:
        raise CheckpointError(f"{path}: no selector of sizes {config} ({error}); copy the checkpoint again") from None
    _load_strictly(path, selector, weights)
    if digest is not None and selector_digest(selector) != digest:
        raise CheckpointError(f"{path}: {CONFIG_FILE} and {_WEIGHTS_FILE} do not belong together; copy the folder again")
    return selector.eval()


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Reads the ``meta`` that ``save_selector`` wrote into a checkpoint folder.

    Raises:
        CheckpointError: no readable ``selector.json`` in the folder.
    """
    meta = _read_json(Path(folder))["meta"]
    return dict(meta)


def selector_digest(selector: PointerSelector) -> str:
    """Returns a digest of weights and number of heads, 32 hex characters, which is the same for every file format."""
    digest = hashlib.sha256(str(selector.config["n_heads"]).encode())
    for name, tensor in sorted(selector.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _read_json(folder: Path) -> dict[str, Any]:
    """Reads the description of a checkpoint: ``config``, ``digest`` and ``meta``."""
    try:
        content = json.loads(read_text(folder / CONFIG_FILE))
        if isinstance(content["config"], dict) and isinstance(content["meta"], dict):
            return dict(content)
        raise KeyError("config, meta")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: not a readable checkpoint description: {error!r}") from None


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Reads weights, sizes and digest from a checkpoint folder."""
    content = _read_json(folder)
    try:
        return load_file(folder / _WEIGHTS_FILE), content["config"], content.get("digest")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS_FILE}: not readable weights ({error}); copy the folder again") from None


class _Inert:
    """Replaces any object of a pickled checkpoint that is no tensor, such as hyperparameters, so that none of its code runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the selector's weights, by their present names, and the number of its heads from a single file."""
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__} instead of named weights; save the selector's state dict"
        )
    weights = next((content[key] for key in _STATE_DICTS if key in content), content)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise CheckpointError(f"{path}: its state dict holds something else than named tensors; save the selector's again")
    weights = {_current_name(name): tensor for name, tensor in _without_prefix(path, weights).items()}
    return weights, {"n_heads": _heads(path, content)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable weights ({error}); copy the file again") from None


def _without_prefix(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the only selector, without the prefix that wrappers have put before their names."""
    prefixes = [name.removesuffix(_ANCHOR) for name in weights if f".{name}".endswith(f".{_ANCHOR}")]
    if not prefixes:
        raise CheckpointError(f"{path}: no weights {_ANCHOR}, so no selector; its entries are {_some(weights)}")
    if len(prefixes) > 1:
        raise CheckpointError(f"{path}: holds several selectors, under {_some(prefixes)}; save the state dict of one of them")
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in weights.items() if name.startswith(prefixes[0])}


def _heads(path: Path, content: Mapping[str, Any]) -> int:
    """Returns the number of attention heads that a file states among its hyperparameters, or 1, as Lever-Plus has."""
    stated = [content[group] for group in _HYPERPARAMETERS if isinstance(content.get(group), dict)]
    heads = [group[name] for group in stated for name in _HEADS if isinstance(group.get(name), int)]
    if not heads:
        log.info("%s: does not state the number of attention heads of its selector; 1 is assumed", path)
    return heads[0] if heads else 1


def _some(names: Iterable[str]) -> str:
    """Lists the first names in alphabetical order, and says how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN_NAMES} more" if len(ordered) > _SHOWN_NAMES else ""
    return ", ".join(ordered[:_SHOWN_NAMES]) + more


def _unpickle(path: Path) -> Any:
    """Reads a file written by ``torch.save``; objects that are neither tensors nor plain values are replaced by inert ones."""
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds code or objects other than tensors and plain values, and is not loaded; save the state dict alone"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({str(error)[:200]}); copy it again") from None


def _current_name(name: str) -> str:
    """Returns the present name of a weight that may have an older one."""
    for old, new in _OLD_PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _infer_config(path: Path, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the sizes of a selector with these weights, without the number of heads, which they do not tell."""
    try:
        hidden_dim, feature_dim = weights[_ANCHOR].shape
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: no matrix {_ANCHOR}; its entries are {_some(weights)}") from None
    layers = {name.split(".")[1] for name in weights if name.startswith("cross_attn_layers.")}
    return {
        "feature_dim": feature_dim,
        "hidden_dim": hidden_dim,
        "n_layers": len(layers),
        "state_update": "state_proj.weight" in weights,
        "query_update_gate": "query_update_gate.weight" in weights,
    }


def _load_strictly(path: Path, selector: PointerSelector, weights: Mapping[str, Tensor]) -> None:
    """Loads weights into a selector; names, shapes and types must fit, and all values be finite."""
    expected = selector.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if unexpected and (foreign := foreign_selector(unexpected)) is not None:
        raise CheckpointError(
            f"{path}: {foreign}; this package has no such network. Train a new selector with rce, where state_update=true lets "
            "later picks depend on earlier ones, or give a checkpoint of Lever-Plus's V2, V3 or V4-1"
        )
    if missing or unexpected:
        differences = {"missing": missing, "unexpected": unexpected}
        listed = "; ".join(f"{word} {_some(names)}" for word, names in differences.items() if names)
        raise CheckpointError(f"{path}: its weights are not those of a selector ({listed}); give the checkpoint of one")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, expected floating point")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; use an earlier checkpoint")
    selector.load_state_dict(weights)
