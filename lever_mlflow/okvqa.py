"""OK-VQA: the official question and annotation files of one split, and its COCO images, to samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lever_mlflow.exceptions import DataError
from lever_mlflow.json_files import read_object
from lever_mlflow.types import Sample

__all__ = ["ANSWERS_PER_QUESTION", "load_split"]

ANSWERS_PER_QUESTION = 10


def load_split(root: str | Path, split: Literal["train", "val"]) -> list[Sample]:
    """Samples of one split in the order of its questions file.

    ``root`` holds ``OpenEnded_mscoco_{split}2014_questions.json``, ``mscoco_{split}2014_annotations.json`` and the
    images ``{split}2014/COCO_{split}2014_{image_id:012d}.jpg``.

    Raises:
        DataError: a file or image is missing or damaged, a question has no annotation or an annotation no question,
            an id occurs twice, or a question has other than 10 answers; the message names file and item.
    """
    root, subset = Path(root), f"{split}2014"
    if not root.is_dir():
        raise DataError(f"{root}: no such data set folder; give dataset=mini or the folder of the OK-VQA files")
    questions_file = root / f"OpenEnded_mscoco_{subset}_questions.json"
    annotations_file = root / f"mscoco_{subset}_annotations.json"
    questions = _items(questions_file, "questions", {"question_id": int, "image_id": int, "question": str})
    annotations = _items(annotations_file, "annotations", {"question_id": int, "image_id": int, "answers": list})
    by_question = {item["question_id"]: item for item in annotations}
    _check_pairing(questions_file, annotations_file, questions, by_question)
    return [
        Sample(
            index=index,
            question_id=item["question_id"],
            image_id=item["image_id"],
            question=item["question"],
            image_path=_image(root / subset / f"COCO_{subset}_{item['image_id']:012d}.jpg", item["question_id"]),
            answers=_answers(annotations_file, by_question[item["question_id"]]),
        )
        for index, item in enumerate(questions)
    ]


def _items(path: Path, key: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    missing = f"download the official OK-VQA files into {path.parent}"
    content = read_object(path, missing=missing, damaged="download it again")
    items = content.get(key)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: no list {key!r} with entries in it; is it the official file?")
    seen: set[int] = set()
    for position, item in enumerate(items):
        for name, kind in fields.items():
            value = item.get(name) if isinstance(item, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DataError(f"{path}: {key}[{position}]: {name} is {value!r}, expected {kind.__name__}")
            if isinstance(value, int) and not 0 <= value < 2**63:
                raise DataError(f"{path}: {key}[{position}]: {name} is {value}, expected an id of 0 to 2^63")
        if item["question_id"] in seen:
            raise DataError(f"{path}: {key}[{position}]: question_id {item['question_id']} occurs twice; remove one")
        seen.add(item["question_id"])
    return items


def _check_pairing(
    questions_file: Path, annotations_file: Path, questions: Iterable[Mapping[str, Any]], by_question: Mapping[int, Any]
) -> None:
    images = {item["question_id"]: item["image_id"] for item in questions}
    for question_id, image_id in images.items():
        if question_id not in by_question:
            raise DataError(f"{annotations_file}: no annotation for question_id {question_id} of {questions_file.name}")
        if by_question[question_id]["image_id"] != image_id:
            raise DataError(
                f"{annotations_file}: question_id {question_id}: image_id {by_question[question_id]['image_id']}, "
                f"but {image_id} in {questions_file.name}; the files are of different releases"
            )
    orphans = sorted(by_question.keys() - images.keys())
    if orphans:
        raise DataError(
            f"{annotations_file}: annotation without question: question_id {orphans[0]} ({len(orphans)} in all) is not "
            f"in {questions_file.name}; use the two files of one release"
        )


def _answers(path: Path, annotation: Mapping[str, Any]) -> tuple[str, ...]:
    place = f"{path}: question_id {annotation['question_id']}"
    answers = []
    for position, item in enumerate(annotation["answers"]):
        answer = item.get("answer") if isinstance(item, dict) else None
        if not isinstance(answer, str):
            raise DataError(f"{place}: answers[{position}]: answer is {answer!r}, expected text")
        answers.append(answer)
    if len(answers) != ANSWERS_PER_QUESTION:
        raise DataError(f"{place}: {len(answers)} answers, expected {ANSWERS_PER_QUESTION}; repair or remove the question")
    return tuple(answers)


def _image(path: Path, question_id: int) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: image of question_id {question_id} is missing; copy the COCO images to {path.parent}")
    return path
