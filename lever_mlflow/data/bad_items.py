"""Describes the items of a data set that cannot be used: names for the kinds of faults, counts of each, and some examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "ANSWERS",
    "ANSWERS_PER_QUESTION",
    "COLOURS",
    "DAMAGED",
    "FORM",
    "MISSING",
    "NARROW",
    "NO_ANNOTATION",
    "NO_QUESTION",
    "OTHER_IMAGE",
    "TEXT",
    "TWICE",
    "BadItem",
    "describe",
    "tally",
]

ANSWERS_PER_QUESTION = 10

FORM, TWICE = "of the wrong form", "with a question_id that occurs twice"
NO_ANNOTATION, NO_QUESTION = "without annotation", "annotations without question"
OTHER_IMAGE, ANSWERS = "with another image_id in the annotations", f"without {ANSWERS_PER_QUESTION} answers"
MISSING, DAMAGED = "with a missing image", "with an image that does not decode"
TEXT = "with an empty or overlong text"
COLOURS, NARROW = "with an image whose numbers are no colours", "with an image too narrow for the VLM"
_REMEDIES = {
    FORM: "download the file again",
    TWICE: "remove one",
    NO_ANNOTATION: "use the two files of one release",
    NO_QUESTION: "use the two files of one release",
    OTHER_IMAGE: "use the two files of one release",
    ANSWERS: "repair or remove the questions",
    TEXT: "repair or remove the questions",
    MISSING: "copy the images there",
    DAMAGED: "copy the images again",
    COLOURS: "convert the images",
    NARROW: "crop or replace the images",
}
_NAMED = 3  # most items of each kind that a message names


class BadItem(NamedTuple):
    """Describes an entry that cannot be used.

    Attributes:
        kind: kind of problem, in words that follow a number, such as ``without annotation``.
        place: question id of the entry, or in words where it is.
        detail: what is wrong with the entry.
        remedy: what to do about it, where that is not what is to be done about all items of this kind.
    """

    kind: str
    place: int | str
    detail: str
    remedy: str = ""


def tally(bad: Sequence[BadItem]) -> str:
    """Returns how many items there are of each kind, such as ``2 with a missing image, 1 without annotation``."""
    return ", ".join(f"{len(items)} {kind}" for kind, items in _by_kind(bad).items())


def describe(bad: Sequence[BadItem]) -> str:
    """Returns for each kind how many items there are, which are the first, what is wrong with the first, and the remedy."""
    return "; ".join(
        f"{len(items)} {kind} ({_places(items)}: {items[0].detail}; {items[0].remedy or _REMEDIES[kind]})"
        for kind, items in _by_kind(bad).items()
    )


def _by_kind(bad: Sequence[BadItem]) -> dict[str, list[BadItem]]:
    """Returns the items by kind, without the kinds that have none."""
    grouped = {kind: [item for item in bad if item.kind == kind] for kind in _REMEDIES}
    return {kind: items for kind, items in grouped.items() if items}


def _places(items: Sequence[BadItem]) -> str:
    """Returns the places of the first items."""
    names = [item.place if isinstance(item.place, str) else f"question_id {item.place}" for item in items[:_NAMED]]
    return ", ".join(names) + (", ..." if len(items) > _NAMED else "")
