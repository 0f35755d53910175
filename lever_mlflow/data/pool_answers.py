"""Says which candidate pools show a right answer to their query, which is known before the VLM is asked anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import CORRECT_FROM

__all__ = ["answers_in_pools"]


def answers_in_pools(queries: Sequence[Sample], train: Sequence[Sample], pools: Iterable[Sequence[int]]) -> np.ndarray:
    """Says for each query whether a candidate of its pool shows a right answer.

    An answer is right where it has at least the accuracy from which on a trial counts as correct, scored as the VLM's answers
    are.

    Args:
        queries: the queries.
        train: the training items.
        pools: the candidates of each query, as indices into ``train``.

    Returns:
        Truth values [Q].
    """

    @cache
    def shown(index: int) -> str:
        return train[index].comparable(train[index].answer)

    return np.array(
        [
            not _right_answers(query).isdisjoint(shown(index) for index in pool)
            for query, pool in zip(queries, pools, strict=True)
        ],
        dtype=bool,
    )


def _right_answers(query: Sample) -> frozenset[str]:
    """Returns all right answers to a query, in the form in which answers are compared."""
    texts = dict.fromkeys((*query.answers, *query.stemmed_answers))
    return frozenset(query.comparable(text) for text in texts if query.accuracy(text) >= CORRECT_FROM)
