"""Checks the columns of a hub data set, and turns their values into ids and answers.

A column of another type than expected is refused by its name, with its type and with what to do.
"""

from __future__ import annotations

import ast
import itertools
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lever_mlflow.data.bad_items import ANSWERS_PER_QUESTION
from lever_mlflow.exceptions import DataError

__all__ = ["ANSWERS", "COLUMNS", "IMAGE", "OPTIONAL", "QUESTION", "check_type", "ids", "official_answers"]

QUESTION, ANSWERS, IMAGE = "question", "answers", "image"
OPTIONAL = ("question_id", "image_id")
COLUMNS = (QUESTION, ANSWERS, IMAGE, *OPTIONAL)
_EXPECTED = {
    QUESTION: "expected text",
    ANSWERS: f"expected {ANSWERS_PER_QUESTION} texts, {ANSWERS_PER_QUESTION} objects with a text 'answer', or a single text",
    IMAGE: "expected images",
    **dict.fromkeys(OPTIONAL, "expected whole numbers or texts"),
}
_ANSWER_FIELDS = ("answer", "raw_answer")
_LARGEST_ID = 2**63 - 1
_TYPE_CHARS = 120  # of a column's type in a message

K = TypeVar("K")


def check_type(place: str, column: str, hub_column: str, feature: Any) -> None:
    """Checks the type of a column.

    Args:
        place: names the data set in an error message.
        column: the expected name, one of ``COLUMNS``.
        hub_column: the data set's name of it.
        feature: its type in ``datasets``.

    Raises:
        DataError: it is another type.
    """
    if _fits(column, feature):
        return
    kind = str(feature)
    kind = kind if len(kind) <= _TYPE_CHARS else f"{kind[:_TYPE_CHARS]}..."
    remedy = f"change its type, or name another one with hf_columns={column}=COLUMN"
    if column in OPTIONAL:
        remedy = f"name another one with hf_columns={column}=COLUMN, or number the rows with hf_columns={column}=none"
    raise DataError(f"{place}: column {hub_column} is {kind}, {_EXPECTED[column]}; {remedy}")


def _fits(column: str, feature: Any) -> bool:
    """Returns whether a column may be of a type."""
    import datasets

    if column == IMAGE:
        return isinstance(feature, datasets.Image)
    if column in OPTIONAL:
        return _is_text(feature) or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
    if column == QUESTION or _is_text(feature):
        return _is_text(feature)
    if isinstance(feature, Mapping):  # objects of a Sequence feature are an object of lists
        item: Any = {name: getattr(field, "feature", None) for name, field in feature.items()}
    else:
        item = getattr(feature, "feature", None)  # of a list
    if not isinstance(item, Mapping):
        return _is_text(item)
    return "answer" in item and all(_is_text(item[name]) for name in _ANSWER_FIELDS if name in item)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def ids(places: Mapping[K, str], column: str, hub_column: str, values: Mapping[K, Sequence[Any]]) -> dict[K, list[int]]:
    """Returns the ids of each split's rows: whole numbers as they are, others numbered by first appearance in both splits.

    Texts of digits are whole numbers, unless two different texts are the same number.

    Args:
        places: names each split in an error message.
        column, hub_column: the expected name, and the data set's name.
        values: the values of the column, of each split.

    Raises:
        DataError: a row has no id.
    """
    for split, rows in values.items():
        if None in rows:
            remedy = f"fill it in, or number the rows with hf_columns={column}=none"
            raise DataError(f"{places[split]}: column {hub_column} has no value in row {list(rows).index(None)}; {remedy}")
    texts = {split: list(map(str, rows)) for split, rows in values.items()}
    distinct = list(dict.fromkeys(itertools.chain.from_iterable(texts.values())))
    whole = [int(text) for text in distinct if text.isascii() and text.isdecimal()]
    kept = len(set(whole)) == len(distinct) and max(whole, default=0) <= _LARGEST_ID
    numbers = dict(zip(distinct, whole if kept else itertools.count(1), strict=False))
    return {split: [numbers[text] for text in rows] for split, rows in texts.items()}


def official_answers(place: str, hub_column: str, values: Sequence[Any]) -> Iterator[list[dict[str, str | None]] | None]:
    """Yields the answers of each row in the official form; null where a row has none.

    A column of single texts stands for 10 annotators who agree. Where all its texts are lists, as JSON or Python write them,
    they are taken for these lists.

    Raises:
        DataError: some texts of the column are lists, or look like lists, and others are not.
    """
    texts = [(row, value) for row, value in enumerate(values) if isinstance(value, str)]
    as_lists = _lists_in(place, hub_column, texts) if texts else {}
    for row, value in enumerate(values):
        yield _official(as_lists.get(row, value))


def _lists_in(place: str, hub_column: str, texts: Sequence[tuple[int, str]]) -> dict[int, list[Any]]:
    """Returns the lists that the texts of a column hold, by row; empty where they are single answers."""
    looking = [(row, text) for row, text in texts if text.strip()[:1] in ("[", "{") or text.lstrip().startswith("array(")]
    lists = {row: value for row, text in looking if (value := _parsed(text)) is not None}
    if not lists and len(looking) < len(texts):
        return {}
    other = next(((row, text) for row, text in texts if row not in lists), None)
    if other is not None:
        row, text = other
        content = f"texts that hold lists, such as that in row {min(lists)}, and others" if lists else "texts"
        raise DataError(
            f"{place}: column {hub_column} has {content} that cannot be read as lists, such as {reprlib.repr(text)} in "
            f"row {row}; "
            f"give lists of {ANSWERS_PER_QUESTION} texts, or name another column with hf_columns={ANSWERS}=COLUMN"
        )
    return lists


def _parsed(text: str) -> list[Any] | None:
    """Returns the list of texts, or of objects with an answer, that a text holds; None where it holds anything else.

    Python reads two texts without a comma between them, as NumPy writes them, as one. So a text that is no JSON has to be what
    Python writes for the list.
    """
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        if "".join(repr(value).split()) != "".join(text.split()):
            return None
    except RecursionError:
        return None
    whole = isinstance(value, list) and value and all(isinstance(item, str) or _is_answer(item) for item in value)
    return value if whole else None


def _is_answer(item: Any) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("answer"), str)


def _official(value: Any) -> list[dict[str, str | None]] | None:
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
