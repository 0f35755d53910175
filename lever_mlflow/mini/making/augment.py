"""Changes digit images at random by a little, so that the tiny models can be trained on only about 1,100 of them."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from lever_mlflow.mini.dataset import Split, digit_images

__all__ = ["augment", "gray_images"]


@cache
def gray_images(split: Split) -> tuple[torch.Tensor, np.ndarray]:
    """Returns the images of a split as gray values in [0, 1], shape [images, 56, 56], and their digits."""
    images, digits = digit_images(split)
    gray_NHW = np.stack([np.asarray(image.convert("L")) for image in images])
    return torch.from_numpy(gray_NHW).float() / 255, digits


def augment(gray_NHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotates, scales, shears and shifts each image and changes its contrast, all by a little; black fills the border."""
    count = len(gray_NHW)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear, scale_x, scale_y = uniform(0.22), uniform(0.15), 1 + uniform(0.12), 1 + uniform(0.12)
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([cos * scale_x, (shear - sin) * scale_x, uniform(0.12)], dim=1)
    row_y = torch.stack([sin * scale_y, cos * scale_y, uniform(0.12)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), [count, 1, *gray_NHW.shape[1:]], align_corners=False)
    moved = F.grid_sample(gray_NHW[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
    contrast = 1 + uniform(0.15)
    return (moved * contrast[:, None, None]).clamp(0, 1)
