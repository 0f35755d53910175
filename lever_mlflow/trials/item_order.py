"""Finds the training items that the indices of RL data mean.

An index is a position among the training items, but not every file counts in the order of the questions file: Lever-Plus sorts
the data set by question id first. So items are found by the question ids that a file records:

* where it records those of all queries and candidates, as our own files do, each item is found by its id, in whatever order the
  items were, and whether or not some were left out;
* where it records those of the queries, as Lever-Plus does, they tell which order the indices follow;
* where it records none, the user has to say which order it is.

Trials whose query or demonstrations are not found are dropped and counted; the data gate judges how many may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import AUTO, ItemOrder
from lever_mlflow.trials.columns import GroupColumns, as_columns, blocks, looked_up
from lever_mlflow.trials.rl_data import Group, ItemMatch, RLData
from lever_mlflow.trials.stored import StoredGroups

__all__ = ["LEFT_OUT", "OTHER_ITEM", "match_items"]

# reasons why trials are not used
LEFT_OUT = "left_out"  # items are found by question id, and the data set lacks the trial's query or a demonstration
OTHER_ITEM = "other_item"  # items are found by index, and the data set has another question there, or none
_OTHER_DATA_SET = "give the data set on which the RL data were recorded as dataset=FOLDER"


def match_items(data: RLData, train: Sequence[Sample], item_order: ItemOrder = "auto") -> RLData:
    """Returns RL data whose indices are positions in ``train``, with the question ids of all items.

    Args:
        data: the RL data as they were read.
        train: the training items.
        item_order: the order that the indices follow, for a file that does not tell it.

    Raises:
        DataError: the file tells no order and none is given, the given order is not that of the question ids in the file, one
            index has two question ids, or no query of the file is in the data set.
    """
    recorded, n_checked, all_recorded = _recorded(data)
    order: Literal["ids", "file", "question_id"]
    n_queries = len(data.groups)
    if n_checked == n_queries and all_recorded:
        order, item_of = "ids", _items_by_id(recorded, train)
    else:
        order = _order(data, recorded, train, item_order)
        item_of = dict(enumerate(range(len(train)) if order == "file" else _rows_by_question_id(train)))
    groups, n_other, lost = _converted_groups(data.groups, _Items.of(item_of, train), train)
    if n_other == n_queries:
        where = "in the data set" if order == "ids" else "the question that the data set has at its index"
        raise DataError(f"{data.source}: none of the {n_other} queries is {where}; {_OTHER_DATA_SET}")
    return replace(
        data,
        groups=groups,
        digest=data.digest if n_checked or order == "file" else _digest_in_order(data.digest, order),
        dropped={**data.dropped, **({LEFT_OUT if order == "ids" else OTHER_ITEM: lost} if lost else {})},
        match=ItemMatch(order, n_queries, n_checked, n_other),
    )


class _Items(NamedTuple):
    """Says which training items indices mean.

    Attributes:
        known: the indices that mean an item, ascending.
        items: the item that each of them means.
        question_ids: the question ids of all training items.
    """

    known: np.ndarray
    items: np.ndarray
    question_ids: np.ndarray

    @classmethod
    def of(cls, item_of: Mapping[int, int], train: Sequence[Sample]) -> _Items:
        known = np.array(sorted(item_of), dtype=np.int64)
        items = np.array([item_of[index] for index in known.tolist()], dtype=np.int64)
        return cls(known, items, np.array([sample.question_id for sample in train]))


def _recorded(data: RLData) -> tuple[dict[int, int], int, bool]:
    """Returns what the RL data record of question ids.

    Returns:
        The question id of each index for which they record it, the number of queries whose own they record, and whether they
        record those of all candidates.
    """
    recorded: dict[int, int] = {}
    n_checked, complete = 0, True
    for columns in blocks(data.groups):
        n_checked += sum("question_id" in query for query in columns.queries_Q)
        complete &= bool(columns.has_question_ids_Q.all())
        for index, question_id in _recorded_ids(columns, data.source).items():
            if recorded.setdefault(index, question_id) != question_id:
                _refuse_two_ids(data.groups, data.source)
    return recorded, n_checked, complete


def _recorded_ids(columns: GroupColumns, source: str) -> dict[int, int]:
    """Returns the question id of each index for which some queries of the RL data record it."""
    named_P = np.repeat(columns.has_question_ids_Q, columns.pool_sizes_Q)
    indices, places = np.unique(columns.pools_P[named_P], return_inverse=True)
    ids = np.zeros(len(indices), dtype=np.int64)
    ids[places] = columns.question_ids_R
    recorded = dict(zip(indices.tolist(), ids.tolist(), strict=True))
    queries = list(zip(columns.query_ids_Q.tolist(), columns.queries_Q, strict=True))
    of_queries = {query_id: query["question_id"] for query_id, query in queries if "question_id" in query}
    agree = len(of_queries) == sum("question_id" in query for _, query in queries)
    agree &= bool((ids[places] == columns.question_ids_R).all())
    if not agree or any(recorded.get(index, question_id) != question_id for index, question_id in of_queries.items()):
        _refuse_two_ids(columns, source)
    return recorded | of_queries


def _refuse_two_ids(groups: Iterable[Group], source: str) -> None:
    """Raises a DataError that names the first index that has two question ids."""
    recorded: dict[int, int] = {}
    for group in groups:
        ids = dict(zip(group.pool, group.pool_question_ids or (), strict=False))
        if "question_id" in group.query:
            ids[group.query_id] = group.query["question_id"]
        for index, question_id in ids.items():
            if recorded.setdefault(index, question_id) != question_id:
                raise DataError(
                    f"{source}: query {group.query_id}: item {index} has the question ids {recorded[index]} and {question_id}; "
                    "the file mixes RL data of different data sets or orders; merge their files with the step merge"
                )


def _items_by_id(recorded: Mapping[int, int], train: Sequence[Sample]) -> dict[int, int]:
    """Returns the training item of each index whose question the data set has."""
    item = {sample.question_id: sample.index for sample in train}
    return {index: item[question_id] for index, question_id in recorded.items() if question_id in item}


def _rows_by_question_id(train: Sequence[Sample]) -> list[int]:
    """Returns the training items in the order of their question ids."""
    return sorted(range(len(train)), key=lambda row: train[row].question_id)


def _order(
    data: RLData, recorded: Mapping[int, int], train: Sequence[Sample], item_order: ItemOrder
) -> Literal["file", "question_id"]:
    """Returns the order that the indices follow: the one that most recorded question ids agree with, or the given one."""
    in_file = [sample.question_id for sample in train]
    sorted_ids = sorted(in_file)
    if not recorded and item_order == AUTO and in_file != sorted_ids:
        raise DataError(
            f"{data.source}: no question ids are recorded, so it is unknown which items the indices mean; give item_order="
            "question_id for RL data of Lever-Plus, which sorts the data set by question id, or item_order=file for positions "
            "in the questions file"
        )
    if not recorded:
        return "question_id" if item_order == "question_id" and in_file != sorted_ids else "file"
    agree = {"file": _agreeing(recorded, in_file), "question_id": _agreeing(recorded, sorted_ids)}
    order: Literal["file", "question_id"] = "question_id" if agree["question_id"] > agree["file"] else "file"
    if item_order != AUTO and agree[item_order] < agree[order]:
        raise DataError(
            f"{data.source}: item_order={item_order}, but {agree[order]} of {len(recorded)} recorded question ids agree with "
            f"the order {order}, and {agree[item_order]} with the given one; leave item_order=auto"
        )
    return order


def _agreeing(recorded: Mapping[int, int], question_ids: Sequence[int]) -> int:
    """Returns how many indices have the recorded question id in this order of question ids."""
    return sum(index < len(question_ids) and question_ids[index] == recorded_id for index, recorded_id in recorded.items())


def _converted_groups(
    groups: Sequence[Group], items: _Items, train: Sequence[Sample]
) -> tuple[GroupColumns | StoredGroups, int, int]:
    """Returns all groups with the items that their indices mean, how many queries the data set lacks, and trials are lost."""
    if not isinstance(groups, StoredGroups):
        columns = as_columns(groups)
        converted, n_other = _converted(columns, items, train)
        return converted, n_other, columns.n_trials - converted.n_trials
    n_other = n_queries = n_trials = 0
    for block in groups.blocks():
        converted_block, n_other_here = _converted(block, items, train)
        n_other, n_queries, n_trials = (
            n_other + n_other_here,
            n_queries + len(converted_block),
            n_trials + converted_block.n_trials,
        )
    stored = groups.converted(lambda block: _converted(block, items, train)[0], n_queries, n_trials)
    return stored, n_other, groups.n_trials - n_trials


def _converted(columns: GroupColumns, items: _Items, train: Sequence[Sample]) -> tuple[GroupColumns, int]:
    """Returns the groups with the training items that their indices mean, and how many queries the data set lacks.

    Candidates that the data set lacks are taken from their pools, and with them the trials that show one of them. A query that
    loses all trials by that is left out too. Positions outside the pool stay outside, because the data gate reports them.
    """
    items_Q, items_P = (looked_up(indices, items.known, items.items) for indices in (columns.query_ids_Q, columns.pools_P))
    ids = [train[item].question_id for item in items_Q.tolist()]  # of any item where the query has none
    pairs = zip(columns.queries_Q, ids, strict=True)
    agrees_Q = (items_Q >= 0) & np.array(
        [query.get("question_id", question_id) == question_id for query, question_id in pairs], dtype=bool
    )
    stays_P = items_P >= 0
    stays_T, pointers_X = _moved(columns, stays_P)
    changed = replace(
        columns,
        query_ids_Q=items_Q,
        queries_Q=[
            {**query, "question_id": train[item].question_id, "image_id": train[item].image_id}
            for query, item in zip(columns.queries_Q, items_Q.tolist(), strict=True)
        ],
        pool_sizes_Q=np.bincount(columns.owners_P[stays_P], minlength=len(columns)),
        pools_P=items_P[stays_P],
        has_question_ids_Q=np.ones(len(columns), dtype=bool),
        question_ids_R=items.question_ids[items_P[stays_P]],
        pointers_X=pointers_X,
    )
    left_Q = np.bincount(columns.owners_T[stays_T], minlength=len(columns))
    rows = np.flatnonzero(agrees_Q & ((left_Q > 0) | (columns.sizes_Q == 0)))
    return changed.selected(rows, stays_T).in_order(), int((~agrees_Q).sum())


def _moved(columns: GroupColumns, stays_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which trials show only candidates that stay, and all pointers as positions among these."""
    owners_X = np.repeat(np.arange(columns.n_trials), columns.shots_T)
    rows_X = columns.owners_T[owners_X]
    inside_X = (columns.pointers_X >= 0) & (columns.pointers_X < columns.pool_sizes_Q[rows_X])
    place_X = columns.pool_starts_Q[rows_X[inside_X]] + columns.pointers_X[inside_X]
    stays_T = np.ones(columns.n_trials, dtype=bool)
    stays_T[owners_X[inside_X][~stays_P[place_X]]] = False
    gone_before_P = np.cumsum(~stays_P) - ~stays_P  # in all pools
    gone_before_P -= np.repeat(np.append(gone_before_P, 0)[columns.pool_starts_Q], columns.pool_sizes_Q)  # in its own pool
    pointers_X = columns.pointers_X.copy()
    pointers_X[inside_X] -= gone_before_P[place_X]
    return stays_T, pointers_X


def _digest_in_order(digest: str, order: str) -> str:
    """Returns the digest of RL data in which the user said what the indices mean, because the file does not tell it."""
    return hashlib.sha256(f"{digest} {order}".encode()).hexdigest()[: len(digest)]
