"""Decodes image files, checks each once, resizes them and names them by their content.

An image is its first frame in RGB, as stored: an orientation in EXIF is not applied, transparency is dropped, and the images
of other modes are converted by ``lever_mlflow.files.colours``.

Answers and features are cached under the digest of an image. So a file of which this process knows the digest must still have
it when it is read again: otherwise the answer to another picture would be kept as that to the first.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.colours import ColourError, to_rgb
from lever_mlflow.progress import Progress
from lever_mlflow.shortages import let_through

__all__ = [
    "MOST_PIXELS",
    "TOKEN_SIDE",
    "batches_of_images",
    "decode_image",
    "fit_image",
    "fitted_image",
    "header_size",
    "image_digest",
    "image_size",
    "image_sizes",
    "png_data_url",
    "read_image",
    "thumbnail",
]

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused here

TOKEN_SIDE = 28  # pixels: in Qwen2.5-VL, 2 x 2 patches of 14 x 14 pixels become one token
MOST_PIXELS = 89_478_485  # of an image, which takes 268 MB in RGB; from there on Pillow warns of decompression bombs
_THUMBNAIL_QUALITY = 80  # of the JPEG
_digests: dict[Path, str] = {}  # of the files whose digest this process knows
# Formats that Pillow decodes by itself: for EPS, which it would recognise in a file of any name, it runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "PCX", "SGI", "ICO")


def read_image(path: Path) -> Image.Image:
    """Reads an image file and returns the RGB image.

    Raises:
        DataError: the file is missing, does not decode, has more than ``MOST_PIXELS`` pixels, or holds numbers of an unknown
            range (a ``ColourError`` then); or it has changed since ``image_digest`` read it.
    """
    file = io.BytesIO(_content_as_known(path)) if path in _digests else path
    with _opened(path, file) as image:
        return to_rgb(image)


def decode_image(content: bytes) -> Image.Image:
    """Returns the RGB image in a file's content, as ``read_image`` does for a path.

    Raises:
        DataError: the content does not decode, has more than ``MOST_PIXELS`` pixels, or holds numbers of an unknown range.
    """
    try:
        with _checked(io.BytesIO(content)) as image:
            return to_rgb(image)
    except ColourError:
        raise
    except Exception as error:  # all kinds, as in _opened
        let_through(error)
        raise DataError(f"does not decode as an image ({_reason(error)})") from None


def header_size(content: bytes, formats: tuple[str, ...]) -> tuple[int, int]:
    """Returns width and height in pixels from the header of a file's content; nothing is decoded.

    Args:
        content: the file's content.
        formats: the formats that are allowed, by Pillow's names.

    Raises:
        DataError: the content is in none of the formats, or is a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            return image.size
    except Exception as error:  # all kinds, as in _opened
        raise DataError(f"is no {' or '.join(formats)} image ({_reason(error)})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Returns width and height in pixels from a file's header; nothing is decoded.

    Raises:
        DataError: the file is missing or no image.
    """
    with _opened(path, path) as image:
        return image.size


def batches_of_images(pixels: Sequence[int], most_images: int, most_pixels: int) -> Iterator[slice]:
    """Divides images into batches that can be decoded at once, in order.

    Args:
        pixels: the number of pixels of each image.
        most_images: the largest number of images in a batch.
        most_pixels: the largest number of pixels in a batch; an image with more is a batch of its own.
    """
    start = total = 0
    for index, count in enumerate(pixels):
        if index > start and (index - start == most_images or total + count > most_pixels):
            yield slice(start, index)
            start, total = index, 0
        total += count
    if start < len(pixels):
        yield slice(start, len(pixels))


@contextmanager
def _opened(path: Path, file: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Opens an image for the block, from its file or from content that was read; errors in the block become a DataError."""
    try:
        with _checked(file) as image:
            yield image
    except ColourError as error:
        raise ColourError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's many decoders raise all kinds of exceptions for damaged files
        let_through(error)
        if isinstance(error, OSError) and error.errno is not None:  # Pillow's own errors have no number
            raise _unreadable(path, error) from None
        raise DataError(f"{path}: does not decode as an image ({error}); copy it again") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None


def _content_as_known(path: Path) -> bytes:
    """Reads a file; raises DataError where it is not the one any more whose digest this process knows."""
    content = _content(path)
    if _digests[path] != _digest(content):
        raise DataError(f"{path}: this image was replaced while the command ran; run the command again")
    return content


def _unreadable(path: Path, error: OSError) -> DataError:
    let_through(error)
    return DataError(
        f"{path}: image cannot be read ({error.strerror}); restore it, or run the command again if it was in the cache"
    )


def _checked(file: Path | io.BytesIO) -> Image.Image:
    """Opens an image of a usual format, and raises ValueError where it has too many pixels. Nothing is decoded yet."""
    image = Image.open(file, formats=_FORMATS)
    if image.width * image.height > MOST_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MOST_PIXELS:,} are taken")
    return image


def fitted_image(path: Path, min_pixels: int, max_pixels: int, token_side: int = TOKEN_SIDE) -> Image.Image:
    """Reads an image file and resizes the image by ``fit_image``; errors as ``read_image`` and ``fit_image``."""
    return fit_image(read_image(path), str(path), min_pixels, max_pixels, token_side)


def fit_image(image: Image.Image, name: str, min_pixels: int, max_pixels: int, token_side: int = TOKEN_SIDE) -> Image.Image:
    """Resizes an image as Qwen-VL does: sides become multiples of ``token_side``, and the area lies within the bounds.

    Args:
        image: an RGB image.
        name: names the image in an error message.
        min_pixels, max_pixels: bounds of the area in pixels.
        token_side: side of the square of pixels that becomes one token.

    Raises:
        DataError: the aspect ratio is too large for the model.
    """
    from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, fetch_image

    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    try:
        return fetch_image({"image": image, **bounds}, image_patch_size=token_side // SPATIAL_MERGE_SIZE)
    except ValueError as error:
        raise DataError(f"{name}: cannot be shown to the VLM ({error}); crop or replace the image") from None


def thumbnail(path: Path, side: int) -> bytes:
    """Returns a JPEG of an image for a page, whose longer side has at most ``side`` pixels; errors as ``read_image``."""
    image = read_image(path)
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_THUMBNAIL_QUALITY)
    return content.getvalue()


def png_data_url(image: Image.Image) -> str:
    """Returns an image as a ``data:`` URL of a PNG file, without loss."""
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def image_sizes(paths: Sequence[Path], memo: Path | None = None) -> dict[Path, tuple[int, int] | DataError]:
    """Decodes each image to its end, and returns its width and height, or the error of ``read_image``.

    A truncated JPEG is found by decoding alone (``Image.verify`` does not find it), which takes about 3 ms for 640x480.

    Args:
        paths: the image files; duplicates are decoded once.
        memo: file in which images that decode are remembered by their size in bytes and modification time. They are not decoded
            again until they change. The file may be missing or damaged.
    """
    remembered = _remembered(memo)
    unique = list(dict.fromkeys(paths))
    stamps = {path: _stamp(path) for path in unique}
    unknown = [path for path in unique if stamps[path] is None or remembered.get(str(path), [])[:2] != stamps[path]]
    for path in unknown:
        _digests.pop(path, None)  # a data set that is read once more in this process may hold other images
    pool = ThreadPoolExecutor(os.cpu_count())  # Pillow's decoders release Python's global lock
    with pool, Progress("checking images", len(unknown), "images") as progress:
        decoded = {}
        for path, size in zip(unknown, pool.map(_size, unknown), strict=True):
            decoded[path] = size
            progress.update()
    sizes: dict[Path, tuple[int, int] | DataError] = {}
    for path in unique:
        sizes[path] = decoded[path] if path in decoded else (remembered[str(path)][2], remembered[str(path)][3])
    if memo is not None and unknown:
        good = {
            str(path): [*stamp, *size] for path, size in sizes.items() if (stamp := stamps[path]) and isinstance(size, tuple)
        }
        with whole_file(memo) as file:
            json.dump(good, file)
    return sizes


def image_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal. Each file is read once, until ``image_sizes`` decodes it anew.

    Raises:
        DataError: the file cannot be read.
    """
    if path not in _digests:
        _digests[path] = _digest(_content(path))
    return _digests[path]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _reason(error: Exception) -> str:
    """Returns Pillow's message, without the memory address that one of its messages holds."""
    return "of an unknown format" if isinstance(error, UnidentifiedImageError) else str(error).strip().split("\n", 1)[0]


def _remembered(memo: Path | None) -> dict[str, list[int]]:
    """Reads the well-formed entries of a memo: path -> [size in bytes, modification time in ns, width, height]."""
    try:
        content = json.loads(memo.read_text(encoding="utf-8")) if memo else {}
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {
        path: entry
        for path, entry in entries
        if isinstance(entry, list) and len(entry) == 4 and all(isinstance(number, int) for number in entry)
    }


def _stamp(path: Path) -> list[int] | None:
    """Returns size in bytes and modification time in ns of a file, or None where it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _size(path: Path) -> tuple[int, int] | DataError:
    """Decodes an image and returns its width and height, or the error."""
    try:
        return read_image(path).size
    except DataError as error:
        return error
