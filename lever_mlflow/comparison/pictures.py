"""Makes the small pictures that a report shows beside the questions on which runs differ, and names them.

A report holds at most 10 questions with 2 x 4 demonstrations each, which makes 90 pictures of at most 160 pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterable

from lever_mlflow.comparison.facts import Example
from lever_mlflow.comparison.picks import Items
from lever_mlflow.data.samples import Sample
from lever_mlflow.files.images import thumbnail

__all__ = ["MOST_DEMONSTRATIONS", "demonstration_picture", "pictures", "query_picture"]

MOST_DEMONSTRATIONS = 4  # that are shown of a prompt
_SIDE = 160  # pixels of the longer side


def query_picture(question_id: int) -> str:
    """Names the picture of a question."""
    return f"query-{question_id}.jpg"


def demonstration_picture(question_id: int) -> str:
    """Names the picture of a demonstration."""
    return f"demonstration-{question_id}.jpg"


def pictures(examples: Iterable[Example], items: Items | None) -> dict[str, bytes]:
    """Returns the pictures of all examples as JPEG files by name; none without the items.

    Raises:
        DataError: an image of the data set cannot be read.
    """
    if items is None:
        return {}
    shown: dict[str, Sample] = {}
    for example in examples:
        shown[query_picture(example.query.question_id)] = items.queries[example.query.question_id]
        for side in example.sides:
            for item in side.demonstrations[:MOST_DEMONSTRATIONS]:
                if item.question_id in items.demonstrations:
                    shown[demonstration_picture(item.question_id)] = items.demonstrations[item.question_id]
    return {name: thumbnail(sample.image_path, _SIDE) for name, sample in shown.items()}
