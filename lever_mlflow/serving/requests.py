"""Reads the rows of a request to a served retriever. Whatever a client sends becomes a query or an error of one line."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, SkipValidation

from lever_mlflow.data.item_rules import text_problem
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import decode_image, header_size
from lever_mlflow.settings import ServingSettings

__all__ = ["QUERY_IMAGES", "FeatureDims", "Query", "Row", "read_queries"]

QUERY_IMAGES = "LEVER_MLFLOW_QUERY_IMAGES"  # environment variable
_FORMATS = ("PNG", "JPEG")
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_ENDINGS = (".png", ".jpg", ".jpeg")  # by which a path is recognised, as base64 has no dots
_NORM_TOLERANCE = 1e-3
_FORMS_OF_FEATURES = (
    "not a list of numbers, nor the bytes of little-endian float32 numbers in base64; give the encoder's L2-normalised vector"
)


class FeatureDims(NamedTuple):
    """Holds the lengths of an encoder's features of images and of texts; 0 for what it does not encode."""

    image: int
    text: int


class Row(BaseModel):
    """Describes a row for MLflow's signature. Values are checked by ``read_queries``, whose error messages are clearer.

    An image may also be the bytes of the file, and features the bytes of their little-endian float32 numbers, or these bytes
    in base64. JSON holds no bytes, but Parquet and Python do.
    """

    model_config = ConfigDict(extra="allow")

    question: Annotated[str | None, SkipValidation] = None
    image: Annotated[str | None, SkipValidation] = None
    image_features: Annotated[list[float] | None, SkipValidation] = None
    text_features: Annotated[list[float] | None, SkipValidation] = None


@dataclass(frozen=True)
class Query:
    """Holds what a row asks: a question about an image, or the encoder's features of both.

    Attributes:
        name: names the row in error messages.
        question: the question; empty where features are given.
        image: content of the image file; empty where features are given.
        features: image and text feature, float32 [D] each, or [0] for what the encoder does not encode; None where question and
            image are given.
    """

    name: str
    question: str = ""
    image: bytes = b""
    features: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def content_id(self) -> int:
        """Returns an id of the content, 0 to 2^63 - 1, which is the same in every request."""
        parts = [self.question.encode(), self.image] if self.features is None else [part.tobytes() for part in self.features]
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
        return int.from_bytes(digest.digest()[:8]) >> 1

    @cached_property
    def image_digest(self) -> str:
        """Returns the SHA-256 of the image file, hexadecimal; where there is none, that of no bytes."""
        return hashlib.sha256(self.image).hexdigest()

    @cached_property
    def pixels(self) -> int:
        """Returns the number of pixels of the image, by its header."""
        width, height = header_size(self.image, _FORMATS)
        return width * height

    def decoded(self) -> Image.Image:
        """Decodes the image to RGB.

        Raises:
            DataError: the image is damaged after its header.
        """
        try:
            return decode_image(self.image)
        except DataError as error:
            raise DataError(f"{self.name}: image {error}; send the whole file") from None


def read_queries(rows: Sequence[Row], dims: FeatureDims, limits: ServingSettings) -> list[Query]:
    """Checks the rows of a request and returns their queries. Only the headers of images are checked, nothing is decoded yet.

    Args:
        rows: the rows.
        dims: lengths of the encoder's features.
        limits: most rows, characters, bytes and pixels.

    Raises:
        ParameterError: a row cannot be used; the message names the row.
    """
    if not rows:
        raise ParameterError("no rows in the request; send at least one")
    if len(rows) > limits.max_rows:
        raise ParameterError(f"{len(rows)} rows in the request, at most {limits.max_rows} are taken; send it in parts")
    return [_read(f"row {number}", row, dims, limits) for number, row in enumerate(rows)]


def _read(name: str, row: Row, dims: FeatureDims, limits: ServingSettings) -> Query:
    """Checks one row and returns its query."""
    if row.model_extra:
        unknown = ", ".join(sorted(row.model_extra)[:5])
        raise ParameterError(f"{name}: unknown column {reprlib.repr(unknown)}; columns are {', '.join(Row.model_fields)}")
    columns = {column for column in Row.model_fields if getattr(row, column) is not None}
    if columns == {"question", "image"}:
        return Query(name, _question(name, row.question, limits), _image(name, row.image, limits))
    lengths = {f"{side}_features": length for side, length in dims._asdict().items()}
    wanted = [column for column, length in lengths.items() if length]
    if columns == set(wanted):
        vectors = {column: _features(f"{name}: {column}", getattr(row, column), lengths[column]) for column in wanted}
        image_D, text_D = (vectors.get(column, np.empty(0, dtype=np.float32)) for column in lengths)
        return Query(name, features=(image_D, text_D))
    content = " and ".join(sorted(columns)) or "nothing"
    raise ParameterError(f"{name}: holds {content}; give question and image, or {' and '.join(wanted)}")


def _question(name: str, question: Any, limits: ServingSettings) -> str:
    """Checks a question and returns it."""
    problem = text_problem(question, limits.max_question_characters)
    if problem:
        raise ParameterError(f"{name}: question {problem}")
    return str(question)


def _image(name: str, image: Any, limits: ServingSettings) -> bytes:
    """Checks an image, in base64, as bytes or as a path, and returns the content of its file."""
    content = image if isinstance(image, bytes) else _named_or_encoded(name, image, limits)
    if len(content) > limits.max_image_bytes:
        raise _too_large(name, limits)
    try:
        width, height = header_size(content, _FORMATS)
    except DataError as error:
        raise ParameterError(f"{name}: image {error}; send another file") from None
    if width * height > limits.max_image_pixels:
        raise ParameterError(
            f"{name}: image has {width} x {height} pixels, at most {limits.max_image_pixels} are taken; make it smaller"
        )
    return content


def _named_or_encoded(name: str, image: Any, limits: ServingSettings) -> bytes:
    """Returns the content of an image file that a text holds in base64, or names by its path."""
    if not isinstance(image, str):
        raise ParameterError(f"{name}: image is of type {type(image).__name__}; give a PNG or JPEG file in base64")
    if _URL.match(image):
        raise ParameterError(f"{name}: image is a URL, and none is fetched or unpacked; give a PNG or JPEG file in base64")
    return _file(name, image, limits) if image[-5:].lower().endswith(_ENDINGS) else _base64(name, image, limits)


def _base64(name: str, image: str, limits: ServingSettings) -> bytes:
    """Decodes base64, unless it is too long."""
    if len(image) > 4 * (limits.max_image_bytes // 3 + 1):
        raise _too_large(name, limits)
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError):
        raise ParameterError(f"{name}: image is not base64; encode the file without line breaks, as base64 -w0 does") from None


def _file(name: str, image: str, limits: ServingSettings) -> bytes:
    """Returns the content of a file in the folder that ``LEVER_MLFLOW_QUERY_IMAGES`` names.

    The error for a path outside that folder is the same whether there is such a file or not.
    """
    allowed_folder = os.environ.get(QUERY_IMAGES)
    if not allowed_folder:
        raise ParameterError(f"{name}: image is a path, and {QUERY_IMAGES} is not set where the model is loaded; send base64")
    try:
        folder = Path(allowed_folder).resolve(strict=True)
        path = (folder / image).resolve(strict=True)
        inside = path.is_relative_to(folder) and path.is_file()
        size = path.stat().st_size if inside else 0
        content = path.read_bytes() if inside and size <= limits.max_image_bytes else b""
    except (OSError, ValueError, RuntimeError):
        inside, size, content = False, 0, b""
    if not inside:
        raise ParameterError(f"{name}: image is no readable file in the folder that {QUERY_IMAGES} names; send base64")
    if size > limits.max_image_bytes:
        raise _too_large(name, limits)
    return content


def _too_large(name: str, limits: ServingSettings) -> ParameterError:
    return ParameterError(f"{name}: image has more than {limits.max_image_bytes} bytes; send a smaller file")


def _features(name: str, features: Any, feature_dim: int) -> np.ndarray:
    """Checks a feature vector, given as numbers or as their bytes, and returns it as float32 [D]."""
    values_D = _numbers(name, features) if isinstance(features, list | np.ndarray) else _float32(name, features)
    if len(values_D) != feature_dim:
        raise ParameterError(f"{name}: {len(values_D)} numbers, expected {feature_dim}; give features of the model's encoder")
    norm = float(np.linalg.norm(values_D))
    if not abs(norm - 1) <= _NORM_TOLERANCE:
        raise ParameterError(f"{name}: of length {norm:g}, expected finite numbers of length 1; give an L2-normalised vector")
    return values_D.astype(np.float32)


def _numbers(name: str, values: list[Any] | np.ndarray) -> np.ndarray:
    """Returns the numbers of a feature vector as float64, infinity for those beyond its range; ``name`` is named in errors."""
    numbers = values.tolist() if isinstance(values, np.ndarray) else values
    if not (isinstance(numbers, list) and set(map(type, numbers)) <= {int, float}):
        raise ParameterError(f"{name}: {_FORMS_OF_FEATURES}")
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError:  # an int beyond the range of float64
        return np.full(len(numbers), np.inf)


def _float32(name: str, content: Any) -> np.ndarray:
    """Returns the numbers whose bytes, of little-endian float32, are given as they are or in base64, as float64."""
    if not isinstance(content, str | bytes):
        raise ParameterError(f"{name}: {_FORMS_OF_FEATURES}")
    try:
        raw = base64.b64decode(content, validate=True) if isinstance(content, str) else content
        return np.frombuffer(raw, dtype="<f4").astype(np.float64)
    except ValueError:  # of base64, or of a number of bytes that is no multiple of 4
        raise ParameterError(f"{name}: {_FORMS_OF_FEATURES}") from None
