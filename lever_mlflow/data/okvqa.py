"""Reads samples of a split of OK-VQA or VQAv2 from the official question and annotation files and the COCO images.

All items that cannot be used are found at once. Each is counted under the first kind of problem that it has.
"""

from __future__ import annotations

import hashlib
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from lever_mlflow.data.bad_items import (
    ANSWERS,
    ANSWERS_PER_QUESTION,
    COLOURS,
    DAMAGED,
    FORM,
    MISSING,
    NARROW,
    NO_ANNOTATION,
    NO_QUESTION,
    OTHER_IMAGE,
    TEXT,
    TWICE,
    BadItem,
    describe,
    tally,
)
from lever_mlflow.data.item_rules import answers_problem, text_problem
from lever_mlflow.data.origin import read_origin
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.colours import ColourError
from lever_mlflow.files.images import image_sizes
from lever_mlflow.files.strict_json import iterate_list
from lever_mlflow.files.text import looked_for
from lever_mlflow.settings import Scoring

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

_VQAV2 = "v2_"  # what the names of the files of VQAv2 begin with
SplitName = Literal["train", "val"]

E = TypeVar("E")  # what is kept of an entry of a file
_Share = Callable[[Any, Any], Any]  # returns the first value that is equal to both of its equal arguments


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


def split_files(root: Path, split: SplitName, prefix: str = "") -> SplitFiles:
    """Returns the paths of a split's files in ``root``, by their official names, which begin with ``v2_`` in VQAv2."""
    subset = f"{split}2014"
    return SplitFiles(
        questions=root / f"{prefix}OpenEnded_mscoco_{subset}_questions.json",
        annotations=root / f"{prefix}mscoco_{subset}_annotations.json",
        images=root / subset,
    )


def _files_there(root: Path, split: SplitName) -> SplitFiles:
    """Returns the paths of a split's files by the names that they have in ``root``; by those of OK-VQA where there are none.

    Raises:
        DataError: there are files of both data sets.
    """
    plain, second = (split_files(root, split, prefix) for prefix in ("", _VQAV2))
    there = [files for files in (plain, second) if files.questions.exists() or files.annotations.exists()]
    if len(there) == 2:
        raise DataError(
            f"{root}: holds files of OK-VQA and of VQAv2 ({plain.questions.name}, {second.questions.name}); give each data set "
            "a folder of its own, with links to the images"
        )
    return there[0] if there else plain


def load_split(root: str | Path, split: SplitName) -> list[Sample]:
    """Reads the samples of one split in the order of its questions file, all of which must be usable.

    Raises:
        DataError: as ``read_split``; or items cannot be used, which the message counts by kind, naming the first ones.
    """
    content = read_split(root, split)
    if content.bad:
        raise DataError(f"{root}: {split} items that cannot be used: {describe(content.bad)}")
    return content.samples


def read_split(
    root: str | Path,
    split: SplitName,
    *,
    memo_dir: Path | None = None,
    max_aspect: float = math.inf,
    scoring: Scoring = "raw",
) -> Split:
    """Reads one split: its samples in the order of the questions file, numbered without gaps, and the bad items.

    Bad items are entries of the wrong form, question ids that occur twice (all their entries), questions without annotation
    or the reverse, image ids that differ, other than 10 answers, texts against the rules of an item, images that are missing,
    do not decode or hold no colours, and images that are too narrow.

    The answers are those under ``raw_answer``, as the annotators wrote them, or under ``answer`` where an answer has no other.

    Args:
        root: folder of ``OpenEnded_mscoco_{split}2014_questions.json``, ``mscoco_{split}2014_annotations.json`` (in VQAv2 with
            ``v2_`` before them) and the images ``{split}2014/COCO_{split}2014_{image_id:012d}.jpg``.
        split: the split.
        memo_dir: folder in which images that decode are remembered, so that the next reading is quick.
        max_aspect: an image whose longer side is this many times the shorter, or more, is too narrow.
        scoring: how answers to the questions are scored.

    Raises:
        DataError: the folder or a file is missing, or a file is damaged as a whole.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(
            f"{root}: no such data set folder{looked_for(root)}; give dataset=mini or the folder of the official files"
        )
    files = _files_there(root, split)
    bad: list[BadItem] = []
    n_questions, questions = _entries(files.questions, "questions", _QUESTION, bad)
    _, annotations = _entries(files.annotations, "annotations", _ANNOTATION, bad)
    bad += [
        BadItem(NO_QUESTION, question_id, f"not in {files.questions}")
        for question_id in annotations
        if question_id not in questions
    ]
    pairs = _pairs(files, questions, annotations, bad)
    paths = {question.image_id: files.image(question.image_id) for _, question, _ in pairs}
    bad_images = _bad_images(list(paths.values()), memo_dir, max_aspect)
    samples: list[Sample] = []
    for question_id, (image_id, text), answers in pairs:
        path = paths[image_id]
        if path in bad_images:
            bad.append(BadItem(bad_images[path][0], question_id, bad_images[path][1]))
        else:
            of_item = (answers.written, answers.stemmed, scoring)
            samples.append(Sample(len(samples), question_id, image_id, text, path, *of_item))
    origin = read_origin(root, split)
    if origin:
        bad = origin.reworded(bad, files[:2], files.images)
    return Split(samples, bad, n_questions - len(samples))


class _Question(NamedTuple):
    """Holds what is kept of an entry of the questions file."""

    image_id: int
    text: str


class _Annotation(NamedTuple):
    """Holds what is kept of an entry of the annotations file; ``stemmed`` is empty where it would equal ``written``."""

    image_id: int
    written: tuple[str, ...]
    stemmed: tuple[str, ...]


def _question(item: Mapping[str, Any], share: _Share) -> _Question:
    return _Question(item["image_id"], share(item["question"], item["question"]))


def _question_problem(question: _Question) -> str:
    problem = text_problem(question.text)
    return problem and f"question {problem}"


def _annotation(item: Mapping[str, Any], share: _Share) -> _Annotation:
    texts = [answer["answer"] for answer in item["answers"]]
    stemmed = tuple(map(share, texts, texts))
    texts = [answer.get("raw_answer", text) for answer, text in zip(item["answers"], stemmed, strict=True)]
    written = tuple(map(share, texts, texts))
    return _Annotation(item["image_id"], share(written, written), () if stemmed == written else share(stemmed, stemmed))


class _Form(NamedTuple, Generic[E]):
    """Describes the entries of a file: the types of the fields that an entry must have, and what is kept of one.

    ``problem`` says which rule of an item is broken by what is kept.
    """

    fields: Mapping[str, type]
    keep: Callable[[Mapping[str, Any], _Share], E]
    problem: Callable[[E], str]


_QUESTION = _Form({"question_id": int, "image_id": int, "question": str}, _question, _question_problem)
_ANNOTATION = _Form(
    {"question_id": int, "image_id": int, "answers": list}, _annotation, lambda kept: answers_problem(kept.written)
)


def _entries(path: Path, key: str, form: _Form[E], bad: list[BadItem]) -> tuple[int, dict[int, E | None]]:
    """Reads the entries of a file one by one, and appends what is wrong with them to ``bad``.

    Texts that occur often are in memory once.

    Args:
        path: the file.
        key: name of the list of entries in it.
        form: of an entry.
        bad: is appended to.

    Returns:
        How many entries the file has; and what is kept of each entry by its question id, None where it is bad.
    """
    missing = f"download the official files into {path.parent}"
    entries: dict[int, E | None] = {}
    twice: dict[int, None] = {}
    seen: dict[Any, Any] = {}
    position = -1
    for position, item in enumerate(iterate_list(path, key, missing=missing, damaged="download it again")):
        problem = _wrong_form(item, form.fields)
        question_id = item.get("question_id") if isinstance(item, dict) else None
        if not isinstance(question_id, int) or _wrong_value("", question_id, int):
            bad.append(BadItem(FORM, f"{key}[{position}]", f"{path}: {problem}"))
        elif question_id in entries:
            twice[question_id] = entries[question_id] = None
        else:
            kept = None if problem else form.keep(item, seen.setdefault)
            against_rules = "" if kept is None else form.problem(kept)
            entries[question_id] = None if against_rules else kept
            if problem or against_rules:
                bad.append(BadItem(FORM if problem else TEXT, question_id, f"{path}: {problem or against_rules}"))
    if position < 0:
        raise DataError(f"{path}: no list {key!r} with entries in it; is it the official file?")
    bad += [BadItem(TWICE, question_id, f"in {path}") for question_id in twice]
    return position + 1, entries


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
    for position, item in enumerate(answers):
        answer = item.get("answer") if isinstance(item, dict) else None
        written = item.get("raw_answer", answer) if isinstance(item, dict) else None
        if not (isinstance(answer, str) and isinstance(written, str)):
            name, text = ("raw_answer", written) if isinstance(answer, str) else ("answer", answer)
            return f"answers[{position}]: {name} is {reprlib.repr(text)}, expected text"
    return ""


def _pairs(
    files: SplitFiles,
    questions: Mapping[int, _Question | None],
    annotations: Mapping[int, _Annotation | None],
    bad: list[BadItem],
) -> list[tuple[int, _Question, _Annotation]]:
    """Returns each good question with its id and its annotation; appends the others to ``bad``, unless they are there."""
    pairs = []
    for question_id, question in questions.items():
        if question_id not in annotations:
            bad.append(BadItem(NO_ANNOTATION, question_id, f"not in {files.annotations}"))
        elif question is not None and (annotation := annotations[question_id]) is not None:
            n_answers = len(annotation.written)
            if question.image_id != annotation.image_id:
                other = f"image_id {annotation.image_id} in {files.annotations}"
                bad.append(BadItem(OTHER_IMAGE, question_id, f"{other}, but {question.image_id} in {files.questions.name}"))
            elif n_answers != ANSWERS_PER_QUESTION:
                bad.append(BadItem(ANSWERS, question_id, f"{n_answers} answers in {files.annotations}"))
            else:
                pairs.append((question_id, question, annotation))
    return pairs


def _bad_images(paths: Sequence[Path], memo_dir: Path | None, max_aspect: float) -> dict[Path, tuple[str, str]]:
    """Returns kind of problem and detail of each image that cannot be used."""
    if not paths:
        return {}
    bad = {path: (MISSING, str(path)) for path in paths if not path.is_file()}
    name = hashlib.sha256(str(paths[0].parent.resolve()).encode()).hexdigest()[:32]
    memo = memo_dir / f"{name}.json" if memo_dir else None
    for path, size in image_sizes([path for path in paths if path not in bad], memo).items():
        if isinstance(size, ColourError):
            bad[path] = (COLOURS, str(size))
        elif isinstance(size, DataError):
            bad[path] = (DAMAGED, str(size).removesuffix("; copy it again"))
        elif max(size) >= max_aspect * min(size):
            limit = f"the longer side must be below {max_aspect:g} times the shorter"
            bad[path] = (NARROW, f"{path} is {size[0]} x {size[1]}, {limit}")
    return bad
