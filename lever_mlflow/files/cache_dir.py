"""Says where the project's cache folder is."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE_DIR", "default_cache_dir"]

CACHE_DIR = "LEVER_MLFLOW_CACHE"  # environment variable


def default_cache_dir() -> Path:
    """Returns the folder that ``LEVER_MLFLOW_CACHE`` names, or ``~/.cache/lever-mlflow``.

    It holds the embedded data set, copies of hub data sets, features and answers. It may be deleted between two commands; what
    is needed again is then made again.
    """
    return Path(os.environ.get(CACHE_DIR) or Path.home() / ".cache" / "lever-mlflow")
