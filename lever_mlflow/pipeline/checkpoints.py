"""Provides the selectors that steps start from: read by path or model URI, or untrained."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.pipeline.context import Context
from lever_mlflow.runs.steps import code_digest
from lever_mlflow.selector.checkpoint_folder import stated_selector
from lever_mlflow.serving.logged_models import checkpoint_folder
from lever_mlflow.settings import Fusion

if TYPE_CHECKING:
    from lever_mlflow.selector.network import PointerSelector

__all__ = ["RANDOM_INIT", "Start", "initial_selector", "read_selector", "start_selector"]

RANDOM_INIT = "random"  # names the untrained selector


class Start(NamedTuple):
    """Names a selector by its digest, which is all that a step whose finished run is reused needs, and loads it.

    Attributes:
        digest: as ``selector_digest``.
        load: returns the selector; raises CheckpointError where its checkpoint is another one by now.
    """

    digest: str
    load: Callable[[], PointerSelector]


def start_selector(context: Context, reference: str, folder: Path | None = None) -> Start:
    """Finds the untrained selector for ``random``, or a checkpoint by path or URI; arguments and errors as ``read_selector``.

    PyTorch is imported only where a digest is not known yet, or nothing but loading can say what is wrong with a checkpoint.
    """
    if reference == RANDOM_INIT:
        return Start(_untrained_digest(context), partial(initial_selector, context, reference))
    folder = folder or checkpoint_folder(reference)
    stated = stated_selector(folder)
    if stated is None:
        return _start_of(read_selector(context, reference, folder))
    _check_features(context, reference, stated.feature_dim, stated.fusion)
    return Start(stated.digest, partial(_read_same, context, reference, folder, stated.digest))


def initial_selector(context: Context, reference: str) -> PointerSelector:
    """Returns the untrained selector for ``random``, else the selector of a checkpoint; errors as ``read_selector``."""
    import torch

    from lever_mlflow.selector.network import PointerSelector

    if reference != RANDOM_INIT:
        return read_selector(context, reference)
    torch.manual_seed(context.seed)
    features = context.resources.features("train")
    return PointerSelector(feature_dim=features.of(features.fusion).shape[1], fusion=features.fusion).eval()


def read_selector(context: Context, reference: str, folder: Path | None = None) -> PointerSelector:
    """Reads a checkpoint's selector by path or model URI, or from its ``folder`` where that is known.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its selector takes other features than this encoder's.
    """
    from lever_mlflow.selector.checkpoint import load_selector

    selector = load_selector(folder or checkpoint_folder(reference))
    _check_features(context, reference, selector.config["feature_dim"], selector.fusion)
    return selector


def _check_features(context: Context, reference: str, expected: Any, fusion: Fusion) -> None:
    """Checks that a selector, which takes so many numbers of a fusion, takes what the encoder gives."""
    actual = context.resources.features("train").of(fusion).shape[1]
    if expected != actual:
        raise CheckpointError(
            f"{reference}: its selector takes features of {expected} numbers, but encoder={context.resources.encoder} gives "
            f"{actual}; give the encoder that it was trained with"
        )


def _start_of(selector: PointerSelector) -> Start:
    from lever_mlflow.selector.checkpoint import selector_digest

    return Start(selector_digest(selector), lambda: selector)


def _read_same(context: Context, reference: str, folder: Path, digest: str) -> PointerSelector:
    """Reads a checkpoint's selector, which must still have the digest by which the step is known."""
    start = _start_of(read_selector(context, reference, folder))
    if start.digest != digest:
        raise CheckpointError(f"{reference}: its weights were replaced meanwhile; run the command again")
    return start.load()


def _untrained_digest(context: Context) -> str:
    """Returns the digest of the untrained selector, which the cache folder remembers under all that decides the weights."""
    features = context.resources.features("train")
    length = features.of(features.fusion).shape[1]
    decisive = [context.seed, length, features.fusion, version("torch"), platform.machine(), code_digest()]
    name = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]
    memo = context.resources.cache_dir / "digests" / f"untrained-{name}.digest"
    if memo.is_file() and len(remembered := memo.read_text()) == 32:
        return remembered
    digest = _start_of(initial_selector(context, RANDOM_INIT)).digest
    with whole_file(memo) as file:
        file.write(digest)
    return digest
