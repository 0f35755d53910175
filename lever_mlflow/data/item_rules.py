"""States the rules for the texts of an item, which hold for files, hub data sets and served requests alike.

A question is a text with something in it that can be seen, of at most 2,000 characters. Of the annotators' answers, each has at
most as many characters, and at least one can be seen. Single annotators may have answered nothing: of the 14,055 questions of
OK-VQA 15 have 2 or 4 empty answers. An empty answer is never right, and never shown.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from lever_mlflow.settings import ServingSettings

__all__ = ["MOST_CHARACTERS", "answers_problem", "is_visible", "text_problem"]

MOST_CHARACTERS = ServingSettings.max_question_characters
_UNSEEN = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})  # categories of Unicode: spaces, control and format characters
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")  # letters and a symbol that are drawn as nothing


def is_visible(text: str) -> bool:
    """Returns whether anything in a text can be seen: spaces, zero-width characters and control characters cannot."""
    return any(unicodedata.category(character) not in _UNSEEN and character not in _FILLERS for character in text)


def text_problem(value: Any, most: int = MOST_CHARACTERS) -> str:
    """Returns what is wrong with a question or an answer that has to be there, and what to do; empty where nothing is.

    Args:
        value: what stands where the text should be.
        most: the largest number of characters.
    """
    if not isinstance(value, str):
        return f"is {'null' if value is None else f'of type {type(value).__name__}'}; give text"
    if len(value) > most:
        return f"has {len(value)} characters, at most {most} are taken; shorten it"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair; give valid Unicode"
    return "" if is_visible(value) else "is empty, or nothing of it can be seen; give text"


def answers_problem(answers: Sequence[str]) -> str:
    """Returns what is wrong with the answers of all annotators, and what to do; empty where nothing is."""
    longest = max(answers, key=len, default="")
    if len(longest) > MOST_CHARACTERS:
        return f"an answer {text_problem(longest)}"
    any_visible = any(map(is_visible, answers))
    return "" if any_visible or not answers else "all answers are empty, or nothing of them can be seen; give at least one"
