import numpy as np
import pytest

from lever_mlflow.evaluation.overlap import IdenticalPicks, PickOverlap, overlaps, why_identical


def test_overlap_by_hand():
    picks = {
        "start": np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
        "epoch 1": np.array([[1, 2], [4, 3], [5, 9], [8, 7]]),
        "epoch 2": np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
    }
    assert overlaps(picks, (1, 2)) == [
        PickOverlap(first="start", second="epoch 1", shots=1, ordered=0.5, unordered=0.5),
        PickOverlap(first="start", second="epoch 1", shots=2, ordered=0.25, unordered=0.75),
        PickOverlap(first="start", second="epoch 2", shots=1, ordered=1.0, unordered=1.0),
        PickOverlap(first="start", second="epoch 2", shots=2, ordered=1.0, unordered=1.0),
        PickOverlap(first="epoch 1", second="epoch 2", shots=1, ordered=0.5, unordered=0.5),
        PickOverlap(first="epoch 1", second="epoch 2", shots=2, ordered=0.25, unordered=0.75),
    ]


def test_the_reason_that_applies():
    first = np.array([[4.0, 1.0, 2.5, 0.0], [0.0, 3.0, 1.0, 2.0]])
    second = first + np.array([[10.1, 10.0, 9.9, 10.0], [0.0, 0.0, 0.0, 0.0]])
    assert why_identical(first, first, 1, equal_weights=True) == IdenticalPicks(rule="equal_weights")
    assert why_identical(first, second, 3, equal_weights=False) == IdenticalPicks(rule="small_pool", pool_size=4, shots=3)
    # margins of the first two: 4 - 2.5 and 3 - 2; of the first three: min(1.5, 1.5) and min(1, 1); moved by 0.1 about 10
    for shots in (1, 2):
        reason = why_identical(first, second, shots, equal_weights=False)
        assert reason.model_dump(exclude_none=True) == {
            "rule": "same_order",
            "leading": shots + 1,
            "moved": pytest.approx(0.1),
            "median": pytest.approx(1.25),
            "tightest": pytest.approx(1.0),
        }


@pytest.mark.parametrize("shots", [1, 2])
def test_policies_with_other_picks_are_not_called_identical(shots):
    picks = {"a": np.array([[1, 2]]), "b": np.array([[2, 1]])}
    (overlap,) = overlaps(picks, (shots,))
    assert overlap.ordered == 0.0
    assert overlap.unordered == (1.0 if shots == 2 else 0.0)
