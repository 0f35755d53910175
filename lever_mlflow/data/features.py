"""Computes features of the images and questions of samples, and caches them by content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lever_mlflow.data.encoders import Encoder, Side, encoder_sides, normalise
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.images import MOST_PIXELS, batches_of_images, image_digest, image_size, read_image
from lever_mlflow.progress import Progress
from lever_mlflow.settings import Fusion, PoolSampler

__all__ = ["FeatureTable", "check_fusion", "check_sampler", "fused_features", "longest_item", "sample_features"]

_BATCH = 64  # images or texts that are encoded at a time

log = logging.getLogger(__name__)


_SIDES_OF_SAMPLER: dict[str, tuple[Side, ...]] = {  # features that the samplers of candidates need; the others need none
    "image-similarity": ("image",),
    "text-similarity": ("text",),
    "fused-similarity": ("image", "text"),
    "mixed": ("image", "text"),
}
_SIDES_OF_FUSION: dict[Fusion, tuple[Side, ...]] = {
    "mean": ("image", "text"),
    "concat": ("image", "text"),
    "image": ("image",),
    "text": ("text",),
}
_TABLES: dict[Fusion, str] = {"mean": "fused", "concat": "concat", "image": "image", "text": "text"}


@dataclass(frozen=True)
class FeatureTable:
    """Holds features of S samples, float32, L2-normalised, with rows in the samples' order. Arrays may be memory-mapped.

    An array has no columns where the encoder does not give what it is made of.

    Attributes:
        image_SD, text_SD: features of images and of texts.
        fused_SD: their mean, normalised again.
        concat_SD: image and text features in one row of twice the length, normalised again.
        digest: names the encoder and the content of the samples.
    """

    image_SD: np.ndarray
    text_SD: np.ndarray
    fused_SD: np.ndarray
    concat_SD: np.ndarray
    digest: str

    @property
    def sides(self) -> tuple[Side, ...]:
        """Returns what the encoder encodes."""
        named: tuple[tuple[Side, np.ndarray], ...] = (("image", self.image_SD), ("text", self.text_SD))
        return tuple(side for side, array_SD in named if array_SD.shape[1])

    @property
    def fusion(self) -> Fusion:
        """Returns the fusion of a selector that is not told any: the mean, or the only side that the encoder has."""
        return "mean" if len(self.sides) == 2 else self.sides[0]

    def of(self, fusion: Fusion) -> np.ndarray:
        """Returns the features that a selector with this fusion takes.

        Raises:
            ParameterError: the encoder does not give them.
        """
        check_fusion(fusion, self.sides)
        array_SD: np.ndarray = getattr(self, f"{_TABLES[fusion]}_SD")
        return array_SD

    def longest(self, fusion: Fusion) -> float:
        """Returns the length of the longest of the features that a selector with this fusion takes; NaN where one is NaN."""
        if fusion not in self._longest:
            self._longest[fusion] = longest_item(self.of(fusion))
        return self._longest[fusion]

    @cached_property
    def _longest(self) -> dict[Fusion, float]:
        return {}


def longest_item(items_SD: np.ndarray) -> float:
    """Returns the length of the longest of some features, NaN where one is NaN."""
    return float(np.sqrt(np.einsum("sd,sd->s", items_SD, items_SD).max(initial=0)))


def check_fusion(fusion: Fusion, sides: Sequence[Side]) -> None:
    """Checks that an encoder with these sides gives what a fusion takes.

    Raises:
        ParameterError: it does not.
    """
    _check_sides(f"fusion={fusion}", _SIDES_OF_FUSION[fusion], sides, f"choose fusion={sides[0]}")


def check_sampler(sampler: PoolSampler, sides: Sequence[Side]) -> None:
    """Checks that an encoder with these sides gives what a sampler of candidates takes.

    Raises:
        ParameterError: it does not.
    """
    remedy = f"choose pool_sampler={sides[0]}-similarity, random or fixed"
    _check_sides(f"pool_sampler={sampler}", _SIDES_OF_SAMPLER.get(sampler, ()), sides, remedy)


def _check_sides(what: str, needed: Sequence[Side], sides: Sequence[Side], remedy: str) -> None:
    if not set(needed) <= set(sides):
        takes = " and ".join(f"{side}s" for side in needed)
        raise ParameterError(f"{what} takes features of {takes}, but the encoder encodes {sides[0]}s only; {remedy}")


def sample_features(
    samples: Sequence[Sample], encoder: Path, encoder_digest: str, cache_dir: Path, device: str = "cpu"
) -> FeatureTable:
    """Returns features of image and question of each sample, or of one of them where the encoder has no other side.

    They are computed once per encoder and content, and then read from the folder ``features`` in ``cache_dir``.

    Args:
        samples: the samples.
        encoder: folder of the encoder.
        encoder_digest: names the content of that folder.
        cache_dir: the cache folder.
        device: device that the model runs on.

    Raises:
        DataError: an image does not decode, or the folder holds no encoder.
    """
    content = hashlib.sha256(encoder_digest.encode())
    for sample in samples:
        content.update(f"{image_digest(sample.image_path)}\0{sample.question}\0".encode())
    digest = content.hexdigest()[:32]
    files = {kind: cache_dir / "features" / f"{digest}-{kind}.npy" for kind in ("image", "text", "fused", "concat")}
    sides = encoder_sides(encoder)
    if not all(_is_cached(files[side], len(samples)) for side in sides):
        for side, array_SD in _encode(samples, encoder, device).items():
            _write(files[side], array_SD)
    both = len(sides) == 2
    if both and not all(_is_cached(files[kind], len(samples)) for kind in ("fused", "concat")):
        table = fused_features(np.load(files["image"]), np.load(files["text"]), digest)
        _write(files["fused"], table.fused_SD)
        _write(files["concat"], table.concat_SD)
    none_SD = np.empty((len(samples), 0), dtype=np.float32)
    there = {kind: both or kind in sides for kind in files}
    arrays = {f"{kind}_SD": np.load(path, mmap_mode="r") if there[kind] else none_SD for kind, path in files.items()}
    return FeatureTable(**arrays, digest=digest)


def _is_cached(path: Path, rows: int) -> bool:
    """Says whether a file holds features of so many samples; the log says what is wrong with one that does not."""
    if not path.is_file():
        return False
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        log.warning("%s: %s; the features are computed again", path, error)
        return False
    if array.dtype == np.float32 and array.ndim == 2 and len(array) == rows:
        return True
    log.warning("%s: holds %s of shape %s; the features are computed again", path, array.dtype, array.shape)
    return False


def fused_features(image_SD: np.ndarray, text_SD: np.ndarray, digest: str) -> FeatureTable:
    """Returns the feature table of L2-normalised image and text features, in memory; one of them may have no columns."""
    if not (image_SD.shape[1] and text_SD.shape[1]):
        none_SD = np.empty((len(image_SD), 0), dtype=np.float32)
        return FeatureTable(image_SD, text_SD, none_SD, none_SD, digest)
    fused_SD, concat_SD = normalise(image_SD + text_SD), normalise(np.concatenate([image_SD, text_SD], axis=1))
    return FeatureTable(image_SD, text_SD, fused_SD, concat_SD, digest)


def _encode(samples: Sequence[Sample], folder: Path, device: str) -> dict[Side, np.ndarray]:
    """Returns features of the samples' images and of their questions, [S, D] each, as far as the encoder has these sides."""
    encoder = Encoder(folder, device)

    def images(batch: Sequence[Path]) -> np.ndarray:
        return encoder.images([read_image(path) for path in batch])

    def pixels(path: Path) -> int:
        width, height = image_size(path)
        return width * height

    paths, questions = [sample.image_path for sample in samples], [sample.question for sample in samples]
    encoded: dict[Side, np.ndarray] = {}
    if "image" in encoder.sides:
        encoded["image"] = _encode_unique(paths, images, "images", pixels)
    if "text" in encoder.sides:
        encoded["text"] = _encode_unique(questions, encoder.texts, "questions")
    return encoded


def _encode_unique(
    items: Sequence[Any],
    encode: Callable[[Sequence[Any]], np.ndarray],
    kind: str,
    pixels: Callable[[Any], int] = lambda item: 0,
) -> np.ndarray:
    """Returns the features of each item, [items, D]; equal items are encoded once.

    Args:
        items: the items.
        encode: encodes a batch of items.
        kind: names the items.
        pixels: says how many pixels an item takes when it is decoded.
    """
    unique = list(dict.fromkeys(items))
    row = {item: i for i, item in enumerate(unique)}
    encoded = []
    with Progress("encoding", len(unique), kind) as progress:
        for batch in batches_of_images([pixels(item) for item in unique], _BATCH, MOST_PIXELS):
            encoded.append(encode(unique[batch]))
            progress.update(len(encoded[-1]))
    return np.concatenate(encoded)[[row[item] for item in items]]


def _write(path: Path, array: np.ndarray) -> None:
    """Writes an array as float32."""
    with whole_file(path, "wb") as file:
        np.save(file, array.astype(np.float32))
