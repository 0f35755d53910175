"""Searches the whole training set for demonstrations that make a query positive, where mining in its pool found none.

The search looks at the right answers of the query: items that show one of them as their own answer are tried first. The queries
of RL data are training items, whose answers training may see. An evaluation never searches like this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lever_mlflow.data.candidate_pools import items_by_image, nearest, top_k
from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import CORRECT_FROM, normalize_answer, vqa_accuracy
from lever_mlflow.trials.generators import PooledQueries, Proposal, RolloutInputs
from lever_mlflow.trials.recording import try_out
from lever_mlflow.trials.rl_data import Trial, is_positive

__all__ = ["GLOBAL_SEARCH", "right_answers", "searched_trials"]

GLOBAL_SEARCH = "global_search"  # gen_method of trials that the search found; the name is the predecessor's


class _Placement(NamedTuple):
    """Holds a pointer to try, and the pool in which its demonstrations have a place."""

    pool_N: np.ndarray
    proposal: Proposal


def searched_trials(
    inputs: RolloutInputs, queries: PooledQueries, trials: Sequence[Sequence[Trial]]
) -> tuple[PooledQueries, list[list[Trial]]]:
    """Tries up to ``search_positives`` pointers of the whole training set for each query without a positive trial.

    Each round tries one pointer of every query that still has none, and asks the VLM once. Only a positive trial is recorded.
    Its demonstrations get the places of the last items of the pool that no other trial points to, so that the pool keeps its
    size. A pointer for which there are too few such places is passed over.

    Returns:
        The queries with their pools, and the trials of each query, extended by the one that was found.
    """
    pools_QN, extended = queries.pools_QN.copy(), [list(recorded) for recorded in trials]
    open_rows = [row for row, recorded in enumerate(extended) if not is_positive(recorded)]
    placements_of_rows = _placements(inputs, queries.at(open_rows), [extended[row] for row in open_rows])
    placements = dict(zip(open_rows, placements_of_rows, strict=True))
    for turn in range(inputs.settings.search_positives):
        open_rows = [row for row in open_rows if turn < len(placements[row]) and not is_positive(extended[row])]
        if not open_rows:
            break
        tried = [placements[row][turn] for row in open_rows]
        pooled = PooledQueries(queries.at(open_rows).samples, np.stack([placement.pool_N for placement in tried]))
        answered = try_out(inputs, pooled, [[placement.proposal] for placement in tried])
        for row, placement, new_trials in zip(open_rows, tried, answered, strict=True):
            if is_positive(new_trials):
                pools_QN[row] = placement.pool_N
                extended[row] += new_trials
    return PooledQueries(queries.samples, pools_QN), extended


def right_answers(sample: Sample) -> set[str]:
    """Returns the right answers of an item in their normal form: those of its annotators that would count as correct."""
    right = {normalize_answer(text) for text in sample.answers if vqa_accuracy(text, sample.answers) >= CORRECT_FROM}
    return right - {""}  # an empty answer is never right


def _placements(inputs: RolloutInputs, queries: PooledQueries, trials: Sequence[Sequence[Trial]]) -> list[list[_Placement]]:
    """Returns up to ``search_positives`` pointers for each query in the order of trying, none of which was tried before."""
    budget, shots = inputs.settings.search_positives, inputs.settings.shots
    most_tried = max(map(len, trials), default=0)
    by_answer = _items_by_answer(inputs.train)
    return [
        list(_placed(ranked, matching, pool_N, recorded, shots))[:budget]
        for (ranked, matching), pool_N, recorded in zip(
            _ranked(inputs, queries.samples, by_answer, shots * (budget + most_tried)), queries.pools_QN, trials, strict=True
        )
    ]


def _ranked(
    inputs: RolloutInputs, samples: Sequence[Sample], by_answer: Mapping[str, list[int]], count: int
) -> Iterator[tuple[list[int], set[int]]]:
    """Yields for each query its candidates, and which of them show a right answer of the query.

    At least ``count`` candidates are yielded if there are so many. Those that show a right answer come first; both parts are
    sorted by the fused feature, or the only one that there is, the most similar first. No candidate is about the query's image.
    """
    fused_SD, by_image = inputs.features.of(inputs.features.fusion), items_by_image(inputs.train)
    same_image = [by_image[sample.picture] for sample in samples]
    count = min(count, len(inputs.train) - max(map(len, same_image), default=0))
    if not samples or not count:
        yield from (([], set()) for _ in samples)
        return
    nearest_QN = nearest(fused_SD[[sample.index for sample in samples]], fused_SD, count, same_image)
    for sample, near_N in zip(samples, nearest_QN.tolist(), strict=True):
        matching = sorted(index for answer in right_answers(sample) for index in by_answer.get(answer, ()))
        matching = [index for index in matching if inputs.train[index].picture != sample.picture]
        if matching:
            order = top_k(fused_SD[sample.index], fused_SD[matching], min(count, len(matching)))
            matching = [matching[i] for i in order]
        yield list(dict.fromkeys([*matching, *near_N])), set(matching)


def _items_by_answer(train: Sequence[Sample]) -> Mapping[str, list[int]]:
    """Returns the indices of the items that show each answer, by its normal form."""
    by_answer: defaultdict[str, list[int]] = defaultdict(list)
    for sample in train:
        by_answer[normalize_answer(sample.answer)].append(sample.index)
    return by_answer


def _placed(
    ranked: Sequence[int], matching: set[int], pool_N: np.ndarray, trials: Sequence[Trial], shots: int
) -> Iterator[_Placement]:
    """Yields the first candidates as a pointer, then the next ones, and so on, each with a place in the pool."""
    tried = {trial.pointer for trial in trials}
    used = {position for pointer in tried for position in pointer}
    for start in range(0, len(ranked) - shots + 1, shots):
        items = ranked[start : start + shots]
        placement = _with_places(pool_N, used, items)
        if placement is not None and placement[1] not in tried:
            pool, pointer = placement
            record = {"gen_method": GLOBAL_SEARCH, "mined": True, "shows_right_answer": not matching.isdisjoint(items)}
            yield _Placement(pool, Proposal(pointer, record))


def _with_places(pool_N: np.ndarray, used: set[int], items: Sequence[int]) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """Returns a pool that holds the items, and their positions in it; None where too few places of the pool are free."""
    pool = pool_N.tolist()
    position = {index: place for place, index in enumerate(pool)}
    free = (place for place in reversed(range(len(pool))) if place not in used and pool[place] not in items)
    places = [position[item] if item in position else next(free, None) for item in items]
    pointer = tuple(place for place in places if place is not None)
    if len(pointer) < len(items):
        return None
    placed_N = pool_N.copy()
    placed_N[list(pointer)] = items
    return placed_N, pointer
