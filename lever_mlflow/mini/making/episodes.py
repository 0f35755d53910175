"""Training episodes of the tiny VLM: demonstrations and a query, with what each answer can be predicted from.

An episode is written so that in-context matching is the only way to a small loss. Outside ``Family.known`` a pair of
family and digit means another answer in every episode, so nothing but an earlier item of the same pair predicts it.
Known pairs keep their true answers in about half of the episodes and whenever no demonstration shows them.
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
    """One image with its question and the answer that holds in this episode.

    Attributes:
        family: index into ``FAMILIES``.
        digit: what the image shows.
        question: one phrasing of the family.
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
    """Demonstrations first, the query last."""

    items: tuple[Item, ...]


def answer_vocabulary() -> tuple[str, ...]:
    """Every answer of every family and "unknown", sorted."""
    return tuple(sorted({answer for family in FAMILIES for answer in family.answers.values()} | {"unknown"}))


def draw_episode(rng: np.random.Generator, shots: int, rows_by_digit: Sequence[np.ndarray]) -> Episode:
    """One episode with ``shots`` demonstrations; images are drawn from the rows of their digit."""
    draw = _closed_world if rng.random() < _CLOSED_WORLD_SHARE else _query_with_distractors
    pairs = draw(rng, shots)
    query_is_shown = pairs[-1] in pairs[:-1]
    answers = _draw_answers(rng, keep_true=None if query_is_shown else pairs[-1], pairs=pairs)
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
    """Full weight for what can be known; none where a known pair's answer was replaced and not yet shown."""
    family = FAMILIES[pair[0]]
    if shown:
        return 1.0
    if pair[1] in family.known:
        return float(answer == family.answers[pair[1]])
    return _UNPREDICTED_WEIGHT


def _draw_answers(rng: np.random.Generator, keep_true: Pair | None, pairs: Sequence[Pair]) -> dict[Pair, str]:
    """The episode's answer of each pair: true, shuffled within its family, or any word of the answer vocabulary."""
    vocabulary = answer_vocabulary()
    answers: dict[Pair, str] = {}
    for f in sorted({f for f, _ in pairs}):
        family = FAMILIES[f]
        keep_known = rng.random() < 0.5
        words = rng.permutation(list(family.answers.values()) if rng.random() < 0.6 else vocabulary)
        for (digit, true_answer), word in zip(family.answers.items(), words, strict=False):
            is_true = digit in family.known and (keep_known or (f, digit) == keep_true)
            answers[f, digit] = true_answer if is_true else str(word)
    return answers


def _closed_world(rng: np.random.Generator, shots: int) -> list[Pair]:
    """All items from one or two families and two to four digits, so that matches and near misses abound."""
    families = rng.choice(len(FAMILIES), size=rng.integers(1, 3), replace=False)
    pairs: list[Pair] = []
    while not pairs:
        digits = rng.choice(10, size=rng.integers(2, 5), replace=False)
        pairs = [(int(f), int(d)) for f in families for d in digits if d in FAMILIES[f].answers]
    return [pairs[i] for i in rng.integers(len(pairs), size=shots + 1)]


def _query_with_distractors(rng: np.random.Generator, shots: int) -> list[Pair]:
    """Distractors that share the family or the digit of the query, and in most episodes one demonstration that matches."""
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
