"""Reads hub data sets with the ``datasets`` library, and stores them as files in the official OK-VQA layout.

Images are stored byte for byte under the official ``.jpg`` names, whatever their format; readers recognise it by the content.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.okvqa import ANSWERS_PER_QUESTION, SplitFiles, SplitName, split_files
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.atomic import build_folder

__all__ = ["ensure_hub_dataset"]

_OPTIONAL = ("question_id", "image_id")
_ANSWER_FIELDS = ("answer", "raw_answer")
_COLUMNS = ("question", "answers", "image", *_OPTIONAL)
_SPLITS: tuple[SplitName, ...] = ("train", "val")
_VERSION = "2"  # of the form of the files that are written here


class _Row(NamedTuple):
    """Holds a row of a split, the image as the content of its file."""

    question: str | None
    answers: Any
    image: bytes | None


def ensure_hub_dataset(name: str, columns: Mapping[str, str], splits: Sequence[str], cache_dir: Path) -> Path:
    """Returns the folder of a hub data set in the official layout, below ``cache_dir``; it is written on first use.

    Answers are lists of 10 texts, or of 10 objects with an ``answer`` and perhaps a ``raw_answer``. A column of single texts
    stands for 10 annotators who agree, with whom VQA accuracy is 1 for that answer and 0 for others. Questions are numbered
    over both splits when there is no column of question ids, or not all ids are whole numbers. Images are numbered likewise;
    images of equal id, or of equal content where there are no ids, have one number.

    Args:
        name: hub name, or folder of files that ``datasets.load_dataset`` reads.
        columns: the data set's names of columns that it calls otherwise than expected, by the expected name.
        splits: the data set's splits (or slices, such as ``train[:90%]``) for training and evaluation.
        cache_dir: the cache folder.

    Raises:
        ParameterError: ``columns`` names an unknown column, or ``datasets`` is not installed.
        DataError: no such data set, split or column, or a column of another type.
    """
    unknown = sorted(columns.keys() - set(_COLUMNS))
    if unknown:
        raise ParameterError(f"hf_columns: {unknown[0]} is not one of {', '.join(_COLUMNS)}")
    tables = {split: _load(name, hub_split) for split, hub_split in zip(_SPLITS, splits, strict=True)}
    names = _column_names(name, tables, columns)
    content = json.dumps([_VERSION, [table._fingerprint for table in tables.values()], names])
    root = cache_dir / "hub-datasets" / hashlib.sha256(content.encode()).hexdigest()[:32]

    def fill(folder: Path) -> None:
        question_ids = _ids(tables, names["question_id"]) if "question_id" in names else _positions(tables)
        image_ids = _ids(tables, names["image_id"]) if "image_id" in names else None
        by_content: dict[bytes, int] = {}
        for split, table in tables.items():
            of_images = image_ids[split] if image_ids else itertools.repeat(None, len(table))
            rows = zip(_rows(table, names), question_ids[split], of_images, strict=True)
            _write_split(split_files(folder, split), rows, by_content, f"hf:{name}: column {names.get('image_id')}")

    return build_folder(root, fill)


def _load(name: str, split: str) -> Any:
    """Loads a split as a ``datasets.Dataset``."""
    try:
        import datasets
    except ImportError:
        raise ParameterError(
            f"dataset=hf:{name} needs the datasets library; install it with: python -m pip install 'datasets>=5.0'"
        ) from None
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise DataError(f"hf:{name}, split {split}: cannot be read ({reason}); check the name and hf_splits") from None


def _column_names(name: str, tables: Mapping[SplitName, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the data set's name of each column that both splits have, by the expected name; checks the columns' types."""
    import datasets

    names = {}
    for column in _COLUMNS:
        hub_column = columns.get(column, column)
        lacking = [table for table in tables.values() if hub_column not in table.column_names]
        if not lacking:
            names[column] = hub_column
        elif column not in _OPTIONAL or column in columns:
            existing = ", ".join(lacking[0].column_names)
            raise DataError(
                f"hf:{name}: no column {hub_column} (there are: {existing}); name it with hf_columns={column}=COLUMN"
            )
    for table in tables.values():
        image, question = table.features[names["image"]], table.features[names["question"]]
        if not isinstance(image, datasets.Image):
            raise DataError(f"hf:{name}: column {names['image']} is {image}, expected images; name another with hf_columns")
        if getattr(question, "dtype", None) not in ("string", "large_string"):
            raise DataError(f"hf:{name}: column {names['question']} is {question}, expected text; name another with hf_columns")
    return names


def _rows(table: Any, names: Mapping[str, str]) -> Iterator[_Row]:
    """Yields the rows of a split; images are not decoded."""
    import datasets

    plain = table.select_columns([names["question"], names["answers"], names["image"]])
    for row in plain.cast_column(names["image"], datasets.Image(decode=False)):
        yield _Row(row[names["question"]], row[names["answers"]], _image_bytes(row[names["image"]]))


def _image_bytes(image: Mapping[str, Any] | None) -> bytes | None:
    """Returns the content of an image file, which is in the table or beside it; None where there is none."""
    if image and image["bytes"]:
        return bytes(image["bytes"])
    try:
        return Path(image["path"]).read_bytes() if image else None
    except (OSError, TypeError):
        return None


def _ids(tables: Mapping[SplitName, Any], column: str) -> dict[SplitName, list[int]]:
    """Returns the ids of each split's rows: whole numbers as they are, others numbered by first appearance in both splits."""
    values = {split: list(table[column]) for split, table in tables.items()}
    numbers: dict[Any, int] = {value: 0 for split in values.values() for value in split}
    whole = all(str(value).isdecimal() for value in numbers)
    numbers = {value: int(value) if whole else number for number, value in enumerate(numbers, start=1)}
    return {split: [numbers[value] for value in rows] for split, rows in values.items()}


def _positions(tables: Mapping[SplitName, Any]) -> dict[SplitName, list[int]]:
    """Numbers the rows of both splits together, from 1."""
    numbers = itertools.count(1)
    return {split: list(itertools.islice(numbers, len(table))) for split, table in tables.items()}


def _write_split(
    files: SplitFiles, rows: Iterable[tuple[_Row, int, int | None]], by_content: dict[bytes, int], place: str
) -> None:
    """Writes the files of one split.

    Args:
        files: the paths.
        rows: each row with its question id, and with its image id or None.
        by_content: image ids by the digest of the image, for images without an id; new ones are added.
        place: names the column of image ids in an error message.
    """
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
    """Returns answers in the official form. A value that is no text becomes null, which the reader counts as a bad item."""
    if isinstance(value, str):
        value = [value] * ANSWERS_PER_QUESTION
    elif isinstance(value, Mapping) and isinstance(value.get("answer"), list):
        # objects of a Sequence feature arrive as lists, one for each field
        written = value.get("raw_answer") or itertools.repeat(None)
        value = [dict(zip(_ANSWER_FIELDS, texts, strict=True)) for texts in zip(value["answer"], written, strict=False)]
    if not isinstance(value, list):
        return None
    return [_answer(item if isinstance(item, Mapping) else {"answer": item}) for item in value]


def _answer(item: Mapping[str, Any]) -> dict[str, str | None]:
    """Returns an answer in the official form, with a ``raw_answer`` where it has one."""
    fields = [name for name in _ANSWER_FIELDS if name == "answer" or item.get(name) is not None]
    return {name: text if isinstance(text := item.get(name), str) else None for name in fields}
