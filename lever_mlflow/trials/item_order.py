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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import AUTO, ItemOrder
from lever_mlflow.trials.rl_data import Group, ItemMatch, RLData, Trial

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
    recorded = _recorded_ids(data.groups, data.source)
    order: Literal["ids", "file", "question_id"]
    n_checked = sum("question_id" in group.query for group in data.groups)
    if n_checked == len(data.groups) and all(group.pool_question_ids is not None for group in data.groups):
        order, item_of = "ids", _items_by_id(recorded, train)
    else:
        order = _order(data, recorded, train, item_order)
        item_of = dict(enumerate(range(len(train)) if order == "file" else _rows_by_question_id(train)))
    converted = [_converted(group, item_of, train) for group in data.groups]
    groups = sorted(
        (new for new, group in zip(converted, data.groups, strict=True) if new and (new.trials or not group.trials)),
        key=lambda group: group.query_id,
    )
    n_other = sum(group is None for group in converted)
    if n_other == len(converted):
        where = "in the data set" if order == "ids" else "the question that the data set has at its index"
        raise DataError(f"{data.source}: none of the {n_other} queries is {where}; {_OTHER_DATA_SET}")
    lost = sum(len(group.trials) for group in data.groups) - sum(len(group.trials) for group in groups)
    return replace(
        data,
        groups=tuple(groups),
        digest=data.digest if n_checked or order == "file" else _digest_in_order(data.digest, order),
        dropped={**data.dropped, **({LEFT_OUT if order == "ids" else OTHER_ITEM: lost} if lost else {})},
        match=ItemMatch(order, len(converted), n_checked, n_other),
    )


def _recorded_ids(groups: Sequence[Group], source: str) -> dict[int, int]:
    """Returns the question id of each index for which the RL data record it."""
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
    return recorded


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


def _converted(group: Group, item_of: Mapping[int, int], train: Sequence[Sample]) -> Group | None:
    """Returns a group with the training items that its indices mean; None where its query is not in the data set.

    Candidates that the data set lacks are taken from the pool, and with them the trials that show one of them.
    """
    query = item_of.get(group.query_id)
    if query is None or group.query.get("question_id", train[query].question_id) != train[query].question_id:
        return None
    kept = [position for position, index in enumerate(group.pool) if index in item_of]
    pool = tuple(item_of[group.pool[position]] for position in kept)
    trials = group.trials
    if len(kept) < len(group.pool):
        trials = _moved(trials, kept, len(group.pool))
    return replace(
        group,
        query_id=query,
        pool=pool,
        trials=trials,
        query={**group.query, "question_id": train[query].question_id, "image_id": train[query].image_id},
        pool_question_ids=tuple(train[item].question_id for item in pool),
    )


def _moved(trials: Sequence[Trial], kept: Sequence[int], pool_size: int) -> tuple[Trial, ...]:
    """Returns the trials that show kept candidates only, with their pointers as positions among these.

    Positions outside the pool stay outside, because the data gate reports them.
    """
    moved = {position: new for new, position in enumerate(kept)}
    moved_trials = []
    for trial in trials:
        if all(position in moved or not 0 <= position < pool_size for position in trial.pointer):
            pointer = tuple(moved.get(position, position) for position in trial.pointer)
            moved_trials.append(replace(trial, pointer=pointer))
    return tuple(moved_trials)


def _digest_in_order(digest: str, order: str) -> str:
    """Returns the digest of RL data in which the user said what the indices mean, because the file does not tell it."""
    return hashlib.sha256(f"{digest} {order}".encode()).hexdigest()[: len(digest)]
