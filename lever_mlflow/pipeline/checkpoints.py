"""Provides the selectors that steps start from: read by path or model URI, or untrained."""

from __future__ import annotations

from pathlib import Path

import torch

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.logged_models import checkpoint_folder

__all__ = ["RANDOM_INIT", "initial_selector", "read_selector"]

RANDOM_INIT = "random"  # names the untrained selector


def initial_selector(context: Context, reference: str) -> PointerSelector:
    """Returns the untrained selector for ``random``, else the selector of a checkpoint; errors as ``read_selector``."""
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
    selector = load_selector(folder or checkpoint_folder(reference))
    expected, actual = selector.config["feature_dim"], context.resources.features("train").of(selector.fusion).shape[1]
    if expected != actual:
        raise CheckpointError(
            f"{reference}: its selector takes features of {expected} numbers, but encoder={context.resources.encoder} gives "
            f"{actual}; give the encoder that it was trained with"
        )
    return selector
