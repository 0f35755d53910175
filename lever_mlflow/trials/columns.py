"""Holds groups of RL data as columns, which takes a fraction of the memory of objects and is computed with as whole arrays.

Shapes: Q queries, T trials of all queries, P candidates of all pools, R candidates with recorded question ids, X positions of
all pointers. What belongs to one query or to one trial stands together, in the order of the queries.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, overload

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.trials.rewards import Reward, missing_score, rewards
from lever_mlflow.trials.rl_data import Group, Trial
from lever_mlflow.trials.stored import StoredGroups

__all__ = ["ColumnsBuilder", "GroupColumns", "TrialValues", "as_columns", "blocks", "check_scores", "looked_up", "slices"]

_DTYPES = {"q": np.int64, "i": np.int32, "b": np.int8, "d": np.float64}  # by type code of array


@dataclass(frozen=True, eq=False)
class GroupColumns(Sequence[Group]):
    """Holds groups as columns, and makes a ``Group`` only when one is asked for.

    Attributes:
        query_ids_Q: train indices of the queries.
        queries_Q: fields that describe the queries.
        pool_sizes_Q: number of candidates of each query.
        pools_P: train indices of the candidates.
        has_question_ids_Q: whether the question ids of the candidates are recorded.
        question_ids_R: question ids of the candidates of those queries for which they are recorded.
        sizes_Q: number of trials of each query.
        shots_T: length of each pointer.
        pointers_X: positions in the pools.
        correct_T, accuracy_T: scores, float64.
        gt_prob_T, rel_score_T: scores, float64; NaN where they were not recorded.
        methods_T, method_names: which generator proposed each pointer, as a position among the names.
        modes_T, mode_names: how each answer was scored, as a position among the names.
        failed_T: whether the scoring failed.
        records_T: all fields of each trial; None where they were dropped on reading.
    """

    query_ids_Q: np.ndarray
    queries_Q: Sequence[Mapping[str, Any]]
    pool_sizes_Q: np.ndarray
    pools_P: np.ndarray
    has_question_ids_Q: np.ndarray
    question_ids_R: np.ndarray
    sizes_Q: np.ndarray
    shots_T: np.ndarray
    pointers_X: np.ndarray
    correct_T: np.ndarray
    accuracy_T: np.ndarray
    gt_prob_T: np.ndarray
    rel_score_T: np.ndarray
    methods_T: np.ndarray
    method_names: Sequence[str]
    modes_T: np.ndarray
    mode_names: Sequence[str]
    failed_T: np.ndarray
    records_T: Sequence[Mapping[str, Any] | None] | None

    def __len__(self) -> int:
        return len(self.query_ids_Q)

    def __iter__(self) -> Iterator[Group]:
        return (self._group(row) for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> Group: ...

    @overload
    def __getitem__(self, row: slice) -> GroupColumns: ...

    def __getitem__(self, row: int | slice) -> Group | GroupColumns:
        rows = range(len(self))[row]
        return self._group(rows) if isinstance(rows, int) else self.selected(np.array(rows, dtype=np.int64))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Group.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    @property
    def n_trials(self) -> int:
        return len(self.shots_T)

    @cached_property
    def owners_T(self) -> np.ndarray:
        """Returns the row of each trial's query, int64 [T]."""
        return np.repeat(np.arange(len(self)), self.sizes_Q)

    @cached_property
    def owners_P(self) -> np.ndarray:
        """Returns the row of each candidate's query, int64 [P]."""
        return np.repeat(np.arange(len(self)), self.pool_sizes_Q)

    @cached_property
    def trial_starts_Q(self) -> np.ndarray:
        """Returns the position of each query's first trial, int64 [Q]."""
        return _starts(self.sizes_Q)

    @cached_property
    def pool_starts_Q(self) -> np.ndarray:
        """Returns the position of each query's first candidate, int64 [Q]."""
        return _starts(self.pool_sizes_Q)

    @cached_property
    def recorded_sizes_Q(self) -> np.ndarray:
        """Returns the number of question ids that are recorded of each query's candidates, int64 [Q]."""
        return np.where(self.has_question_ids_Q, self.pool_sizes_Q, 0)

    @cached_property
    def recorded_starts_Q(self) -> np.ndarray:
        """Returns the position of the first of these question ids of each query, int64 [Q]."""
        return _starts(self.recorded_sizes_Q)

    @cached_property
    def pointer_starts_T(self) -> np.ndarray:
        """Returns the place of each pointer's first position, int64 [T]."""
        return _starts(self.shots_T)

    def rewards_T(self, reward: Reward) -> np.ndarray:
        """Returns the rewards, float64 [T]; errors as ``rewards``."""
        return rewards(self.correct_T, self.accuracy_T, reward, gt_prob=self.gt_prob_T, rel_score=self.rel_score_T)

    def pool(self, row: int) -> tuple[int, ...]:
        """Returns the candidates of a query."""
        start = self.pool_starts_Q[row]
        return tuple(self.pools_P[start : start + self.pool_sizes_Q[row]].tolist())

    def pool_question_ids(self, row: int) -> tuple[int, ...] | None:
        """Returns the question ids of a query's candidates; None where they are not recorded."""
        start = self.recorded_starts_Q[row]
        ids = self.question_ids_R[start : start + self.recorded_sizes_Q[row]]
        return tuple(ids.tolist()) if self.has_question_ids_Q[row] else None

    def selected(self, rows: np.ndarray, trials: np.ndarray | None = None) -> GroupColumns:
        """Returns some of the queries in the given order.

        Args:
            rows: rows of the queries, int64.
            trials: which trials stay, bool [T]; all of them if None.
        """
        at_T = slices(self.trial_starts_Q[rows], self.sizes_Q[rows])
        sizes_Q = self.sizes_Q[rows]
        if trials is not None:
            stays = trials[at_T]
            sizes_Q = np.bincount(np.repeat(np.arange(len(rows)), sizes_Q)[stays], minlength=len(rows))
            at_T = at_T[stays]
        return GroupColumns(
            query_ids_Q=self.query_ids_Q[rows],
            queries_Q=[self.queries_Q[row] for row in rows.tolist()],
            pool_sizes_Q=self.pool_sizes_Q[rows],
            pools_P=self.pools_P[slices(self.pool_starts_Q[rows], self.pool_sizes_Q[rows])],
            has_question_ids_Q=self.has_question_ids_Q[rows],
            question_ids_R=self.question_ids_R[slices(self.recorded_starts_Q[rows], self.recorded_sizes_Q[rows])],
            sizes_Q=sizes_Q,
            shots_T=self.shots_T[at_T],
            pointers_X=self.pointers_X[slices(self.pointer_starts_T[at_T], self.shots_T[at_T])],
            correct_T=self.correct_T[at_T],
            accuracy_T=self.accuracy_T[at_T],
            gt_prob_T=self.gt_prob_T[at_T],
            rel_score_T=self.rel_score_T[at_T],
            methods_T=self.methods_T[at_T],
            method_names=self.method_names,
            modes_T=self.modes_T[at_T],
            mode_names=self.mode_names,
            failed_T=self.failed_T[at_T],
            records_T=None if self.records_T is None else [self.records_T[trial] for trial in at_T.tolist()],
        )

    def in_order(self) -> GroupColumns:
        """Returns the same groups, ordered by train index."""
        if (np.diff(self.query_ids_Q) > 0).all():
            return self
        return self.selected(np.argsort(self.query_ids_Q, kind="stable"))

    def _group(self, row: int) -> Group:
        start, size = self.trial_starts_Q[row], self.sizes_Q[row]
        trials = tuple(self._trial(trial) for trial in range(start, start + size))
        return Group(int(self.query_ids_Q[row]), self.pool(row), trials, self.queries_Q[row], self.pool_question_ids(row))

    def _trial(self, trial: int) -> Trial:
        start = self.pointer_starts_T[trial]
        gt_prob, rel_score = float(self.gt_prob_T[trial]), float(self.rel_score_T[trial])
        return Trial(
            pointer=tuple(self.pointers_X[start : start + self.shots_T[trial]].tolist()),
            correct=float(self.correct_T[trial]),
            accuracy=float(self.accuracy_T[trial]),
            gen_method=self.method_names[self.methods_T[trial]],
            eval_mode=self.mode_names[self.modes_T[trial]],
            eval_failed=bool(self.failed_T[trial]),
            gt_prob=None if math.isnan(gt_prob) else gt_prob,
            rel_score=None if math.isnan(rel_score) else rel_score,
            record=None if self.records_T is None else self.records_T[trial],
        )


class TrialValues(NamedTuple):
    """Holds the trials of one query, a list for each attribute of ``Trial``; scores that were not recorded are NaN."""

    pointer: Sequence[Sequence[int]]
    correct: Sequence[float]
    accuracy: Sequence[float]
    gen_method: Sequence[str]
    eval_mode: Sequence[str]
    eval_failed: Sequence[bool]
    gt_prob: Sequence[float]
    rel_score: Sequence[float]


class _Codes(dict[str, int]):
    """Gives each new name the next number."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


class ColumnsBuilder:
    """Puts groups into columns, one by one, with the records of their trials where ``keep_records`` is true."""

    def __init__(self, keep_records: bool = True) -> None:
        self._keep_records = keep_records
        self._query_ids, self._pool_sizes, self._sizes = array("q"), array("q"), array("q")
        self._pools, self._question_ids, self._has_question_ids = array("q"), array("q"), array("b")
        self._shots, self._pointers = array("q"), array("q")
        self._correct, self._accuracy = array("d"), array("d")
        self._gt_prob, self._rel_score = array("d"), array("d")
        self._methods, self._modes, self._failed = array("i"), array("b"), array("b")
        self._method_codes, self._mode_codes = _Codes(), _Codes()
        self._queries: list[Mapping[str, Any]] = []
        self._records: list[Mapping[str, Any] | None] = []

    def add_query(
        self,
        query_id: int,
        pool: Sequence[int],
        query: Mapping[str, Any],
        question_ids: Sequence[int] | None,
    ) -> None:
        """Adds a query; the trials that are added next are those of this query."""
        self._query_ids.append(query_id)
        self._pool_sizes.append(len(pool))
        self._pools.extend(pool)
        self._has_question_ids.append(question_ids is not None)
        self._question_ids.extend(question_ids or ())
        self._queries.append(query)
        self._sizes.append(0)

    def add_trials(self, trials: TrialValues, records: Sequence[Mapping[str, Any] | None]) -> None:
        """Adds trials of the last query, with all their fields as they stand in the file."""
        self._sizes[-1] += len(trials.pointer)
        self._shots.extend(map(len, trials.pointer))
        self._pointers.extend(chain.from_iterable(trials.pointer))
        self._correct.extend(trials.correct)
        self._accuracy.extend(trials.accuracy)
        self._methods.extend(map(self._method_codes.__getitem__, trials.gen_method))
        self._modes.extend(map(self._mode_codes.__getitem__, trials.eval_mode))
        self._failed.extend(trials.eval_failed)
        self._gt_prob.extend(trials.gt_prob)
        self._rel_score.extend(trials.rel_score)
        if self._keep_records:
            self._records.extend(records)

    def __len__(self) -> int:
        """Returns the number of queries that were added."""
        return len(self._query_ids)

    def add(self, group: Group) -> None:
        """Adds a query with its trials."""
        self.add_query(group.query_id, group.pool, group.query, group.pool_question_ids)
        values = {name: [getattr(trial, name) for trial in group.trials] for name in TrialValues._fields}
        for name in ("gt_prob", "rel_score"):
            values[name] = [math.nan if value is None else value for value in values[name]]
        self.add_trials(TrialValues(**values), [trial.record for trial in group.trials])

    def extend(self, groups: GroupColumns) -> None:
        """Adds queries with their trials, without the records of these."""
        methods_T = np.array([self._method_codes[name] for name in groups.method_names], dtype=np.int32)[groups.methods_T]
        modes_T = np.array([self._mode_codes[name] for name in groups.mode_names], dtype=np.int8)[groups.modes_T]
        for values, added in (
            (self._query_ids, groups.query_ids_Q),
            (self._pool_sizes, groups.pool_sizes_Q),
            (self._sizes, groups.sizes_Q),
            (self._pools, groups.pools_P),
            (self._has_question_ids, groups.has_question_ids_Q),
            (self._question_ids, groups.question_ids_R),
            (self._shots, groups.shots_T),
            (self._pointers, groups.pointers_X),
            (self._correct, groups.correct_T),
            (self._accuracy, groups.accuracy_T),
            (self._gt_prob, groups.gt_prob_T),
            (self._rel_score, groups.rel_score_T),
            (self._methods, methods_T),
            (self._modes, modes_T),
            (self._failed, groups.failed_T),
        ):
            values.frombytes(added.astype(_DTYPES[values.typecode]).tobytes())
        self._queries.extend(groups.queries_Q)

    def columns(self) -> GroupColumns:
        """Returns the groups that were added."""
        return GroupColumns(
            query_ids_Q=_array(self._query_ids),
            queries_Q=self._queries,
            pool_sizes_Q=_array(self._pool_sizes),
            pools_P=_array(self._pools),
            has_question_ids_Q=_array(self._has_question_ids).astype(bool),
            question_ids_R=_array(self._question_ids),
            sizes_Q=_array(self._sizes),
            shots_T=_array(self._shots),
            pointers_X=_array(self._pointers),
            correct_T=_array(self._correct),
            accuracy_T=_array(self._accuracy),
            gt_prob_T=_array(self._gt_prob),
            rel_score_T=_array(self._rel_score),
            methods_T=_array(self._methods),
            method_names=tuple(self._method_codes),
            modes_T=_array(self._modes),
            mode_names=tuple(self._mode_codes),
            failed_T=_array(self._failed).astype(bool),
            records_T=self._records if self._keep_records else None,
        )


def as_columns(groups: Iterable[Group]) -> GroupColumns:
    """Returns groups as columns; those that stay in their files are read, and ordered by train index."""
    if isinstance(groups, GroupColumns):
        return groups
    if isinstance(groups, StoredGroups):
        held = ColumnsBuilder(keep_records=False)
        for block in groups.blocks():
            held.extend(block)
        return held.columns().in_order()
    builder = ColumnsBuilder()
    for group in groups:
        builder.add(group)
    return builder.columns()


def blocks(groups: Iterable[Group]) -> Iterator[GroupColumns]:
    """Yields groups as columns: those that stay in their files some hundred at a time, and others all at once."""
    if isinstance(groups, StoredGroups):
        yield from groups.blocks()
    else:
        yield as_columns(groups)


def check_scores(groups: Iterable[Group], reward: Reward) -> None:
    """Checks that all trials have the scores that a reward takes.

    Raises:
        ParameterError: a trial lacks one; the message names the query, the trial's pointer and the field.
    """
    columns = as_columns(groups)
    scores = {"vqa_gt_prob": columns.gt_prob_T, "vqa_rel_score": columns.rel_score_T}
    for name in reward.fields:
        for trial in np.flatnonzero(np.isnan(scores[name]))[:1]:
            row = int(columns.owners_T[trial])
            pointer = columns.pointers_X[slices(columns.pointer_starts_T[[trial]], columns.shots_T[[trial]])]
            place = f"query {columns.query_ids_Q[row]}: the trial with pointer {pointer.tolist()} has no {name}"
            raise ParameterError(f"{place}, but {missing_score(reward, name)}")


def looked_up(items: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the value of each item; -1 for those that have none.

    Args:
        items: the items.
        known: the items that have a value, ascending.
        values: their values.
    """
    if not len(known):
        return np.full(len(items), -1)
    places = np.searchsorted(known, items).clip(max=len(known) - 1)
    return np.where(known[places] == items, values[places], -1)


def slices(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns the positions of slices of an array, one slice after the other, int64.

    Args:
        starts: the first position of each slice.
        sizes: the number of positions of each slice.
    """
    return np.arange(int(sizes.sum()), dtype=np.int64) + np.repeat(starts - _starts(sizes), sizes)


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.cumsum(sizes, dtype=np.int64) - sizes


def _array(values: array[Any]) -> np.ndarray:
    """Returns the values as an array that shares their memory."""
    dtype = _DTYPES[values.typecode]
    return np.frombuffer(values, dtype=dtype) if len(values) else np.zeros(0, dtype=dtype)
