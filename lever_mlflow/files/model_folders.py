"""Finds, checks, loads and identifies model folders: local folders of safetensors, or models on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.files.text import looked_for
from lever_mlflow.shortages import let_through, out_of_memory

__all__ = [
    "check_parts",
    "folder_digest",
    "has_chat_template",
    "load_pretrained",
    "load_processor",
    "model_folder",
    "model_type",
]

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt"]  # weights, configuration, tokenizer; no pickle, no code
_SENTENCEPIECE = "*.model"  # another form of a tokenizer, which counts where there is no tokenizer.json
_CLOSED = {"trust_remote_code": False, "local_files_only": True}  # unset, transformers asks on the terminal whether to run code
_POOLING = "*_Pooling/config.json"  # of sentence encoders


def model_folder(name: str) -> Path:
    """Returns the local folder of a model. A model on the hub is downloaded once by ``huggingface_hub``.

    Args:
        name: a folder, or the model's name on the hub.

    Raises:
        DataError: there is no such folder, and the hub does not deliver the model (wrong name, no network, no access).
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"{path}: no config.json in it; give a folder written by save_pretrained")
        return path
    try:
        return Path(snapshot_download(name, allow_patterns=[*_PATTERNS, _SENTENCEPIECE]))
    except HFValidationError:
        raise DataError(
            f"{name}: no such folder{looked_for(path)}, and not a hub name like Qwen/Qwen2.5-VL-3B-Instruct"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(
            f"{name}: no such folder{looked_for(path)}, and the hub did not give it ({reason}); download it to a folder"
        ) from None


def model_type(folder: Path) -> str:
    """Returns the ``model_type`` of a model folder.

    Raises:
        DataError: there is no readable ``config.json``.
    """
    config = read_object(folder / "config.json", missing="give a model folder", damaged="copy the model again")
    return str(config.get("model_type"))


def check_parts(folder: Path, *, tokenizer: bool = True) -> None:
    """Checks that a model folder has weights and, unless the model takes no text, a tokenizer, without loading them.

    Raises:
        DataError: there are no weights or no tokenizer in the folder.
    """
    parts: dict[str, tuple[str, ...]] = {"weights": ("*.safetensors",)}
    if tokenizer:
        parts["tokenizer"] = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
    for part, names in parts.items():
        if not any(next(folder.glob(name), None) for name in names):
            raise DataError(f"{folder}: no {part} ({' or '.join(names)}); copy the model again")


def has_chat_template(folder: Path) -> bool:
    """Returns whether a model folder has a chat template: a file of its own, or an entry in a configuration.

    Raises:
        DataError: a configuration cannot be read.
    """
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    configurations = [folder / name for name in ("processor_config.json", "tokenizer_config.json")]
    present = [path for path in configurations if path.is_file()]
    return any("chat_template" in read_object(path, missing="", damaged="copy the model again") for path in present)


def load_pretrained(
    model_class: Any,
    folder: Path,
    optional_part: str = "",
    *,
    dtype: str = "float32",
    device: str = "cpu",
    **processor_settings: Any,
) -> tuple[Any, Any]:
    """Loads a transformers model and its processor from a local folder; safetensors only, no remote code.

    Weights become their type while they are read, and go to the device one by one. To load in float32 and convert the model
    afterwards would take more memory, and would round its rotary frequencies, which are no weights and stay float32.

    Args:
        model_class: the transformers class of the model.
        folder: as written by ``save_pretrained``.
        optional_part: name of a part of the model that is left out where the folder lacks weights of it.
        dtype: type of the weights, such as ``float32`` or ``bfloat16``.
        device: ``cpu`` or ``cuda``.
        processor_settings: further arguments of the processor's ``from_pretrained``.

    Raises:
        DataError: something is missing or damaged. Weights that the folder lacks are never initialised at random.
    """
    import torch

    settings = {"dtype": getattr(torch, dtype), "use_safetensors": True, **_CLOSED}
    if device != "cpu":  # where weights go anyway; to place them elsewhere takes the package accelerate
        settings["device_map"] = device
    with _readable(folder, model_class.__name__), _without_bars():
        model, info = model_class.from_pretrained(folder, **settings, output_loading_info=True)
    processor = load_processor(folder, **processor_settings)
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if optional_part and any(key.startswith(f"{optional_part}.") for key in absent):
        setattr(model, optional_part, None)
        absent = [key for key in absent if not key.startswith(f"{optional_part}.")]
    if absent:
        raise DataError(f"{folder}: {len(absent)} weights are missing, such as {absent[0]}; copy the model again")
    return model, processor


def load_processor(folder: Path, **settings: Any) -> Any:
    """Loads the processor of a model from a local folder; no remote code.

    Args:
        folder: as written by ``save_pretrained``.
        settings: further arguments of ``from_pretrained``.

    Raises:
        DataError: something is missing or damaged.
    """
    from transformers import AutoProcessor

    with _readable(folder, "processor"):
        return AutoProcessor.from_pretrained(folder, **_CLOSED, **settings)


@contextmanager
def _readable(folder: Path, kind: str) -> Iterator[None]:
    """Turns the errors of transformers about a model folder into one of ours."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:  # some families need a further package, which the message names
        raise DataError(f"{folder}: {' '.join(str(error).split())}") from None
    except MemoryError:
        raise _too_large(folder, kind) from None
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError, StrictDataclassError) as error:
        if out_of_memory(error):
            raise _too_large(folder, kind) from None
        let_through(error)
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(f"{folder}: not a readable {kind} folder ({reason}); copy the model again") from None


def _too_large(folder: Path, kind: str) -> DataError:
    return DataError(
        f"{folder}: the device's memory does not hold the {kind}; give a smaller model, or free the device of other work"
    )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers from showing a bar while it loads weights; downloads from the hub keep theirs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def folder_digest(folder: Path, memo_dir: Path) -> str:
    """Returns a SHA-256 over names and contents of a model's files, 16 hex characters.

    Hashing gigabytes takes seconds, so the result is remembered in ``memo_dir`` under the files' sizes and modification times.
    """
    tokenizer = [] if (folder / "tokenizer.json").is_file() else [_SENTENCEPIECE]
    files = sorted(file for pattern in (*_PATTERNS, _POOLING, *tokenizer) for file in folder.glob(pattern))
    stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    memo = memo_dir / f"{hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:32]}.digest"
    if memo.is_file() and len(remembered := memo.read_text()) == 16:
        return remembered
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    result = digest.hexdigest()[:16]
    with whole_file(memo) as memo_file:
        memo_file.write(result)
    return result
