"""Converts an image of any of Pillow's modes to RGB, or refuses it where the range of its numbers is not known.

Pillow's own conversion cuts numbers above 255 off, so that nearly all of a grey image with 16 bits becomes white. Here such an
image is scaled from the range that its file states: that of its bits in PNG, TIFF and JPEG 2000, and 0 to 65,535 in PGM, whose
numbers Pillow scales to this range. No range is stated for 32-bit and signed whole numbers and for fractions.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from lever_mlflow.exceptions import DataError

__all__ = ["ColourError", "to_rgb"]

_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_FULL_RANGE = {  # formats whose grey images with more than 8 bits use all of 16 bits, and Pillow's modes for these
    "PNG": _SIXTEEN_BITS | {"I"},
    "PPM": frozenset({"I"}),
    "JPEG2000": _SIXTEEN_BITS,
    "TIFF": _SIXTEEN_BITS,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0  # value of the latter


class ColourError(DataError):
    """Says that an image decodes, but that its numbers have no range in which they could be converted to colours."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an opened image, of an animation its first frame, in RGB with 8 bits. Transparency is dropped.

    Raises:
        ColourError: the range of the image's numbers is not known.
    """
    if image.mode in _EIGHT_BITS:
        return image.convert("RGB")
    if image.mode == "La":  # colours multiplied by their opacity
        return image.convert("LA").convert("RGB")
    if image.mode in _FULL_RANGE.get(image.format or "", ()):
        return _scaled(image).convert("RGB")
    raise ColourError(
        f"holds numbers of Pillow's mode {image.mode} in a {image.format} file, which states no range for them; convert the "
        "image to 8 or 16 bits, such as a PNG file"
    )


def _scaled(image: Image.Image) -> Image.Image:
    """Returns a grey image with 8 bits, scaled from the largest number that a pixel of the file can have."""
    tags = getattr(image, "tag_v2", {})
    largest = 2 ** min(tags.get(_BITS_PER_SAMPLE, (16,))[0], 16) - 1
    grey = np.asarray(image).astype(np.uint32).clip(max=largest)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = largest - grey
    return Image.fromarray(((grey * 255 + largest // 2) // largest).astype(np.uint8))
