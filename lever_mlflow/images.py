"""Image files: decoded once, named by their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lever_mlflow.exceptions import DataError

__all__ = ["image_digest", "image_size", "read_image"]


def read_image(path: Path) -> Image.Image:
    """The decoded RGB image.

    Raises:
        DataError: the file is missing, does not decode, or is a decompression bomb.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: does not decode as an image ({error}); copy it again") from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's header.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: does not decode as an image ({error}); copy it again") from None


@lru_cache(maxsize=65_536)
def image_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, hexadecimal; read once per process.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: image cannot be read: {error}") from None
