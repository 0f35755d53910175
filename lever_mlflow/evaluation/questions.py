"""Decides which evaluation questions are reported, in which order, and which of them choose the epoch.

Sizes are nested prefixes of one seeded order of the evaluation questions. The questions that choose an epoch come from the
end of that order; neither they nor their images are among those reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lever_mlflow.data.candidate_pools import check_pool_size
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.random_streams import SeedStream
from lever_mlflow.settings import EvalSettings

__all__ = ["Questions", "split_questions"]


class Questions(NamedTuple):
    """Holds questions: ``report`` in the seeded order whose prefixes are the sizes, ``selection`` on other images."""

    report: list[Sample]
    selection: list[Sample]


def split_questions(val: Sequence[Sample], settings: EvalSettings, seed: int) -> Questions:
    """Splits the evaluation questions into those that are reported and those that choose the epoch.

    Raises:
        ParameterError: the split has fewer questions than the largest size and the selection need together, or the
            pool is not larger than the shots.
    """
    check_pool_size(settings.pool_size, max(settings.shots))
    order = [val[i] for i in np.random.default_rng([seed, SeedStream.QUESTIONS]).permutation(len(val))]
    by_image: dict[int, list[Sample]] = {}
    for sample in order:
        by_image.setdefault(sample.picture, []).append(sample)
    selection_images: set[int] = set()
    selection: list[Sample] = []
    for sample in reversed(order):
        if len(selection) < settings.n_selection and sample.picture not in selection_images:
            selection_images.add(sample.picture)
            selection += by_image[sample.picture]
    report = [sample for sample in order if sample.picture not in selection_images]
    largest = max(settings.sizes)
    if len(selection) < settings.n_selection or len(report) < largest:
        raise ParameterError(
            f"sizes up to {largest} plus n_selection={settings.n_selection}: the split has {len(val)} questions, of which "
            f"{len(report)} are left beside the images of the selection; choose smaller sizes or a smaller n_selection"
        )
    return Questions(report[:largest], selection[: settings.n_selection])
