"""Turns the scores of recorded trials into rewards. The reward modes are those of the predecessor's ``reward_mode``."""

from __future__ import annotations

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.settings import REWARD_MODES, RewardMode

__all__ = ["rewards"]


def rewards(
    correct: np.ndarray,
    accuracy: np.ndarray,
    mode: RewardMode = "hard_plus_soft",
    *,
    hard_weight: float = 1.0,
    soft_weight: float = 1.0,
    gt_prob: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the reward of each trial, float64 in the shape of the scores.

    The terms are hard = ``hard_weight`` * correct and soft = ``soft_weight`` * accuracy. By mode, the reward is:

    * ``hard_plus_soft``: hard + soft, which is in [0, 2] with the default weights;
    * ``hard_only``: hard;
    * ``soft_only``: soft;
    * ``separated``: 2 * hard + soft;
    * ``hard_plus_gtprob``: hard + ``soft_weight`` * gt_prob.

    Args:
        correct: ``vqa_correct``, 0 or 1.
        accuracy: ``vqa_acc_score``, in [0, 1].
        mode: the reward mode.
        hard_weight, soft_weight: factors of the two terms.
        gt_prob: ``vqa_gt_prob``, NaN where a trial has none.

    Raises:
        ParameterError: the mode is unknown; or it is ``hard_plus_gtprob`` and a trial has no ``gt_prob``.
    """
    hard, soft = hard_weight * np.asarray(correct, dtype=float), soft_weight * np.asarray(accuracy, dtype=float)
    match mode:
        case "hard_plus_soft":
            return hard + soft
        case "hard_only":
            return hard
        case "soft_only":
            return soft
        case "separated":
            return 2.0 * hard + soft
        case "hard_plus_gtprob":
            if gt_prob is None or np.isnan(gt_prob).any():
                raise ParameterError(
                    "reward_mode=hard_plus_gtprob needs vqa_gt_prob on every trial; these RL data lack it: use another mode"
                )
            return hard + soft_weight * np.asarray(gt_prob, dtype=float)
    raise ParameterError(f"reward_mode={mode!r} is not one of {', '.join(REWARD_MODES)}")
