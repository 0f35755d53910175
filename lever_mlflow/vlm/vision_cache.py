"""Resizes images for a Qwen-VL and encodes each once with its vision tower; features are kept in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
from cachetools import LRUCache

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.images import TOKEN_SIDE, fitted_image, image_digest, image_size
from lever_mlflow.vlm.profiles import PromptProfile

__all__ = ["ImageFeatures", "VisionCache", "encoder_output", "visual_tokens"]

_BATCH = 16
_PROCESSES = "LOCAL_WORLD_SIZE"  # environment variable in which torch.distributed's launchers count the processes of a machine


class ImageFeatures(NamedTuple):
    """Holds what the vision tower makes of one image.

    Attributes:
        tokens: features of the visual tokens, [tokens, hidden size].
        grid: numbers of patches (frames, rows, columns), int64 [3].
        deepstack: further features of the same shape, which Qwen3-VL adds in its first layers; empty for the other families.
    """

    tokens: Any
    grid: Any
    deepstack: tuple[Any, ...] = ()

    @property
    def nbytes(self) -> int:
        """Returns the memory that the features take, in bytes."""
        return int(self.tokens.nbytes + sum(layer.nbytes for layer in self.deepstack))


class VisionCache:
    """Encodes images, and keeps their features in main memory under the images' content, up to a limit.

    The least recently used features are dropped first.

    Args:
        model: a loaded model of one of the Qwen-VL families.
        processor: the model's processor.
        profile: gives the bounds of image sizes.
        token_side: side in pixels of the square that becomes one visual token.
        max_bytes: limit for all features together; by default half of the memory that is free now, or this process's part of
            it where several were launched together.

    Attributes:
        encoded: how many images the vision tower has encoded.
    """

    def __init__(
        self, model: Any, processor: Any, profile: PromptProfile, token_side: int, max_bytes: int | None = None
    ) -> None:
        self.model, self.processor, self.profile, self.token_side = model, processor, profile, token_side
        processes = int(os.environ.get(_PROCESSES, "1"))
        limit = psutil.virtual_memory().available // (2 * processes) if max_bytes is None else max_bytes
        self._features: LRUCache[str, ImageFeatures] = LRUCache(limit, getsizeof=lambda item: item.nbytes)
        self.encoded = 0

    def features(self, paths: Sequence[Path]) -> list[ImageFeatures]:
        """Returns the features of each image, in main memory.

        Raises:
            DataError: an image does not decode.
        """
        keys = [image_digest(path) for path in paths]
        features = {key: self._features[key] for key in dict.fromkeys(keys) if key in self._features}
        missing = [(key, path) for key, path in dict(zip(keys, paths, strict=True)).items() if key not in features]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            for (key, _), item in zip(batch, self._encode([path for _, path in batch]), strict=True):
                features[key] = item
                if item.nbytes <= self._features.maxsize:
                    self._features[key] = item
        return [features[key] for key in keys]

    def clear(self) -> None:
        """Drops all features."""
        self._features.clear()

    def _encode(self, paths: Sequence[Path]) -> list[ImageFeatures]:
        import torch

        bounds = (self.profile.min_pixels, self.profile.max_pixels, self.token_side)
        images = [fitted_image(path, *bounds) for path in paths]
        pixels = self.processor.image_processor(images=images, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            output = self.model.get_image_features(pixels["pixel_values"], pixels["image_grid_thw"], return_dict=True)
        self.encoded += len(paths)
        layers = getattr(output, "deepstack_features", None) or []
        return [
            ImageFeatures(tokens.cpu().clone(), grid, tuple(layer[i].cpu().clone() for layer in layers))
            for i, (tokens, grid) in enumerate(zip(output.pooler_output, pixels["image_grid_thw"].cpu(), strict=True))
        ]


def encoder_output(images: Sequence[ImageFeatures], device: str, dtype: Any) -> Any:
    """Returns the features of several images as the model takes them in place of their pixels."""
    layers = zip(*(image.deepstack for image in images), strict=True)
    return SimpleNamespace(
        pooler_output=tuple(image.tokens.to(device, dtype) for image in images),
        deepstack_features=[tuple(part.to(device, dtype) for part in layer) for layer in layers],
    )


@cache
def visual_tokens(path: Path, profile: PromptProfile, token_side: int = TOKEN_SIDE) -> int:
    """Returns how many tokens of a prompt an image takes. Only the file's header is read.

    Raises:
        DataError: the file is no image, or its aspect ratio is too large for the model.
    """
    from qwen_vl_utils.vision_process import smart_resize

    width, height = image_size(path)
    try:
        rows, columns = smart_resize(
            height, width, factor=token_side, min_pixels=profile.min_pixels, max_pixels=profile.max_pixels
        )
    except ValueError as error:
        raise DataError(f"{path}: cannot be shown to the VLM ({error}); crop or replace the image") from None
    return (rows // token_side) * (columns // token_side)
