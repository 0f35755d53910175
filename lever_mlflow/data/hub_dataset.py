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

from lever_mlflow.data.hub_columns import ANSWERS, COLUMNS, IMAGE, OPTIONAL, QUESTION, check_type, ids, official_answers
from lever_mlflow.data.okvqa import SplitFiles, SplitName, split_files
from lever_mlflow.data.origin import Origin, write_origin
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.atomic import build_folder
from lever_mlflow.files.text import looked_for
from lever_mlflow.shortages import let_through

__all__ = ["ensure_hub_dataset"]

_SPLITS: tuple[SplitName, ...] = ("train", "val")
_NONE = "none"  # in hf_columns: there is no such column
_REASON_CHARS = 400
_VERSION = "3"  # of the form of the files that are written here


class _Row(NamedTuple):
    """Holds a row of a split: its answers in the official form, and its image as the content of its file."""

    question: str | None
    answers: Any
    image: bytes | None


def ensure_hub_dataset(name: str, columns: Mapping[str, str], splits: Sequence[str], cache_dir: Path) -> Path:
    """Returns the folder of a hub data set in the official layout, below ``cache_dir``; it is written on first use.

    Answers are lists of 10 texts, or of 10 objects with an ``answer`` and perhaps a ``raw_answer``. A column of single texts
    stands for 10 annotators who agree, with whom VQA accuracy is 1 for that answer and 0 for others; where these texts are
    lists that were written as text, they are taken for the lists. Questions are numbered over both splits when there is no
    column of question ids, or not all ids are whole numbers. Images are numbered likewise; images of equal id, or of equal
    content where there are no ids, have one number. The file of the origin tells which row a question is from.

    Args:
        name: hub name, or folder of files that ``datasets.load_dataset`` reads.
        columns: the data set's names of columns that it calls otherwise than expected, by the expected name; ``none`` for an
            optional one that is not to be taken.
        splits: the data set's splits (or slices, such as ``train[:90%]``) for training and evaluation.
        cache_dir: the cache folder.

    Raises:
        ParameterError: ``columns`` names an unknown column, or ``datasets`` is not installed.
        DataError: no such data set, split or column, or a column of another type.
    """
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise ParameterError(f"hf_columns: {unknown[0]} is not one of {', '.join(COLUMNS)}")
    tables = {split: _load(name, hub_split) for split, hub_split in zip(_SPLITS, splits, strict=True)}
    places = {split: f"hf:{name}, split {hub_split}" for split, hub_split in zip(_SPLITS, splits, strict=True)}
    names = _column_names(name, tables, columns)
    content = json.dumps([_VERSION, [table._fingerprint for table in tables.values()], names, list(places.values())])
    root = cache_dir / "hub-datasets" / hashlib.sha256(content.encode()).hexdigest()[:32]

    def fill(folder: Path) -> None:
        ids_of_columns = {}
        for column in OPTIONAL:
            if column in names:
                values = {split: list(table[names[column]]) for split, table in tables.items()}
                ids_of_columns[column] = ids(places, column, names[column], values)
        question_ids, image_ids = ids_of_columns.get("question_id") or _positions(tables), ids_of_columns.get("image_id")
        by_content: dict[bytes, int] = {}
        for split, table in tables.items():
            of_images = image_ids[split] if image_ids else itertools.repeat(None, len(table))
            rows = zip(_rows(table, names, places[split], _image_roots(name)), question_ids[split], of_images, strict=True)
            _write_split(split_files(folder, split), rows, by_content, f"{places[split]}: column {names.get('image_id')}")
            write_origin(folder, split, Origin(places[split], question_ids[split]))

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
    folder = Path(name).expanduser()
    try:
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        let_through(error)
        reason = " ".join(str(error.__cause__ or error).split())[:_REASON_CHARS]
        absent = "" if folder.is_dir() else f", and there is no such folder{looked_for(folder)}"
        raise DataError(f"hf:{name}, split {split}: cannot be read ({reason}){absent}; check the name and hf_splits") from None


def _column_names(name: str, tables: Mapping[SplitName, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the data set's name of each column that both splits have, by the expected name; checks the columns' types."""
    names = {}
    for column in COLUMNS:
        hub_column = columns.get(column, column)
        lacking = [table for table in tables.values() if hub_column not in table.column_names]
        if not lacking:
            names[column] = hub_column
        elif column not in OPTIONAL or columns.get(column, _NONE) != _NONE:
            existing = ", ".join(lacking[0].column_names)
            raise DataError(
                f"hf:{name}: no column {hub_column} (there are: {existing}); name it with hf_columns={column}=COLUMN"
            )
    for column, hub_column in names.items():
        for table in tables.values():
            check_type(f"hf:{name}", column, hub_column, table.features[hub_column])
    return names


def _image_roots(name: str) -> list[Path]:
    """Returns the folders in which image files of a data set may lie: its own, or those of what the hub library downloaded."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(name).expanduser()
    folders = [folder] if folder.is_dir() else [Path(HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]
    return [root.resolve() for root in folders]


def _rows(table: Any, names: Mapping[str, str], place: str, roots: Sequence[Path]) -> Iterator[_Row]:
    """Yields the rows of a split; images are not decoded. Those outside of ``roots`` count as missing."""
    import datasets

    plain = table.select_columns([names[QUESTION], names[IMAGE]]).cast_column(names[IMAGE], datasets.Image(decode=False))
    answers = official_answers(place, names[ANSWERS], table[names[ANSWERS]])
    for row, row_answers in zip(plain, answers, strict=True):
        yield _Row(row[names[QUESTION]], row_answers, _image_bytes(row[names[IMAGE]], roots))


def _image_bytes(image: Mapping[str, Any] | None, roots: Sequence[Path]) -> bytes | None:
    """Returns the content of an image file, which is in the table or below one of ``roots``; None where there is none.

    A table may name any path, also that of a file that has nothing to do with the data set.
    """
    if image and image["bytes"]:
        return bytes(image["bytes"])
    try:
        path = Path(image["path"]).resolve() if image else Path()
        return path.read_bytes() if path.is_file() and any(path.is_relative_to(root) for root in roots) else None
    except (OSError, TypeError, ValueError):
        return None


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
        annotations.append({"image_id": image_id, "question_id": question_id, "answers": row.answers})
    files.questions.write_text(json.dumps({"questions": questions}), encoding="utf-8")
    files.annotations.write_text(json.dumps({"annotations": annotations}), encoding="utf-8")
