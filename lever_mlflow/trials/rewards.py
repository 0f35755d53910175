"""Rewards of recorded trials (design of the reward modes: the predecessor's ``reward_mode``)."""

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
    """Reward of each trial from its ``vqa_correct`` (0 or 1) and ``vqa_acc_score`` (0 to 1), same shape, float64.

    ``hard_plus_soft`` (default): correct + accuracy, in [0, 2]; ``hard_only``; ``soft_only``; ``separated``: 2 + soft when
    correct, else soft; ``hard_plus_gtprob``: correct + ``vqa_gt_prob``. The weights multiply the two terms.

    Raises:
        ParameterError: unknown mode, or ``hard_plus_gtprob`` without ``gt_prob``.
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
                    "reward_mode=hard_plus_gtprob needs vqa_gt_prob on every trial; this RL data lacks it: use another mode"
                )
            return hard + soft_weight * np.asarray(gt_prob, dtype=float)
    raise ParameterError(f"reward_mode={mode!r} is not one of {', '.join(REWARD_MODES)}")
