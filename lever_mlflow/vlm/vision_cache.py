"""Resizes images for a Qwen2.5-VL and encodes each once with its vision tower; features are kept in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from cachetools import LRUCache

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.images import fitted_image, image_digest, image_size
from lever_mlflow.vlm.prompt import PromptProfile

__all__ = ["VisionCache", "visual_tokens"]

_PIXELS_PER_TOKEN_SIDE = 28  # 2 x 2 patches of 14 x 14 pixels become one token
_BATCH = 16


class VisionCache:
    """Encodes images, and keeps their features in main memory under the images' content, up to a limit.

    The least recently used features are dropped first.

    Args:
        model: a loaded Qwen2_5_VLForConditionalGeneration.
        processor: the model's processor.
        profile: gives the bounds of image sizes.
        max_bytes: limit for all features together; by default half of the memory that is free now.

    Attributes:
        encoded: how many images the vision tower has encoded.
    """

    def __init__(self, model: Any, processor: Any, profile: PromptProfile, max_bytes: int | None = None) -> None:
        self.model, self.processor, self.profile = model, processor, profile
        limit = psutil.virtual_memory().available // 2 if max_bytes is None else max_bytes
        self._features: LRUCache[str, tuple[Any, Any]] = LRUCache(limit, getsizeof=lambda item: item[0].nbytes)
        self.encoded = 0

    def features(self, paths: Sequence[Path]) -> list[tuple[Any, Any]]:
        """Returns for each image its features [tokens, hidden size] in main memory, and its grid of patches, int64 [3].

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
                if item[0].nbytes <= self._features.maxsize:
                    self._features[key] = item
        return [features[key] for key in keys]

    def clear(self) -> None:
        """Drops all features."""
        self._features.clear()

    def _encode(self, paths: Sequence[Path]) -> list[tuple[Any, Any]]:
        import torch

        pixels = self.processor.image_processor(
            images=[fitted_image(path, self.profile.min_pixels, self.profile.max_pixels) for path in paths],
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model.get_image_features(pixels["pixel_values"], pixels["image_grid_thw"], return_dict=True)
        self.encoded += len(paths)
        return [
            (part.cpu().clone(), grid) for part, grid in zip(output.pooler_output, pixels["image_grid_thw"].cpu(), strict=True)
        ]


@cache
def visual_tokens(path: Path, profile: PromptProfile) -> int:
    """Returns how many tokens of a prompt an image takes. Only the file's header is read.

    Raises:
        DataError: the file is no image, or its aspect ratio is too large for the model.
    """
    from qwen_vl_utils.vision_process import smart_resize

    width, height = image_size(path)
    try:
        rows, columns = smart_resize(
            height, width, factor=_PIXELS_PER_TOKEN_SIDE, min_pixels=profile.min_pixels, max_pixels=profile.max_pixels
        )
    except ValueError as error:
        raise DataError(f"{path}: cannot be shown to the VLM ({error}); crop or replace the image") from None
    return (rows // _PIXELS_PER_TOKEN_SIDE) * (columns // _PIXELS_PER_TOKEN_SIDE)
