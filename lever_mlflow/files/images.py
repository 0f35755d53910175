"""Image files: decoded, checked once and named by their content.

An image is its first frame in RGB, as stored: an orientation in EXIF is not applied, transparency is dropped, and CMYK,
grey and palette images are converted.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.atomic import whole_file

__all__ = [
    "decode_image",
    "fit_image",
    "fitted_image",
    "header_size",
    "image_digest",
    "image_size",
    "image_sizes",
    "png_data_url",
    "read_image",
]


def read_image(path: Path) -> Image.Image:
    """The decoded RGB image.

    Raises:
        DataError: the file is missing, does not decode, or is a decompression bomb.
    """
    with _opened(path) as image:
        return image.convert("RGB")


def decode_image(content: bytes) -> Image.Image:
    """The RGB image in a file's content, as ``read_image`` gives it.

    Raises:
        DataError: it does not decode, or is a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except Exception as error:  # as in _opened
        raise DataError(f"does not decode as an image ({_reason(error)})") from None


def header_size(content: bytes, formats: tuple[str, ...]) -> tuple[int, int]:
    """Width and height by the header of a file's content in one of Pillow's ``formats``; nothing is decoded.

    Raises:
        DataError: no such header, or that of a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return image.size
    except Exception as error:  # as in _opened
        raise DataError(f"is no {' or '.join(formats)} image ({_reason(error)})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's header.

    Raises:
        DataError: the file is missing or no image.
    """
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # which exceptions damaged files raise is up to Pillow's many decoders
        raise DataError(f"{path}: does not decode as an image ({error}); copy it again") from None


def fitted_image(path: Path, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image in a file resized by ``fit_image``; errors as ``read_image`` and ``fit_image``."""
    return fit_image(read_image(path), str(path), min_pixels, max_pixels)


def fit_image(image: Image.Image, name: str, min_pixels: int, max_pixels: int) -> Image.Image:
    """The image resized as Qwen2.5-VL wants it: sides are multiples of 28, the area is within the bounds.

    Raises:
        DataError: the aspect ratio is beyond what the model takes.
    """
    from qwen_vl_utils.vision_process import fetch_image

    try:
        return fetch_image({"image": image, "min_pixels": min_pixels, "max_pixels": max_pixels})
    except ValueError as error:
        raise DataError(f"{name}: cannot be shown to the VLM ({error}); crop or replace the image") from None


def png_data_url(image: Image.Image) -> str:
    """The image as a ``data:`` URL, without loss."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def image_sizes(paths: Sequence[Path], memo: Path | None = None) -> dict[Path, tuple[int, int] | DataError]:
    """Width and height of each image, which is decoded to the end, or the error of ``read_image``.

    Only decoding finds a truncated JPEG (``Image.verify`` does not), at about 3 ms for 640x480. Images found good are
    remembered in the file ``memo`` under their size in bytes and modification time; it may be missing or damaged.
    """
    known = _remembered(memo)
    unique = list(dict.fromkeys(paths))
    stamps = {path: _stamp(path) for path in unique}
    new = [path for path in unique if stamps[path] is None or known.get(str(path), [])[:2] != stamps[path]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow's decoders run beside each other
        found = tqdm(pool.map(_size, new), desc="checking images", total=len(new), unit="image", disable=None)
        decoded = dict(zip(new, found, strict=True))
    sizes: dict[Path, tuple[int, int] | DataError] = {}
    for path in unique:
        sizes[path] = decoded[path] if path in decoded else (known[str(path)][2], known[str(path)][3])
    if memo is not None and new:
        good = {
            str(path): [*stamp, *size] for path, size in sizes.items() if (stamp := stamps[path]) and isinstance(size, tuple)
        }
        with whole_file(memo) as file:
            json.dump(good, file)
    return sizes


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


def _reason(error: Exception) -> str:
    """Pillow's words, without the memory address of what it could not identify."""
    return "of an unknown format" if isinstance(error, UnidentifiedImageError) else str(error).strip().split("\n", 1)[0]


def _remembered(memo: Path | None) -> dict[str, list[int]]:
    """The memo's entries of the right form: path -> [bytes, modification time, width, height]."""
    try:
        content = json.loads(memo.read_text(encoding="utf-8")) if memo else {}
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {
        path: entry
        for path, entry in entries
        if isinstance(entry, list) and len(entry) == 4 and all(isinstance(number, int) for number in entry)
    }


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _size(path: Path) -> tuple[int, int] | DataError:
    try:
        return read_image(path).size
    except DataError as error:
        return error
