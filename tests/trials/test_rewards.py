import numpy as np
import pytest

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.trials.rewards import rewards

CORRECT, ACCURACY, GT_PROB = np.array([1, 0, 1]), np.array([1.0, 0.3, 0.6]), np.array([0.5, 0.1, 0.2])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("hard_plus_soft", [2.0, 0.3, 1.6]),
        ("hard_only", [1.0, 0.0, 1.0]),
        ("soft_only", [1.0, 0.3, 0.6]),
        ("separated", [3.0, 0.3, 2.6]),
        ("hard_plus_gtprob", [1.5, 0.1, 1.2]),
    ],
)
def test_modes(mode, expected):
    np.testing.assert_allclose(rewards(CORRECT, ACCURACY, mode, gt_prob=GT_PROB), expected)


def test_weights():
    np.testing.assert_allclose(rewards(CORRECT, ACCURACY, hard_weight=2.0, soft_weight=0.5), [2.5, 0.15, 2.3])


def test_missing_probabilities_and_unknown_modes_are_errors():
    with pytest.raises(ParameterError, match="needs vqa_gt_prob"):
        rewards(CORRECT, ACCURACY, "hard_plus_gtprob", gt_prob=np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ParameterError, match="'soft' is not one of"):
        rewards(CORRECT, ACCURACY, "soft")
