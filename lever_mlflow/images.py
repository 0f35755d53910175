"""Image files: decoded once, named by their content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from PIL import Image

from lever_mlflow.exceptions import DataError

__all__ = ["fitted_image", "image_digest", "read_image"]


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


def fitted_image(path: Path, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image resized as Qwen2.5-VL wants it: sides are multiples of 28, the area is within the bounds.

    Raises:
        DataError: as ``read_image``, or the aspect ratio is beyond what the model takes.
    """
    from qwen_vl_utils.vision_process import fetch_image

    try:
        return fetch_image({"image": read_image(path), "min_pixels": min_pixels, "max_pixels": max_pixels})
    except ValueError as error:
        raise DataError(f"{path}: cannot be shown to the VLM ({error}); crop or replace the image") from None


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
