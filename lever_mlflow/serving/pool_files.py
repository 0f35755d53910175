"""Saves and loads the demonstrations that a retriever picks from: ids, texts, features and images of the training items.

Their folder holds ``pool.json``, ``features.safetensors`` and, where the image files are small in total, also
``images.safetensors`` with their bytes. Larger images are read from the folder that the environment variable
``LEVER_MLFLOW_POOL_IMAGES`` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lever_mlflow.data.candidate_pools import ItemsByImage, items_by_image
from lever_mlflow.data.features import FeatureTable, fused_features
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.shortages import let_through

__all__ = ["POOL_IMAGES", "DemonstrationPool", "load_pool", "save_pool"]

POOL_IMAGES = "LEVER_MLFLOW_POOL_IMAGES"  # environment variable
_ITEMS, _FEATURES, _IMAGES = "pool.json", "features.safetensors", "images.safetensors"
_REMEDY = "get the model again"


@dataclass(frozen=True, eq=False)
class DemonstrationPool:
    """Holds demonstrations and their features, in one order.

    Attributes:
        samples: the demonstrations; the image path of each is the file's name alone, and the answer that is shown its only one.
        features: the features of the samples.
        digests: digests of the image files by name.
        images: contents of the image files by name; empty where the folder does not hold them.
    """

    samples: list[Sample]
    features: FeatureTable
    digests: Mapping[str, str]
    images: Mapping[str, bytes]

    @cached_property
    def by_image(self) -> ItemsByImage:
        """Returns the indices of the samples about each picture."""
        return items_by_image(self.samples)

    @cached_property
    def pictures(self) -> Mapping[str, int]:
        """Returns the pictures by the digests of their image files."""
        first = {picture: self.samples[indices[0]].image_path.name for picture, indices in self.by_image.items()}
        return {self.digests[name]: picture for picture, name in first.items() if name in self.digests}

    def image(self, name: str) -> bytes:
        """Returns the content of an image file of the pool, by the file's name.

        Raises:
            ParameterError: the images are not part of the model, and ``LEVER_MLFLOW_POOL_IMAGES`` is not set.
            DataError: the folder that it names does not hold the image, or holds another one under its name.
        """
        if name in self.images:
            return self.images[name]
        folder = os.environ.get(POOL_IMAGES)
        if not folder:
            raise ParameterError(
                f"as_messages: the images of the pool are not in this model, as they are too large; set {POOL_IMAGES}, where "
                "the model is loaded, to the folder of the training images"
            )
        try:
            content = (Path(folder) / name).read_bytes()
        except OSError as error:
            let_through(error)
            raise DataError(f"{POOL_IMAGES}: no readable {name} there; give the folder of the training images") from None
        if hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise DataError(f"{POOL_IMAGES}: {name} there is not the training image; give the folder of the training images")
        return content


def save_pool(folder: Path, samples: Sequence[Sample], features: FeatureTable, max_image_bytes: int) -> None:
    """Writes demonstrations into an existing folder.

    Args:
        folder: the folder.
        samples: the training items.
        features: the features of the samples.
        max_image_bytes: the images are written too, if their files have at most so many bytes in total.
    """
    paths = {sample.image_path.name: sample.image_path for sample in samples}
    items = [
        {
            "question_id": sample.question_id,
            "image_id": sample.image_id,
            "question": sample.question,
            "answer": sample.answer,
            "image": sample.image_path.name,
            **({} if sample.picture_id is None else {"picture": sample.picture_id}),
        }
        for sample in samples
    ]
    content = {
        "items": items,
        "images": {name: image_digest(path) for name, path in paths.items()},
        "feature_digest": features.digest,
    }
    (folder / _ITEMS).write_text(json.dumps(content), encoding="utf-8")
    arrays = {"image": np.array(features.image_SD), "text": np.array(features.text_SD)}
    _save({side: array for side, array in arrays.items() if side in features.sides}, folder / _FEATURES)
    if sum(path.stat().st_size for path in paths.values()) <= max_image_bytes:
        files = {name: np.frombuffer(path.read_bytes(), dtype=np.uint8) for name, path in paths.items()}
        _save(files, folder / _IMAGES)


def load_pool(folder: Path) -> DemonstrationPool:
    """Reads the demonstrations in a folder.

    Raises:
        DataError: a file is missing or damaged.
    """
    content = read_object(folder / _ITEMS, missing=_REMEDY, damaged=_REMEDY)
    try:
        samples = [_sample(index, item) for index, item in enumerate(content["items"])]
        features = load_file(folder / _FEATURES)
        none_SD = np.empty((len(next(iter(features.values()))), 0), dtype=np.float32)
        image_SD, text_SD = features.get("image", none_SD), features.get("text", none_SD)
        table = fused_features(image_SD, text_SD, content["feature_digest"])
        images = load_file(folder / _IMAGES) if (folder / _IMAGES).is_file() else {}
        digests = dict(content["images"])
        names = (*digests, *(str(sample.image_path) for sample in samples))
        outside = [name for name in names if Path(name).name != name or name == ".."]
        if outside:
            raise ValueError(f"image {reprlib.repr(outside[0])} is not the name of a file alone")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, StopIteration) as error:
        let_through(error)
        raise DataError(f"{folder}: not a readable pool of demonstrations ({error!r}); {_REMEDY}") from None
    if len(samples) != len(table.image_SD):
        raise DataError(f"{folder}: {len(samples)} items, but features of {len(table.image_SD)}; {_REMEDY}")
    return DemonstrationPool(samples, table, digests, {name: array.tobytes() for name, array in images.items()})


def _sample(index: int, item: Mapping[str, Any]) -> Sample:
    """Returns a demonstration as it stands in the file of items, with the answer that is shown as its only one."""
    texts = item["question"], Path(item["image"]), (item["answer"],)
    return Sample(index, item["question_id"], item["image_id"], *texts, picture_id=item.get("picture"))


def _save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes arrays to a file that everybody may read; safetensors by itself lets only the owner."""
    save_file(arrays, path)
    path.chmod(0o644)
