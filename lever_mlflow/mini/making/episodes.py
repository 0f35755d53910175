"""Draws training episodes of the tiny VLM: some demonstrations and a query, with a weight for the loss of each answer.

Episodes are drawn so that the loss gets small only if the VLM matches the query with its demonstrations. A pair of family and
digit that is not in ``Family.known`` has another answer in every episode, so that only an earlier item of the pair predicts it.
Known pairs have their true answers in about half of the episodes, and always where no demonstration shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lever_mlflow.mini.families import FAMILIES

__all__ = ["Episode", "Item", "answer_vocabulary", "draw_episode"]

Pair = tuple[int, int]
_UNPREDICTED_WEIGHT = 0.05  # enough to learn which answers a family has, too little to memorise noise
_CLOSED_WORLD_SHARE = 0.5
_MATCH_SHARE = 0.6
_DISTRACTOR_SHARES = {"random": 0.25, "same_family": 0.40, "same_digit": 0.35}
_PAIRS: tuple[Pair, ...] = tuple((f, digit) for f, family in enumerate(FAMILIES) for digit in family.answers)


@dataclass(frozen=True)
class Item:
    """Holds an image with its question and the answer that is right in this episode.

    Attributes:
        family: index in ``FAMILIES``.
        digit: the digit that the image shows.
        question: one of the family's phrasings.
        image: row of the image among those of the split.
        answer: the answer text, without leading space.
        weight: weight of this answer's loss.
    """

    family: int
    digit: int
    question: str
    image: int
    answer: str
    weight: float


@dataclass(frozen=True)
class Episode:
    """Holds the items of an episode: the demonstrations first, the query last."""

    items: tuple[Item, ...]


def answer_vocabulary() -> tuple[str, ...]:
    """Returns every answer of every family and "unknown", sorted."""
    return tuple(sorted({answer for family in FAMILIES for answer in family.answers.values()} | {"unknown"}))


def draw_episode(rng: np.random.Generator, shots: int, rows_by_digit: Sequence[np.ndarray]) -> Episode:
    """Draws an episode with ``shots`` demonstrations; images are drawn from the rows of their digit."""
    draw = _closed_world if rng.random() < _CLOSED_WORLD_SHARE else _query_with_distractors
    pairs = draw(rng, shots)
    query_is_shown = pairs[-1] in pairs[:-1]
    answers = _draw_answers(rng, true_pair=None if query_is_shown else pairs[-1], pairs=pairs)
    items = []
    for position, pair in enumerate(pairs):
        family, digit = FAMILIES[pair[0]], pair[1]
        items.append(
            Item(
                family=pair[0],
                digit=digit,
                question=family.phrasings[rng.integers(3)],
                image=int(rng.choice(rows_by_digit[digit])),
                answer=answers[pair],
                weight=_weight(pair, answers[pair], shown=pair in pairs[:position]),
            )
        )
    return Episode(tuple(items))


def _weight(pair: Pair, answer: str, *, shown: bool) -> float:
    """Returns the weight of an answer's loss.

    It is 1 where the answer can be predicted: an earlier item shows it, or it is the true answer of a known pair. It is 0 where
    the answer of a known pair was replaced, and small where the pair is not known.
    """
    family = FAMILIES[pair[0]]
    if shown:
        return 1.0
    if pair[1] in family.known:
        return float(answer == family.answers[pair[1]])
    return _UNPREDICTED_WEIGHT


def _draw_answers(rng: np.random.Generator, true_pair: Pair | None, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """Draws the episode's answer of each pair: true, shuffled within its family, or any word of the answer vocabulary."""
    vocabulary = answer_vocabulary()
    answers: dict[Pair, str] = {}
    for f in sorted({f for f, _ in pairs}):
        family = FAMILIES[f]
        known_are_true = rng.random() < 0.5
        words = rng.permutation(list(family.answers.values()) if rng.random() < 0.6 else vocabulary)
        for (digit, true_answer), word in zip(family.answers.items(), words, strict=False):
            is_true = digit in family.known and (known_are_true or (f, digit) == true_pair)
            answers[f, digit] = true_answer if is_true else str(word)
    return answers


def _closed_world(rng: np.random.Generator, shots: int) -> list[Pair]:
    """Draws all items from one or two families and two to four digits, so that many match fully or in part."""
    families = rng.choice(len(FAMILIES), size=rng.integers(1, 3), replace=False)
    pairs: list[Pair] = []
    while not pairs:
        digits = rng.choice(10, size=rng.integers(2, 5), replace=False)
        pairs = [(int(f), int(d)) for f in families for d in digits if d in FAMILIES[f].answers]
    return [pairs[i] for i in rng.integers(len(pairs), size=shots + 1)]


def _query_with_distractors(rng: np.random.Generator, shots: int) -> list[Pair]:
    """Draws a query with distractors of its family or digit, and in most episodes one demonstration that matches it."""
    query = _PAIRS[rng.integers(len(_PAIRS))]
    candidates = defaultdict(list)
    for pair in _PAIRS:
        if pair != query:
            candidates["random"].append(pair)
            if pair[0] == query[0]:
                candidates["same_family"].append(pair)
            if pair[1] == query[1]:
                candidates["same_digit"].append(pair)
    kinds = rng.choice(list(_DISTRACTOR_SHARES), size=shots, p=list(_DISTRACTOR_SHARES.values()))
    pairs = [candidates[kind][rng.integers(len(candidates[kind]))] for kind in kinds]
    if shots and rng.random() < _MATCH_SHARE:
        pairs[rng.integers(shots)] = query
    return [*pairs, query]
