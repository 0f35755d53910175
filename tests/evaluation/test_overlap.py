import numpy as np
import pytest

from lever_mlflow.evaluation.overlap import Overlap, overlaps, why_identical


def test_overlap_by_hand():
    picks = {
        "start": np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
        "epoch 1": np.array([[1, 2], [4, 3], [5, 9], [8, 7]]),
        "epoch 2": np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
    }
    assert overlaps(picks, (1, 2)) == [
        Overlap("start", "epoch 1", 1, 0.5, 0.5),
        Overlap("start", "epoch 1", 2, 0.25, 0.75),
        Overlap("start", "epoch 2", 1, 1.0, 1.0),
        Overlap("start", "epoch 2", 2, 1.0, 1.0),
        Overlap("epoch 1", "epoch 2", 1, 0.5, 0.5),
        Overlap("epoch 1", "epoch 2", 2, 0.25, 0.75),
    ]


def test_the_reason_that_applies():
    first = np.array([[4.0, 1.0, 2.5, 0.0], [0.0, 3.0, 1.0, 2.0]])
    second = first + np.array([[10.1, 10.0, 9.9, 10.0], [0.0, 0.0, 0.0, 0.0]])
    assert why_identical(first, first, 1, equal_weights=True) == {"rule": "equal_weights"}
    assert why_identical(first, second, 3, equal_weights=False) == {"rule": "small_pool", "pool_size": 4, "shots": 3}
    # margins of the first two: 4 - 2.5 and 3 - 2; of the first three: min(1.5, 1.5) and min(1, 1); moved by 0.1 about 10
    for shots in (1, 2):
        assert why_identical(first, second, shots, equal_weights=False) == {
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
