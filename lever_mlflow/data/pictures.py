"""Finds items about the same picture by the content of the image files, whatever ids a data set gives them.

Image ids are not enough: a data set may number its images by row, so that one picture has several ids, or anew in each split,
so that one id stands for two pictures. Files with other bytes, such as re-encoded or resized copies, are other pictures here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lever_mlflow.data.samples import Sample
from lever_mlflow.files.images import image_digest

__all__ = ["with_pictures"]

_DIGITS = 15  # hexadecimal, so that a number of a digest fits into 60 bits


def with_pictures(splits: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
    """Returns the samples of all splits with their pictures numbered over all splits.

    A picture's number is the id of the first image that shows it, or where another picture has this number, one that is made of
    the content. So the number is the image id wherever ids and contents agree, as they do in OK-VQA.

    Raises:
        DataError: an image file cannot be read.
    """
    number: dict[str, int] = {}
    ids: set[int] = set()
    numbered: list[list[Sample]] = []
    for samples in splits:
        numbered.append([])
        for sample in samples:
            digest = image_digest(sample.image_path)
            if digest not in number:
                picture = sample.image_id if sample.image_id not in ids else int(digest[:_DIGITS], 16)
                number[digest] = picture
                ids.add(picture)
            picture = number[digest]
            numbered[-1].append(sample if picture == sample.image_id else replace(sample, picture_id=picture))
    return numbered
