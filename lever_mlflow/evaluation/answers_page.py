"""Writes a page that shows for some questions what policies picked and what the VLM answered, with all images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.files.images import thumbnail
from lever_mlflow.files.rendering import render

__all__ = ["MOST_QUESTIONS", "answers_page", "most_disputed"]

MOST_QUESTIONS = 100  # on the page
_SIDE = 112  # pixels of the longer side of an image on the page


class _Row(NamedTuple):
    """Holds what one policy came to on a question; an accuracy is in percent."""

    policy: str
    answer: str
    accuracy: float
    demonstrations: list[Sample]


class _Card(NamedTuple):
    """Holds a question with its right answers, each with the number of annotators who gave it, and a row for each policy."""

    query: Sample
    right_answers: list[tuple[str, int]]
    rows: list[_Row]


def answers_page(
    title: str,
    records: EvaluationRecords,
    policies: Mapping[str, str],
    queries: Sequence[Sample],
    train: Sequence[Sample],
    shots: int,
) -> str:
    """Returns a self-contained HTML page about at most ``MOST_QUESTIONS`` questions.

    Questions come first on which the policies that show demonstrations differ most in accuracy.

    Args:
        title: of the page.
        records: the records of all policies.
        policies: name in the records -> name on the page, in the order of the rows.
        queries: the report questions.
        train: the training items, among which the demonstrations are.
        shots: the number of demonstrations; a policy without any is shown as it is.
    """
    rows = {policy: _first_draw(records, policy, shots) for policy in policies}
    by_id = {sample.question_id: sample for sample in train}
    answered = [query for query in queries if all(query.question_id in of_policy.index for of_policy in rows.values())]
    shown = most_disputed(answered, rows)[:MOST_QUESTIONS]
    cards = []
    for query in shown:
        of_query = [_row(label, rows[policy], query, by_id) for policy, label in policies.items()]
        cards.append(_Card(query, Counter(query.answers).most_common(), of_query))
    paths = {sample.image_path for card in cards for sample in (card.query, *_demonstrations(card))}
    images = {path: f"i{number}" for number, path in enumerate(sorted(paths))}
    return render(
        "evaluation/templates/answers.html",
        title=title,
        cards=cards,
        shots=shots,
        total=len(answered),
        images=images,
        thumbnails={name: thumbnail(path, _SIDE) for path, name in images.items()},
        side=_SIDE,
    )


def most_disputed(queries: Sequence[Sample], rows: Mapping[str, pd.DataFrame]) -> list[Sample]:
    """Sorts questions by how far policies differ in accuracy on them, the largest difference first; equal ones stay in order.

    Policies that show demonstrations count first, because a question on which all of them are right says nothing about
    demonstrations, although the VLM is often wrong without any.

    Args:
        queries: the questions.
        rows: records of each policy by question id, with the columns ``accuracy`` and ``shots``.
    """
    with_demonstrations = [of_policy for of_policy in rows.values() if of_policy["shots"].any()]

    def spread(query: Sample, policies: Collection[pd.DataFrame]) -> float:
        accuracies = [of_policy["accuracy"][query.question_id] for of_policy in policies]
        return float(max(accuracies) - min(accuracies)) if accuracies else 0.0

    return sorted(queries, key=lambda query: (spread(query, with_demonstrations), spread(query, rows.values())), reverse=True)


def _first_draw(records: EvaluationRecords, policy: str, shots: int) -> pd.DataFrame:
    """Returns the records of a policy by question id; of several draws the first."""
    frame = records.picks_and_answers(policy)
    frame = frame[frame["shots"].isin([0, shots])].drop_duplicates("question_id")
    return frame.set_index("question_id")


def _row(label: str, records: pd.DataFrame, query: Sample, train: Mapping[int, Sample]) -> _Row:
    record = records.loc[query.question_id].to_dict()
    demonstrations = [train[int(question_id)] for question_id in record["picks"]]
    return _Row(label, str(record["answer"]), 100.0 * float(record["accuracy"]), demonstrations)


def _demonstrations(card: _Card) -> list[Sample]:
    return [sample for row in card.rows for sample in row.demonstrations]
