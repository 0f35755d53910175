"""Training items that the indices of RL data mean, found by question ids or in a given order."""

from dataclasses import replace
from pathlib import Path

import pytest

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.rl_data import Group, RLData, Trial

IDS = [30, 10, 50, 20, 40]  # question ids in the order of the file; sorted, they are items 1, 3, 0, 4, 2


def items(question_ids):
    return [Sample(i, number, 1000 + number, "?", Path("x.jpg"), ("a",) * 10) for i, number in enumerate(question_ids)]


TRAIN = items(IDS)


def rl_data(*groups, **changes):
    return replace(RLData(groups, "d" * 32, "pools", {}, {}, "x.json"), **changes)


def group(query, pool, pointers, question_id=None, pool_ids=None):
    trials = tuple(Trial(pointer, 1.0, 1.0, "beam") for pointer in pointers)
    return Group(query, pool, trials, {} if question_id is None else {"question_id": question_id}, pool_ids)


def content(data):
    return [(g.query_id, g.pool, [t.pointer for t in g.trials]) for g in data.groups]


def test_question_ids_of_the_queries_tell_that_the_order_is_sorted():
    data = rl_data(group(0, (1, 4), [(0,), (1, 0)], 10), group(3, (2, 0), [(1,)], 40))
    matched = match_items(data, TRAIN)
    assert content(matched) == [(1, (3, 2), [(0,), (1, 0)]), (4, (0, 1), [(1,)])]
    assert [g.pool_question_ids for g in matched.groups] == [(20, 50), (30, 10)]
    assert (matched.groups[0].query, matched.dropped) == ({"question_id": 10, "image_id": 1010}, {})
    assert matched.digest == data.digest
    words = "indices are positions among the items sorted by question id, and were converted (2 of 2 queries agree)"
    assert str(matched.match) == words


def test_question_ids_of_the_queries_tell_that_the_order_is_the_files():
    matched = match_items(rl_data(group(0, (1, 4), [(0,)], 30), group(3, (2, 0), [(1,)], 20)), TRAIN)
    assert content(matched) == [(0, (1, 4), [(0,)]), (3, (2, 0), [(1,)])]
    assert str(matched.match) == "indices are positions in the questions file (2 of 2 queries agree)"


def test_items_with_ids_are_found_in_any_order_and_in_a_part_of_the_data_set():
    recorded = rl_data(
        group(7, (8, 9, 6), [(0, 1), (1, 2)], 50, (40, 30, 20)),  # the indices mean nothing here
        group(8, (7, 9), [(0,)], 40, (50, 30)),
    )
    matched = match_items(recorded, TRAIN)
    assert content(matched) == [(2, (4, 0, 3), [(0, 1), (1, 2)]), (4, (2, 0), [(0,)])]
    assert str(matched.match) == "items found by question id (2 of 2 queries agree)"
    without_40 = match_items(recorded, items([20, 50, 30]))
    assert content(without_40) == [(1, (2, 0), [(0, 1)])]  # the trial that showed 40 is gone, and so is the query 40
    assert without_40.dropped == {"left_out": 2}
    assert str(without_40.match) == "items found by question id (1 of 2 queries agree)"


def test_a_query_that_is_another_question_is_dropped():
    data = rl_data(group(0, (1,), [(0,)], 30), group(1, (0,), [(0,)], 10), group(2, (0,), [(0,), (0,)], 99))
    matched = match_items(data, TRAIN)
    assert [g.query_id for g in matched.groups] == [0, 1]
    assert (matched.dropped, matched.match.n_other) == ({"other_item": 2}, 1)


def test_indices_beyond_the_data_set_are_dropped_and_positions_outside_the_pool_stay():
    matched = match_items(rl_data(group(0, (1, 9, 2), [(0, 2), (1,), (7,)], 30)), TRAIN)
    assert content(matched) == [(0, (1, 2), [(0, 1), (7,)])]
    assert matched.dropped == {"other_item": 1}


def test_without_question_ids_the_order_has_to_be_given():
    data = rl_data(group(0, (1, 4), [(0,)]))
    with pytest.raises(
        DataError, match=r"x\.json: no question ids are recorded.* give item_order=question_id for RL data of Lev"
    ):
        match_items(data, TRAIN)
    as_file, as_sorted = match_items(data, TRAIN, "file"), match_items(data, TRAIN, "question_id")
    assert (content(as_file), content(as_sorted)) == ([(0, (1, 4), [(0,)])], [(1, (3, 2), [(0,)])])
    assert str(as_file.match) == "indices are positions in the questions file (not checked)"
    assert as_file.digest == data.digest != as_sorted.digest
    assert len(as_sorted.digest) == 32
    in_order = items(sorted(IDS))  # both orders are one
    assert content(match_items(data, in_order)) == content(match_items(data, in_order, "question_id")) == content(as_file)
    assert match_items(data, in_order, "question_id").digest == data.digest


def test_an_order_that_the_question_ids_contradict_is_refused():
    data = rl_data(group(0, (1,), [(0,)], 10))
    assert content(match_items(data, TRAIN, "question_id")) == [(1, (3,), [(0,)])]
    with pytest.raises(
        DataError, match="item_order=file, but 1 of 1 recorded question ids agree with the order question_id, and 0"
    ):
        match_items(data, TRAIN, "file")


@pytest.mark.parametrize(
    ("pool_ids", "where"), [(None, "the question that the data set has at its index"), ((12,), "in the data set")]
)
def test_data_of_another_data_set_are_refused(pool_ids, where):
    data = rl_data(group(0, (1,), [(0,)], 11, pool_ids))
    with pytest.raises(DataError, match=rf"^x\.json: none of the 1 queries is {where}; give the data set .*dataset=FOLDER$"):
        match_items(data, TRAIN)


def test_one_index_with_two_question_ids_is_refused():
    data = rl_data(group(0, (1,), [(0,)], 30, (10,)), group(2, (1,), [(0,)], 50, (20,)))
    with pytest.raises(DataError, match="query 2: item 1 has the question ids 10 and 20"):
        match_items(data, TRAIN)
