"""Defines an item of a visual question answering data set, and how answers to it are scored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lever_mlflow.data.item_rules import is_visible
from lever_mlflow.data.vqa_accuracy import comparable_answer, vqa_accuracy
from lever_mlflow.settings import Scoring

__all__ = ["Sample"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds one item, such as a question of OK-VQA.

    Attributes:
        index: position among the split's usable items; RL data name training items by it.
        question_id: the data set's own id of the question.
        image_id: the data set's own id of the image.
        question: the question's text.
        image_path: the image file.
        answers: the answers as the annotators wrote them, 10 of them.
        stemmed_answers: the same answers as the data set's authors stemmed them; empty where no answer has another form.
        scoring: how answers to the question are scored.
        picture_id: number of the picture that the image shows, where it is not ``image_id``.
    """

    index: int
    question_id: int
    image_id: int
    question: str
    image_path: Path
    answers: tuple[str, ...]
    stemmed_answers: tuple[str, ...] = ()
    scoring: Scoring = "raw"
    picture_id: int | None = None

    @property
    def picture(self) -> int:
        """Returns the number of the picture: items with the same number show the same one, whatever their image ids are."""
        return self.image_id if self.picture_id is None else self.picture_id

    @property
    def answer(self) -> str:
        """Returns the most frequent answer of the annotators, the earliest among equals. Demonstrations show it.

        Empty answers do not count, unless there are no others.
        """
        return Counter(filter(is_visible, self.answers) if any(map(is_visible, self.answers)) else self.answers).most_common(1)[
            0
        ][0]

    def accuracy(self, prediction: str) -> float:
        """Returns the VQA accuracy of a prediction, in [0, 1], in the way that ``scoring`` names.

        ``raw`` compares the prediction with the answers as they were written. ``stem`` stems the words of both first. ``plain``
        compares the prediction as it is with the answers that the data set's authors stemmed.

        Raises:
            ParameterError: words are to be stemmed, and the library for it is not installed.
        """
        answers = self.stemmed_answers or self.answers if self.scoring == "plain" else self.answers
        return vqa_accuracy(prediction, answers, stem=self.scoring == "stem")

    def comparable(self, text: str) -> str:
        """Returns the form in which ``accuracy`` compares answers: those of equal form are equally right.

        Raises:
            ParameterError: as ``accuracy``.
        """
        return comparable_answer(text, stem=self.scoring == "stem")
