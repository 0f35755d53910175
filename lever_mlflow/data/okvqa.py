"""Reads samples of a split of OK-VQA from the official question and annotation files and the COCO images.

All items that cannot be used are found at once. Each is counted under the first kind of problem that it has.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.images import image_sizes
from lever_mlflow.files.strict_json import read_object

__all__ = [
    "ANSWERS_PER_QUESTION",
    "BadItem",
    "Split",
    "SplitFiles",
    "SplitName",
    "describe",
    "load_split",
    "read_split",
    "split_files",
    "tally",
]

ANSWERS_PER_QUESTION = 10
SplitName = Literal["train", "val"]

_FORM, _TWICE = "of the wrong form", "with a question_id that occurs twice"
_NO_ANNOTATION, _NO_QUESTION = "without annotation", "annotations without question"
_OTHER_IMAGE, _ANSWERS = "with another image_id in the annotations", f"without {ANSWERS_PER_QUESTION} answers"
_MISSING, _DAMAGED = "with a missing image", "with an image that does not decode"
_NARROW = "with an image too narrow for the VLM"
_REMEDIES = {
    _FORM: "download the file again",
    _TWICE: "remove one",
    _NO_ANNOTATION: "use the two files of one release",
    _NO_QUESTION: "use the two files of one release",
    _OTHER_IMAGE: "use the two files of one release",
    _ANSWERS: "repair or remove the questions",
    _MISSING: "copy the images there",
    _DAMAGED: "copy the images again",
    _NARROW: "crop or replace the images",
}
_NAMED = 3  # most items of each kind that a message names


class BadItem(NamedTuple):
    """Describes an entry that cannot be used.

    Attributes:
        kind: kind of problem, in words that follow a number, such as ``without annotation``.
        place: question id of the entry, or its place in the file where it has none.
        detail: what is wrong with the entry.
    """

    kind: str
    place: int | str
    detail: str


class Split(NamedTuple):
    """Holds the usable items of a split and the problems of the others.

    Attributes:
        samples: the usable items.
        bad: what is wrong with the others.
        left_out: how many questions of the file are not among the samples.
    """

    samples: list[Sample]
    bad: list[BadItem]
    left_out: int


class SplitFiles(NamedTuple):
    """Holds the paths of a split's official files: questions, annotations, and the folder of the images."""

    questions: Path
    annotations: Path
    images: Path

    def image(self, image_id: int) -> Path:
        """Returns the path of an image."""
        return self.images / f"COCO_{self.images.name}_{image_id:012d}.jpg"


def split_files(root: Path, split: SplitName) -> SplitFiles:
    """Returns the paths of a split's files in ``root``, by their official names."""
    subset = f"{split}2014"
    return SplitFiles(
        root / f"OpenEnded_mscoco_{subset}_questions.json", root / f"mscoco_{subset}_annotations.json", root / subset
    )


def load_split(root: str | Path, split: SplitName) -> list[Sample]:
    """Reads the samples of one split in the order of its questions file, all of which must be usable.

    Raises:
        DataError: as ``read_split``; or items cannot be used, which the message counts by kind, naming the first ones.
    """
    content = read_split(root, split)
    if content.bad:
        raise DataError(f"{root}: {split} items that cannot be used: {describe(content.bad)}")
    return content.samples


def read_split(root: str | Path, split: SplitName, *, memo_dir: Path | None = None, max_aspect: float = math.inf) -> Split:
    """Reads one split: its samples in the order of the questions file, numbered without gaps, and the bad items.

    Bad items are entries of the wrong form, question ids that occur twice (all their entries), questions without annotation
    or the reverse, image ids that differ, other than 10 answers, images that are missing or do not decode, and images that are
    too narrow.

    Args:
        root: folder of ``OpenEnded_mscoco_{split}2014_questions.json``, ``mscoco_{split}2014_annotations.json`` and the images
            ``{split}2014/COCO_{split}2014_{image_id:012d}.jpg``.
        split: the split.
        memo_dir: folder in which images that decode are remembered, so that the next reading is quick.
        max_aspect: an image whose longer side is this many times the shorter, or more, is too narrow.

    Raises:
        DataError: the folder or a file is missing, or a file is damaged as a whole.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such data set folder; give dataset=mini or the folder of the OK-VQA files")
    files = split_files(root, split)
    bad: list[BadItem] = []
    n_questions, questions = _entries(files.questions, "questions", {"question_id": int, "image_id": int, "question": str}, bad)
    _, annotations = _entries(files.annotations, "annotations", {"question_id": int, "image_id": int, "answers": list}, bad)
    bad += [
        BadItem(_NO_QUESTION, question_id, f"not in {files.questions}")
        for question_id in annotations
        if question_id not in questions
    ]
    pairs = _pairs(files, questions, annotations, bad)
    bad_images = _bad_images([files.image(question["image_id"]) for question, _ in pairs], memo_dir, max_aspect)
    samples: list[Sample] = []
    for question, answers in pairs:
        path = files.image(question["image_id"])
        if path in bad_images:
            bad.append(BadItem(bad_images[path][0], question["question_id"], bad_images[path][1]))
            continue
        samples.append(Sample(len(samples), question["question_id"], question["image_id"], question["question"], path, answers))
    return Split(samples, bad, n_questions - len(samples))


def tally(bad: Sequence[BadItem]) -> str:
    """Returns how many items there are of each kind, such as ``2 with a missing image, 1 without annotation``."""
    return ", ".join(f"{len(items)} {kind}" for kind, items in _by_kind(bad).items())


def describe(bad: Sequence[BadItem]) -> str:
    """Returns for each kind how many items there are, which are the first, what is wrong with the first, and the remedy."""
    return "; ".join(
        f"{len(items)} {kind} ({_places(items)}: {items[0].detail}; {_REMEDIES[kind]})" for kind, items in _by_kind(bad).items()
    )


def _by_kind(bad: Sequence[BadItem]) -> dict[str, list[BadItem]]:
    """Returns the items by kind, without the kinds that have none."""
    grouped = {kind: [item for item in bad if item.kind == kind] for kind in _REMEDIES}
    return {kind: items for kind, items in grouped.items() if items}


def _places(items: Sequence[BadItem]) -> str:
    """Returns the places of the first items."""
    names = [item.place if isinstance(item.place, str) else f"question_id {item.place}" for item in items[:_NAMED]]
    return ", ".join(names) + (", ..." if len(items) > _NAMED else "")


def _entries(
    path: Path, key: str, fields: Mapping[str, type], bad: list[BadItem]
) -> tuple[int, dict[int, dict[str, Any] | None]]:
    """Reads the entries of a file, and appends what is wrong with them to ``bad``.

    Args:
        path: the file.
        key: name of the list of entries in it.
        fields: the types of the fields that an entry must have.
        bad: is appended to.

    Returns:
        How many entries the file has; and each entry by its question id, None where it is bad.
    """
    missing = f"download the official OK-VQA files into {path.parent}"
    items = read_object(path, missing=missing, damaged="download it again").get(key)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: no list {key!r} with entries in it; is it the official file?")
    entries: dict[int, dict[str, Any] | None] = {}
    twice: dict[int, None] = {}
    for position, item in enumerate(items):
        problem = _wrong_form(item, fields)
        question_id = item.get("question_id") if isinstance(item, dict) else None
        if not isinstance(question_id, int) or _wrong_value("", question_id, int):
            bad.append(BadItem(_FORM, f"{key}[{position}]", f"{path}: {problem}"))
        elif question_id in entries:
            twice[question_id] = entries[question_id] = None
        else:
            entries[question_id] = None if problem else item
            if problem:
                bad.append(BadItem(_FORM, question_id, f"{path}: {problem}"))
    bad += [BadItem(_TWICE, question_id, f"in {path}") for question_id in twice]
    return len(items), entries


def _wrong_form(item: Any, fields: Mapping[str, type]) -> str:
    """Returns what is wrong with an entry's fields; an empty text where nothing is."""
    if not isinstance(item, dict):
        return f"{reprlib.repr(item)} is no object"
    problems = (_wrong_value(name, item.get(name), kind) for name, kind in fields.items())
    return next(filter(None, problems), "") or _wrong_answers(item["answers"] if "answers" in fields else ())


def _wrong_value(name: str, value: Any, kind: type) -> str:
    """Returns what is wrong with the value of a field; an empty text where nothing is."""
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"{name} is {reprlib.repr(value)}, expected {kind.__name__}"
    if isinstance(value, int) and not 0 <= value < 2**63:
        return f"{name} is {value}, expected an id of 0 to 2^63"
    return ""


def _wrong_answers(answers: Sequence[Any]) -> str:
    """Returns what is wrong with the first bad one of the annotators' answers; an empty text where nothing is."""
    texts = [item.get("answer") if isinstance(item, dict) else None for item in answers]
    wrong = [(i, text) for i, text in enumerate(texts) if not isinstance(text, str)]
    return f"answers[{wrong[0][0]}]: answer is {reprlib.repr(wrong[0][1])}, expected text" if wrong else ""


def _pairs(
    files: SplitFiles,
    questions: Mapping[int, dict[str, Any] | None],
    annotations: Mapping[int, dict[str, Any] | None],
    bad: list[BadItem],
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Returns each good question with the answers of its annotation; appends the others to ``bad``, unless they are there."""
    pairs = []
    for question_id, question in questions.items():
        if question_id not in annotations:
            bad.append(BadItem(_NO_ANNOTATION, question_id, f"not in {files.annotations}"))
        elif question is not None and (annotation := annotations[question_id]) is not None:
            image_id, annotated_id = question["image_id"], annotation["image_id"]
            answers = tuple(item["answer"] for item in annotation["answers"])
            if image_id != annotated_id:
                detail = f"image_id {annotated_id} in {files.annotations}, but {image_id} in {files.questions.name}"
                bad.append(BadItem(_OTHER_IMAGE, question_id, detail))
            elif len(answers) != ANSWERS_PER_QUESTION:
                bad.append(BadItem(_ANSWERS, question_id, f"{len(answers)} answers in {files.annotations}"))
            else:
                pairs.append((question, answers))
    return pairs


def _bad_images(paths: Sequence[Path], memo_dir: Path | None, max_aspect: float) -> dict[Path, tuple[str, str]]:
    """Returns kind of problem and detail of each image that cannot be used."""
    if not paths:
        return {}
    bad = {path: (_MISSING, str(path)) for path in paths if not path.is_file()}
    name = hashlib.sha256(str(paths[0].parent.resolve()).encode()).hexdigest()[:32]
    memo = memo_dir / f"{name}.json" if memo_dir else None
    for path, size in image_sizes([path for path in paths if path not in bad], memo).items():
        if isinstance(size, DataError):
            bad[path] = (_DAMAGED, str(size).removesuffix("; copy it again"))
        elif max(size) >= max_aspect * min(size):
            limit = f"the longer side must be below {max_aspect:g} times the shorter"
            bad[path] = (_NARROW, f"{path} is {size[0]} x {size[1]}, {limit}")
    return bad
