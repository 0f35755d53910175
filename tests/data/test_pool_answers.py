from dataclasses import replace
from pathlib import Path

import pytest

from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.data.samples import Sample


def item(index, *answers, stemmed=(), scoring="raw"):
    """An item with ten answers, given as (text, how many annotators)."""
    raw, stems = (tuple(text for text, count in counts for _ in range(count)) for counts in (answers, stemmed))
    return Sample(index, index, index, "what?", Path("x"), raw, stems, scoring)


TRAIN = [item(0, ("Racing.", 6), ("sailing", 4)), item(1, ("the boat", 10)), item(2, ("", 10))]


@pytest.mark.parametrize(
    ("answers", "pools"),
    [
        ((("racing", 10),), {0: True, 1: False}),  # the normal form counts
        ((("sailing", 10),), {0: False}),  # item 0 shows its most frequent answer alone
        ((("boat", 2), ("ship", 8)), {1: True}),  # two of ten annotators give an accuracy of 0.6
        ((("boat", 1), ("ship", 9)), {1: False}),  # one gives 0.3
        ((("", 10),), {2: False}),  # nothing is never right
    ],
)
def test_a_right_answer_among_those_shown(answers, pools):
    query = item(9, *answers)
    for index, there in pools.items():
        assert answers_in_pools([query], TRAIN, [[index]]).tolist() == [there]
    both = answers_in_pools([query, query], TRAIN, [[0, 1], []])
    assert both.tolist() == [pools.get(0, False) or pools.get(1, False), False]


@pytest.mark.parametrize(("scoring", "there"), [("raw", False), ("stem", True), ("plain", False)])
def test_answers_are_scored_as_those_of_the_vlm(scoring, there):
    query = item(9, ("races", 10), stemmed=(("race", 10),), scoring=scoring)
    train = [replace(sample, scoring=scoring) for sample in TRAIN]
    assert answers_in_pools([query], train, [[0]]).tolist() == [there]
    shows_stem = item(0, ("race", 10), scoring=scoring)
    assert answers_in_pools([query], [shows_stem], [[0]]).tolist() == [scoring != "raw"]
