"""Defines an item of a visual question answering data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """Holds one OK-VQA item.

    Attributes:
        index: position among the split's usable items; RL data name training items by it.
        question_id: the data set's own id of the question.
        image_id: the data set's own id of the image.
        question: the question's text.
        image_path: the image file.
        answers: the annotators' raw answers, 10 of them.
    """

    index: int
    question_id: int
    image_id: int
    question: str
    image_path: Path
    answers: tuple[str, ...]

    @cached_property
    def answer(self) -> str:
        """Returns the most frequent answer of the annotators, the earliest among equals. Demonstrations show it."""
        return Counter(self.answers).most_common(1)[0][0]
