"""Merging of RL data that were recorded in parts, and that were matched with the same items."""

import pytest

from lever_mlflow.exceptions import DataError
from lever_mlflow.trials.merging import merge
from lever_mlflow.trials.rl_data import Group, RLData, Trial


def trial(pointer, accuracy):
    return Trial(pointer, 0.0, accuracy, "beam")


def part(source, *groups, **meta):
    return RLData(groups, f"digest of {source}", "pools", {}, meta, source)


def test_queries_of_all_parts_are_there_in_order_and_shared_ones_once():
    shared = (trial((1,), 0.0), trial((0, 1), 1.0))
    first = part(
        "a.json", Group(4, (7, 8), (trial((0,), 0.3), trial((1,), 0.6))), Group(9, (7, 8), (trial((0,), 1.0),)), seed=0, shots=1
    )
    second = part(
        "b.json",
        Group(2, (5, 6), (trial((0,), 0.9),)),
        Group(4, (7, 8), shared),
        seed=0,
        shots=2,
    )
    merged = merge([first, second])
    assert [group.query_id for group in merged.groups] == [2, 4, 9]
    assert [(t.pointer, t.accuracy) for t in merged.groups[1].trials] == [((0,), 0.3), ((1,), 0.6), ((0, 1), 1.0)]
    assert merged.n_repeated == 1  # the pointer (1,) of query 4 is that of the first part
    sources = [{"source": f"{name}.json", "digest": f"digest of {name}.json"} for name in "ab"]
    assert merged.meta == {"seed": 0, "merged": sources}


def test_a_query_with_two_pools_is_refused():
    parts = [part("a.json", Group(4, (7, 8), ())), part("b.json", Group(4, (8, 7), (), {"question_id": 104}))]
    with pytest.raises(DataError, match=r"^b\.json: query 4 \(question_id 104\) has another candidate pool than in a\.json"):
        merge(parts)
