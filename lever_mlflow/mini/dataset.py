"""Writes the embedded data set in the official OK-VQA file formats, from scikit-learn's handwritten digits.

The images are the 1,797 8x8 digits of ``sklearn.datasets.load_digits``, which are the test part of the UCI "Optical
Recognition of Handwritten Digits" data set (E. Alpaydin and C. Kaynak, 1998, CC BY 4.0).

They are split into three disjoint sets, stratified by digit. The set ``model`` trains the tiny VLM and CLIP and is in no file
of the data set. The set ``train`` has the RL queries and their candidates, and ``val`` is for evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lever_mlflow.files.atomic import build_folder
from lever_mlflow.mini.families import Family, dataset_families

__all__ = ["DATASET_VERSION", "IMAGE_SIZE", "digit_images", "ensure_dataset"]

DATASET_VERSION = "1"
IMAGE_SIZE = 56
_SEED = 20140101
_IMAGES_PER_DIGIT = {"train": 34, "val": 30}
_QUESTIONS_PER_IMAGE = 5
_FIRST_IMAGE_ID = {"train": 1, "val": 100_001}
Split = Literal["model", "train", "val"]


@cache
def digit_images(split: Split) -> tuple[list[Image.Image], np.ndarray]:
    """Returns the digits of one image set as 56x56 RGB images (bicubic upscaling), and their labels, shape [images]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = _split_rows(digits.target)[split]
    pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    images = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC).convert("RGB") for p in pixels]
    return images, digits.target[rows]


def ensure_dataset(cache_dir: Path) -> Path:
    """Returns the folder of the data set in ``cache_dir``, which is written on first use, as a whole or not at all."""

    def build(folder: Path) -> None:
        for split in ("train", "val"):
            _write_split(folder, split)

    return build_folder(cache_dir / f"mini-okvqa-{DATASET_VERSION}", build)


def _split_rows(labels_I: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of each image set: equally many train and val images of each digit, and the rest for the models."""
    rng = np.random.default_rng(_SEED)
    rows: dict[str, list[int]] = {"model": [], "train": [], "val": []}
    for digit in range(10):
        shuffled = rng.permutation(np.flatnonzero(labels_I == digit)).tolist()
        for split, count in _IMAGES_PER_DIGIT.items():
            rows[split] += shuffled[:count]
            shuffled = shuffled[count:]
        rows["model"] += shuffled
    return {split: np.array(sorted(values)) for split, values in rows.items()}


def _write_split(root: Path, split: Literal["train", "val"]) -> None:
    images, labels = digit_images(split)
    rng = np.random.default_rng([_SEED, _FIRST_IMAGE_ID[split]])
    subset = f"{split}2014"
    folder = root / subset
    folder.mkdir()
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for offset, (image, digit) in enumerate(zip(images, labels.tolist(), strict=True)):
        image_id = _FIRST_IMAGE_ID[split] + offset
        image.save(folder / f"COCO_{subset}_{image_id:012d}.jpg", quality=95)
        for number, (family, question) in enumerate(_draw_questions(rng, digit)):
            question_id = image_id * 10 + number
            questions.append({"image_id": image_id, "question": question, "question_id": question_id})
            annotations.append(
                {
                    "image_id": image_id,
                    "question_id": question_id,
                    "question_type": family.name,
                    "answer_type": "other",
                    "confidence": 5,
                    "answers": [
                        {"answer_id": i, "raw_answer": a, "answer": a, "answer_confidence": "yes"}
                        for i, a in enumerate(_annotators(rng, family, digit), start=1)
                    ],
                }
            )
    common = {
        "info": {"description": "Embedded OK-VQA-format data set of handwritten digits", "version": DATASET_VERSION},
        "license": {"name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"},
        "data_subtype": subset,
    }
    question_file = {**common, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions}
    types = {family.name: family.name.replace("_", " ") for family in dataset_families()}
    annotation_file = {**common, "data_type": "mscoco", "question_types": types, "annotations": annotations}
    for name, content in (
        (f"OpenEnded_mscoco_{subset}_questions.json", question_file),
        (f"mscoco_{subset}_annotations.json", annotation_file),
    ):
        (root / name).write_text(json.dumps(content), encoding="utf-8")


def _draw_questions(rng: np.random.Generator, digit: int) -> Iterator[tuple[Family, str]]:
    """Draws up to five questions of different families about one image."""
    families = [family for family in dataset_families() if digit in family.answers]
    weights = np.array([family.weight for family in families])
    count = min(_QUESTIONS_PER_IMAGE, len(families))
    for i in rng.choice(len(families), size=count, replace=False, p=weights / weights.sum()):
        yield families[i], families[i].phrasings[rng.integers(3)]


def _annotators(rng: np.random.Generator, family: Family, digit: int) -> list[str]:
    """Draws the answers of ten annotators, some of them wrong.

    The error rate of a question is drawn from Beta(0.6, 10), so that most questions are easy and annotators disagree on a few.
    A wrong answer is that for a digit next to the true one (misread or miscounted), or "unknown".
    """
    near = [family.answers[d] for d in (digit - 1, digit + 1) if d in family.answers]
    wrong = [*near, near[0], "unknown"]  # so that one neighbour is the most likely mistake
    rate = rng.beta(0.6, 10.0)
    return [family.answers[digit] if rng.random() >= rate else wrong[rng.integers(len(wrong))] for _ in range(10)]
