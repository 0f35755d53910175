import itertools

import pytest

from lever_mlflow.evaluation.policies import SIMILARITY_BASELINES, is_baseline
from lever_mlflow.evaluation.strongest import strongest

# Percent at 0, 1 and 2 shots and as the mean over shots.
ACCURACIES = {
    ("zero-shot", 0): 41.0,
    ("zero-shot", None): 41.0,
    ("random", 1): 30.0,
    ("random", 2): 44.0,
    ("random", None): 37.0,
    ("fused-similarity", 1): 40.0,
    ("fused-similarity", 2): 43.0,
    ("fused-similarity", None): 41.5,
    ("epoch 1", 1): 90.0,
    ("epoch 1", 2): 90.0,
    ("epoch 1", None): 90.0,
    ("start", 1): 80.0,
    ("start", None): 80.0,
    ("checkpoint 1 (old.pt)", 2): 80.0,
}


@pytest.mark.parametrize(
    ("shots", "expected"),
    [
        (0, ("zero-shot", 0, 41.0)),
        (1, ("zero-shot", 0, 41.0)),  # which has no demonstrations at any shot count
        (2, ("random", 2, 44.0)),
        (None, ("fused-similarity", None, 41.5)),  # the strongest in the mean, though at neither shot count
    ],
)
def test_the_strongest_at_each_shot_count_and_in_the_mean(shots, expected):
    assert strongest(ACCURACIES, shots) == expected


def test_where_there_is_no_baseline_none_is_the_strongest():
    assert strongest({}, 1) is None
    assert strongest({("random", 2): 50.0}, 1) is None
    assert strongest({("start", 1): 80.0, ("champion", 1): 70.0, ("epoch 12", 1): 60.0}, 1) is None


def test_of_equal_ones_the_first_in_the_fixed_order_whatever_the_order_of_the_records():
    policies = ("theirs", "fused-similarity (full training set)", "fused-similarity", "random", "zero-shot")
    orders = ("random", "fused-similarity", "fused-similarity (full training set)", "theirs")
    equal = dict.fromkeys(policies, 50.0) | {"fused-similarity (full training set)": 50.0 + 1e-12, "zero-shot": 49.0}
    for order in itertools.permutations(policies):
        accuracies = {(policy, 1): equal[policy] for policy in order}
        for first in orders:
            assert strongest(accuracies, 1) == (first, 1, equal[first])
            del accuracies[first, 1]
    assert strongest({("theirs", 1): 50.0, ("random", 1): 49.99}, 1) == ("theirs", 1, 50.0)


def test_what_is_a_baseline():
    assert SIMILARITY_BASELINES == (
        "image-similarity",
        "image-similarity (full training set)",
        "text-similarity",
        "text-similarity (full training set)",
        "fused-similarity",
        "fused-similarity (full training set)",
    )
    assert all(map(is_baseline, (*SIMILARITY_BASELINES, "zero-shot", "random", "nearest neighbour, epoch 3 of CLIP")))
    assert not any(map(is_baseline, ("start", "champion", "epoch 1", "epoch 10", "checkpoint 1 (old.pt)")))
