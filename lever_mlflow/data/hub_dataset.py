"""Hub data sets, read by the ``datasets`` library and kept as files in the official OK-VQA layout.

Images are kept byte for byte under the official ``.jpg`` names, whatever their format; readers go by the content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.okvqa import ANSWERS_PER_QUESTION, SplitFiles, SplitName, split_files
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.atomic import build_folder

__all__ = ["ensure_hub_dataset"]

_COLUMNS = ("question", "answers", "image", "question_id", "image_id")
_OPTIONAL = ("question_id", "image_id")
_NAMES: tuple[SplitName, ...] = ("train", "val")
_VERSION = "1"  # of what is written here


class _Row(NamedTuple):
    question: str | None
    answers: Any
    image: bytes | None


def ensure_hub_dataset(name: str, columns: Mapping[str, str], splits: Sequence[str], cache_dir: Path) -> Path:
    """Folder of a hub data set in the official layout, below ``cache_dir``; written on first use, complete or not at all.

    Answers are lists of 10 texts or of 10 objects with an ``answer``. A column of single texts stands for 10 annotators who
    agree, with whom VQA accuracy is 1 for that answer and 0 for others. Without a question id column, or when not all ids
    are whole numbers, questions are numbered over both splits; images likewise, equal ones alike, by id or content.

    Args:
        name: hub name, or folder of files that ``datasets.load_dataset`` reads.
        columns: ours -> the data set's name of a column, where they differ.
        splits: the data set's splits (or slices, such as ``train[:90%]``) for training and evaluation.

    Raises:
        ParameterError: ``columns`` names one that we have not, or ``datasets`` is not installed.
        DataError: no such data set, split or column, or a column of another type.
    """
    unknown = sorted(columns.keys() - set(_COLUMNS))
    if unknown:
        raise ParameterError(f"hf_columns: {unknown[0]} is not one of {', '.join(_COLUMNS)}")
    tables = {ours: _load(name, theirs) for ours, theirs in zip(_NAMES, splits, strict=True)}
    taken = _taken(name, tables, columns)
    content = json.dumps([_VERSION, [table._fingerprint for table in tables.values()], taken])
    root = cache_dir / "hub-datasets" / hashlib.sha256(content.encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        question_ids = _ids(tables, taken["question_id"]) if "question_id" in taken else _positions(tables)
        image_ids = _ids(tables, taken["image_id"]) if "image_id" in taken else None
        by_content: dict[bytes, int] = {}
        for split, table in tables.items():
            of_images = image_ids[split] if image_ids else itertools.repeat(None, len(table))
            rows = zip(_rows(table, taken), question_ids[split], of_images, strict=True)
            _write_split(split_files(folder, split), rows, by_content, f"hf:{name}: column {taken.get('image_id')}")

    return build_folder(root, build)


def _load(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ParameterError(
            f"dataset=hf:{name} needs the datasets library; install it with: pip install 'lever-mlflow[hf]'"
        ) from None
    try:
        return datasets.load_dataset(str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(f"hf:{name}, split {split}: cannot be read ({reason}); check the name and hf_splits") from None


def _taken(name: str, tables: Mapping[SplitName, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Ours -> the data set's name of each column that both splits have, with their types checked."""
    import datasets

    taken = {}
    for ours in _COLUMNS:
        theirs = columns.get(ours, ours)
        lacking = [table for table in tables.values() if theirs not in table.column_names]
        if not lacking:
            taken[ours] = theirs
        elif ours not in _OPTIONAL or ours in columns:
            there = ", ".join(lacking[0].column_names)
            raise DataError(f"hf:{name}: no column {theirs} (there are: {there}); name it with hf_columns={ours}=COLUMN")
    for table in tables.values():
        image, question = table.features[taken["image"]], table.features[taken["question"]]
        if not isinstance(image, datasets.Image):
            raise DataError(f"hf:{name}: column {taken['image']} is {image}, expected images; name another with hf_columns")
        if getattr(question, "dtype", None) not in ("string", "large_string"):
            raise DataError(f"hf:{name}: column {taken['question']} is {question}, expected text; name another with hf_columns")
    return taken


def _rows(table: Any, taken: Mapping[str, str]) -> Iterator[_Row]:
    """The rows of a split, images undecoded."""
    import datasets

    plain = table.select_columns([taken["question"], taken["answers"], taken["image"]])
    for row in plain.cast_column(taken["image"], datasets.Image(decode=False)):
        yield _Row(row[taken["question"]], row[taken["answers"]], _image_bytes(row[taken["image"]]))


def _image_bytes(image: Mapping[str, Any] | None) -> bytes | None:
    """The file's content, held in the table or beside it; None where there is none."""
    if image and image["bytes"]:
        return bytes(image["bytes"])
    try:
        return Path(image["path"]).read_bytes() if image else None
    except (OSError, TypeError):
        return None


def _ids(tables: Mapping[SplitName, Any], column: str) -> dict[SplitName, list[int]]:
    """The ids of each split's rows: whole numbers as they are, anything else numbered by first appearance in both splits."""
    values = {split: list(table[column]) for split, table in tables.items()}
    numbers: dict[Any, int] = {value: 0 for split in values.values() for value in split}
    whole = all(str(value).isdecimal() for value in numbers)
    numbers = {value: int(value) if whole else number for number, value in enumerate(numbers, start=1)}
    return {split: [numbers[value] for value in rows] for split, rows in values.items()}


def _positions(tables: Mapping[SplitName, Any]) -> dict[SplitName, list[int]]:
    """The rows of both splits numbered from 1."""
    numbers = itertools.count(1)
    return {split: list(itertools.islice(numbers, len(table))) for split, table in tables.items()}


def _write_split(
    files: SplitFiles, rows: Iterable[tuple[_Row, int, int | None]], by_content: dict[bytes, int], place: str
) -> None:
    """Writes one split's files; an image without id gets the one of its content in ``by_content``, or the next."""
    files.images.mkdir()
    written: dict[int, bytes] = {}
    questions, annotations = [], []
    for row, question_id, image_id in rows:
        key = hashlib.sha256(row.image or b"").digest()
        if image_id is None:
            image_id = by_content.setdefault(key, len(by_content) + 1)
        if row.image and written.setdefault(image_id, key) != key:
            raise DataError(f"{place}: {image_id} stands for different images; name another column with hf_columns")
        if row.image and not files.image(image_id).exists():
            files.image(image_id).write_bytes(row.image)
        questions.append({"image_id": image_id, "question": row.question, "question_id": question_id})
        annotations.append({"image_id": image_id, "question_id": question_id, "answers": _answers(row.answers)})
    files.questions.write_text(json.dumps({"questions": questions}), encoding="utf-8")
    files.annotations.write_text(json.dumps({"annotations": annotations}), encoding="utf-8")


def _answers(value: Any) -> list[dict[str, str | None]] | None:
    """Answers in the official form; what is no text becomes null, which the reader counts as a bad item."""
    if isinstance(value, str):
        value = [value] * ANSWERS_PER_QUESTION
    elif isinstance(value, Mapping):  # objects of a Sequence feature arrive as lists, one for each field
        value = value.get("answer")
    if not isinstance(value, list):
        return None
    texts = [item.get("answer") if isinstance(item, Mapping) else item for item in value]
    return [{"answer": text if isinstance(text, str) else None} for text in texts]
