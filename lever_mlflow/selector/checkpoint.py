"""Saves selectors as folders of safetensors and JSON, and loads them, also from single files of other programs."""

from __future__ import annotations

import json
import logging
import pickle
import pickletools
import re
import reprlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lever_mlflow.exceptions import CheckpointError, ParameterError
from lever_mlflow.files.atomic import write_folder
from lever_mlflow.files.text import looked_for
from lever_mlflow.selector.checkpoint_folder import CONFIG_FILE, WEIGHTS_FILE, digest_of, read_description
from lever_mlflow.selector.lever_plus import foreign_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.shortages import let_through

__all__ = ["load_selector", "save_selector", "selector_digest"]

_STATE_DICTS = ("model_state_dict", "state_dict")  # the keys of files that hold more than weights
_ANCHOR = "input_proj.weight"  # every selector has it, so it shows the prefix that wrappers have put before all names
_OLD_PREFIXES = {"cross_attn.": "cross_attn_layers.0.", "attn_norm.": "attn_norms.0."}
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # parts of names put in by PyTorch
_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_TORCH_FILES = (b"PK", b"\x80")  # beginnings of files of ``torch.save``: a zip archive, and before PyTorch 1.6 a pickle
_HYPERPARAMETERS = ("model_config", "hyper_parameters")  # the keys under which files of other programs describe the network
_HEADS = ("num_heads", "n_heads")
_ARCHIVE = b"PK\x03\x04"  # how torch.load recognises an archive
_MAKES_ARRAYS = re.compile(r"\bbytearray$|Tensor$")  # classes that torch would call with a size
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
        save_file(weights, temporary / WEIGHTS_FILE)
        content = {"config": selector.config, "digest": selector_digest(selector), "meta": dict(meta)}
        (temporary / CONFIG_FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    try:
        write_folder(folder, fill)
    except FileExistsError:
        raise CheckpointError(f"{folder}: exists already; choose another folder for the checkpoint") from None


def load_selector(path: str | Path) -> PointerSelector:
    """Loads a selector from a checkpoint folder or a single file, in evaluation mode on the CPU.

    A file is one of safetensors, or one of ``torch.save`` such as ``.pt`` and Lightning's ``.ckpt``, which is read without
    executing pickled code; its content decides, and not its name. It holds named weights, such weights under
    ``model_state_dict`` or ``state_dict``, or under another name if there is only one selector in it. A folder that is no
    checkpoint folder and holds one such file stands for the file. Where wrappers put a prefix before the names (``module.``,
    ``_orig_mod.``, ``lever_lm.pointer_selector.`` and others), the weights with the prefix of ``input_proj.weight`` are used;
    wrappers of single layers are taken out of the names. The older prefixes ``cross_attn.`` and ``attn_norm.`` stand for layer
    0. Weights do not tell the number of heads. It is ``num_heads`` or ``n_heads`` under ``model_config`` or
    ``hyper_parameters`` of the file, else 1, which the log then says.

    Raises:
        CheckpointError: missing, damaged, holding code or non-finite weights, or not the weights of a selector.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        path = path.parent  # the weights of a checkpoint folder, whose description states the heads
    elif path.is_dir():
        path = _only_file(path)
    if path.is_dir():
        weights, config, digest = _read_folder(path)
    elif path.is_file():
        (weights, config), digest = _read_file(path), None
    else:
        raise CheckpointError(
            f"{path}: no such checkpoint{looked_for(path)}; give a checkpoint folder, a .pt, .ckpt or .safetensors file"
        )
    _check_memory(path, weights)
    selector = _empty_selector(path, _infer_config(path, weights), config)
    _load_strictly(path, selector, weights)
    if digest is not None and selector_digest(selector) != digest:
        raise CheckpointError(f"{path}: {CONFIG_FILE} and {WEIGHTS_FILE} do not belong together; copy the folder again")
    return selector.eval()


def selector_digest(selector: PointerSelector) -> str:
    """Returns a digest of weights and number of heads, 32 hex characters, which is the same for every file format."""
    weights = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in selector.state_dict().items()}
    return digest_of(selector.config["n_heads"], weights)


def _only_file(folder: Path) -> Path:
    """Returns the only weights file of a folder of another program; the folder itself where it is a checkpoint folder.

    Raises:
        CheckpointError: it holds several such files, or none.
    """
    if (folder / CONFIG_FILE).exists() or (folder / WEIGHTS_FILE).exists():
        return folder
    files = [path for path in folder.iterdir() if path.suffix in _FILES]
    if len(files) == 1:
        return files[0]
    content = f"several weights files ({_some(path.name for path in files)}); give one of them" if files else "no weights file"
    raise CheckpointError(f"{folder}: no checkpoint folder, as it has no {CONFIG_FILE}, and holds {content}")


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Reads weights, sizes and digest from a checkpoint folder."""
    content = read_description(folder)
    try:
        return load_file(folder / WEIGHTS_FILE), content["config"], content.get("digest")
    except (OSError, SafetensorError) as error:
        let_through(error)
        raise CheckpointError(f"{folder / WEIGHTS_FILE}: not readable weights ({error}); copy the folder again") from None


class _Inert:
    """Replaces any object of a pickled checkpoint that is no tensor, such as hyperparameters, so that none of its code runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the selector's weights, by their present names, and the number of its heads from a single file."""
    content = _read_safetensors(path) if _is_safetensors(path) else _unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__} instead of named weights; save the selector's state dict"
        )
    weights = next((content[key] for key in _STATE_DICTS if key in content), None) or _only_selector(path, content)
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise CheckpointError(f"{path}: its state dict holds something else than named tensors; save the selector's again")
    weights = {_current_name(name): tensor for name, tensor in _without_prefix(path, weights).items()}
    return weights, {"n_heads": _heads(path, content)}


def _only_selector(path: Path, content: dict[Any, Any]) -> dict[Any, Any]:
    """Returns the named weights in a file that does not call them a state dict: its own entries, or those of one entry.

    Raises:
        CheckpointError: several entries hold the weights of a selector.
    """
    places = {"": content, **{str(name): entry for name, entry in content.items() if isinstance(entry, dict)}}
    selectors = {name: entry for name, entry in places.items() if any(map(_is_anchor, entry))}
    if len(selectors) > 1:
        raise CheckpointError(f"{path}: holds several selectors, under {_some(selectors)}; save the state dict of one of them")
    weights = next(iter(selectors.values()), content)
    tensors = {name: entry for name, entry in weights.items() if isinstance(entry, Tensor)}
    return tensors if any(map(_is_anchor, tensors)) else weights  # without what stands beside the weights, such as the epoch


def _is_safetensors(path: Path) -> bool:
    """Says whether a file is one of safetensors: it begins with the length of its header in 8 bytes, and the header."""
    with path.open("rb") as file:
        beginning = file.read(9)
    return beginning[8:] == b"{" or (path.suffix == ".safetensors" and not beginning.startswith(_TORCH_FILES))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        let_through(error)
        raise CheckpointError(f"{path}: not readable weights ({error}); copy the file again") from None


def _without_prefix(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the only selector, without the prefix that wrappers have put before their names."""
    prefixes = [name[: name.rindex(_ANCHOR.split(".")[0])] for name in weights if _is_anchor(name)]
    if not prefixes:
        raise CheckpointError(f"{path}: no weights {_ANCHOR}, so no selector; its entries are {_some(weights)}")
    if len(prefixes) > 1:
        raise CheckpointError(f"{path}: holds several selectors, under {_some(prefixes)}; save the state dict of one of them")
    unprefixed = {name.removeprefix(prefixes[0]): tensor for name, tensor in weights.items() if name.startswith(prefixes[0])}
    return {_unwrapped(name): tensor for name, tensor in unprefixed.items()}


def _is_anchor(name: Any) -> bool:
    return isinstance(name, str) and f".{_unwrapped(name)}".endswith(f".{_ANCHOR}")


def _unwrapped(name: str) -> str:
    """Returns the name of a weight without the parts that wrappers of the network or of its layers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


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
        _check_archive(path)
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # opened here, as torch.load goes by the name of a file that it opens itself
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds code or objects other than tensors and plain values, and is not loaded; save the state dict alone"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make the readers of archives and pickles raise all kinds of exceptions
        if isinstance(error, OSError):  # a lack of memory may come from sizes that the file states
            let_through(error)
        raise CheckpointError(f"{path}: not a readable checkpoint ({str(error)[:200]!r}); copy it again") from None


def _check_archive(path: Path) -> None:
    """Refuses an archive of ``torch.save`` that could need more memory than its size, which no state dict does.

    Its entries are not compressed, and its pickle makes no arrays of a size that is only stated. An archive that cannot be
    looked into raises what zipfile and pickletools raise, and so is not loaded: torch may be less strict.
    """
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            return  # a file of another form, of which torch says what is wrong
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise CheckpointError(f"{path}: is a compressed archive, as torch.save writes none; save the state dict again")
        pickles = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    names = [argument for content in pickles for code, argument, _ in pickletools.genops(content) if code.name == "GLOBAL"]
    making = next((name for name in names if _MAKES_ARRAYS.search(str(name))), None)
    if making is not None:
        raise CheckpointError(f"{path}: makes objects of {making}, and is not loaded; save the state dict alone")


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


def _check_memory(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuses weights that are no plain arrays, or that claim more numbers than the file holds."""
    for name, tensor in weights.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name[:80]!r} is no plain array of numbers; save the selector's state dict again")


def _empty_selector(path: Path, inferred: Mapping[str, Any], stated: Mapping[str, Any]) -> PointerSelector:
    """Returns a selector of the sizes that its weights have, which takes no memory until weights are loaded into it.

    Raises:
        CheckpointError: what the checkpoint states is another size, or nothing that a selector can have.
    """
    differing = [name for name, size in inferred.items() if stated.get(name, size) != size]
    config = {**inferred, **stated}
    shown = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in list(config.items())[:20])
    if differing:
        name = differing[0]
        problem = f"{name} is {reprlib.repr(stated[name])}, but {inferred[name]} in the weights"
        raise CheckpointError(f"{path}: no selector of sizes {shown} ({problem}); copy the checkpoint again")
    try:
        with torch.device("meta"):
            return PointerSelector(**config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError, ParameterError) as error:
        raise CheckpointError(f"{path}: no selector of sizes {shown} ({error}); copy the checkpoint again") from None


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
    selector.to_empty(device="cpu").load_state_dict(weights)
