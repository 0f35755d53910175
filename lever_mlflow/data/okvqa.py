"""OK-VQA: the official question and annotation files of one split, and its COCO images, to samples.

Items that cannot be used are found all at once, each counted under the first kind of problem that it has.
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
_NAMED = 3  # items of each kind that a message names


class BadItem(NamedTuple):
    """An entry that cannot be used: the kind of problem, its question id (or place in the file), and what is wrong there."""

    kind: str
    place: int | str
    detail: str


class Split(NamedTuple):
    """The usable items of a split, what is wrong with the others, and how many of its questions those are."""

    samples: list[Sample]
    bad: list[BadItem]
    left_out: int


class SplitFiles(NamedTuple):
    """Where a split's official files are: questions, annotations, and the folder of the images."""

    questions: Path
    annotations: Path
    images: Path

    def image(self, image_id: int) -> Path:
        """The file of an image."""
        return self.images / f"COCO_{self.images.name}_{image_id:012d}.jpg"


def split_files(root: Path, split: SplitName) -> SplitFiles:
    """The official names of a split's files in ``root``."""
    subset = f"{split}2014"
    return SplitFiles(
        root / f"OpenEnded_mscoco_{subset}_questions.json", root / f"mscoco_{subset}_annotations.json", root / subset
    )


def load_split(root: str | Path, split: SplitName) -> list[Sample]:
    """Samples of one split in the order of its questions file, all of them usable.

    Raises:
        DataError: as ``read_split``; or items cannot be used: the message counts each kind and names the first ones.
    """
    found = read_split(root, split)
    if found.bad:
        raise DataError(f"{root}: {split} items that cannot be used: {describe(found.bad)}")
    return found.samples


def read_split(root: str | Path, split: SplitName, *, memo_dir: Path | None = None, max_aspect: float = math.inf) -> Split:
    """Reads one split: samples in the order of its questions file, numbered without gaps, and what cannot be used.

    ``root`` holds ``OpenEnded_mscoco_{split}2014_questions.json``, ``mscoco_{split}2014_annotations.json`` and the images
    ``{split}2014/COCO_{split}2014_{image_id:012d}.jpg``.

    Bad items are entries of the wrong form, question ids that occur twice (all their entries), questions without annotation
    or the reverse, image ids that differ, other than 10 answers, images that are missing or do not decode, and images whose
    longer side is ``max_aspect`` times the shorter or more.

    Args:
        memo_dir: where images that decoded are remembered, so that the next reading is quick.

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
    """How many items of each kind, such as ``2 with a missing image, 1 without annotation``."""
    return ", ".join(f"{len(items)} {kind}" for kind, items in _by_kind(bad).items())


def describe(bad: Sequence[BadItem]) -> str:
    """How many items of each kind, which are the first ones, what is wrong with the first, and the remedy."""
    return "; ".join(
        f"{len(items)} {kind} ({_places(items)}: {items[0].detail}; {_REMEDIES[kind]})" for kind, items in _by_kind(bad).items()
    )


def _by_kind(bad: Sequence[BadItem]) -> dict[str, list[BadItem]]:
    grouped = {kind: [item for item in bad if item.kind == kind] for kind in _REMEDIES}
    return {kind: items for kind, items in grouped.items() if items}


def _places(items: Sequence[BadItem]) -> str:
    named = [item.place if isinstance(item.place, str) else f"question_id {item.place}" for item in items[:_NAMED]]
    return ", ".join(named) + (", ..." if len(items) > _NAMED else "")


def _entries(
    path: Path, key: str, fields: Mapping[str, type], bad: list[BadItem]
) -> tuple[int, dict[int, dict[str, Any] | None]]:
    """How many entries a file has, and each by its question id; None where it is bad, which is then in ``bad``."""
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
    """What is wrong with an entry's fields, or nothing."""
    if not isinstance(item, dict):
        return f"{reprlib.repr(item)} is no object"
    problems = (_wrong_value(name, item.get(name), kind) for name, kind in fields.items())
    return next(filter(None, problems), "") or _wrong_answers(item["answers"] if "answers" in fields else ())


def _wrong_value(name: str, value: Any, kind: type) -> str:
    if not isinstance(value, kind) or isinstance(value, bool):
        return f"{name} is {reprlib.repr(value)}, expected {kind.__name__}"
    if isinstance(value, int) and not 0 <= value < 2**63:
        return f"{name} is {value}, expected an id of 0 to 2^63"
    return ""


def _wrong_answers(answers: Sequence[Any]) -> str:
    texts = [item.get("answer") if isinstance(item, dict) else None for item in answers]
    wrong = [(i, text) for i, text in enumerate(texts) if not isinstance(text, str)]
    return f"answers[{wrong[0][0]}]: answer is {reprlib.repr(wrong[0][1])}, expected text" if wrong else ""


def _pairs(
    files: SplitFiles,
    questions: Mapping[int, dict[str, Any] | None],
    annotations: Mapping[int, dict[str, Any] | None],
    bad: list[BadItem],
) -> list[tuple[dict[str, Any], tuple[str, ...]]]:
    """Each good question with the answers of its good annotation; the others, unless they are in ``bad``, are put there."""
    pairs = []
    for question_id, question in questions.items():
        if question_id not in annotations:
            bad.append(BadItem(_NO_ANNOTATION, question_id, f"not in {files.annotations}"))
        elif question is not None and (annotation := annotations[question_id]) is not None:
            image_id, other = question["image_id"], annotation["image_id"]
            answers = tuple(item["answer"] for item in annotation["answers"])
            if image_id != other:
                detail = f"image_id {other} in {files.annotations}, but {image_id} in {files.questions.name}"
                bad.append(BadItem(_OTHER_IMAGE, question_id, detail))
            elif len(answers) != ANSWERS_PER_QUESTION:
                bad.append(BadItem(_ANSWERS, question_id, f"{len(answers)} answers in {files.annotations}"))
            else:
                pairs.append((question, answers))
    return pairs


def _bad_images(paths: Sequence[Path], memo_dir: Path | None, max_aspect: float) -> dict[Path, tuple[str, str]]:
    """Kind of problem and what is wrong, of each image that cannot be used."""
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
