"""Turns the scores of recorded trials into rewards. The reward modes are those of the predecessor's ``reward_mode``.

Departures from the predecessor: ``separated_gtprob`` is new, and the weight of ``vqa_gt_prob`` has a name of its own, where the
predecessor used that of ``vqa_acc_score``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import cast

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.invocation import command
from lever_mlflow.settings import REWARD_MODES, RewardMode, as_text

__all__ = ["DEFAULT_REWARD", "DEFAULT_WEIGHTS", "Reward", "missing_score", "rewards"]

# The weight of the term rel is that of the predecessor's scripts.
DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType({"hard": 1.0, "soft": 1.0, "gtprob": 1.0, "rel": 0.1})
_TERMS: Mapping[RewardMode, tuple[str, ...]] = {
    "hard_plus_soft": ("hard", "soft"),
    "hard_only": ("hard",),
    "soft_only": ("soft",),
    "separated": ("hard", "soft"),
    "separated_gtprob": ("hard", "gtprob"),
    "hard_plus_gtprob": ("hard", "gtprob"),
    "hard_plus_gtprob_plus_rel": ("hard", "gtprob", "rel"),
}
_SEPARATED = ("separated", "separated_gtprob")  # a right answer earns twice the term hard
_FIELDS = {"gtprob": "vqa_gt_prob", "rel": "vqa_rel_score"}  # fields of a trial that not every file has, by term


@dataclass(frozen=True)
class Reward:
    """Says how the scores of a trial become its reward: which terms are added up, and with which weights.

    Attributes:
        mode: the reward mode, which ``rewards`` describes.
        weights: weights of its terms by name; terms that it leaves out have their default. Only the weights that differ from
            their default are kept, so that equal rewards are equal.

    Raises:
        ParameterError: the mode is unknown; a weight is of no term of the mode, or is not a number of at least 0; or all
            weights are 0.
    """

    mode: RewardMode = "hard_plus_soft"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mode not in _TERMS:
            raise ParameterError(f"reward_mode={self.mode!r} is not one of {', '.join(REWARD_MODES)}")
        for term, weight in self.weights.items():
            if term not in self.terms:
                raise ParameterError(
                    f"reward_weights: reward_mode={self.mode} has no term {term!r}; its terms are {', '.join(self.terms)}"
                )
            if not 0 <= weight < math.inf:
                raise ParameterError(f"reward_weights: {term}={weight}; a weight is a number of at least 0")
        changed = {term: float(self.weight(term)) for term in self.terms if self.weight(term) != DEFAULT_WEIGHTS[term]}
        object.__setattr__(self, "weights", changed)
        if not any(map(self.weight, self.terms)):
            raise ParameterError(f"reward_weights: all weights of reward_mode={self.mode} are 0; give one of them a value")

    @property
    def terms(self) -> tuple[str, ...]:
        """Returns the names of the terms."""
        return _TERMS[self.mode]

    @property
    def fields(self) -> tuple[str, ...]:
        """Returns the fields of a trial that the reward takes and that not every RL data file has."""
        return tuple(_FIELDS[term] for term in self.terms if term in _FIELDS)

    @property
    def label(self) -> str:
        """Names the reward in tags and results: by its mode, followed by the weights that differ from their default."""
        return f"{self.mode}:{as_text(self.weights)}" if self.weights else self.mode

    @property
    def options(self) -> dict[str, object]:
        """Returns the options of a command that give this reward, by name, without weights that are all at their default."""
        return {"reward_mode": self.mode, **({"reward_weights": self.weights} if self.weights else {})}

    @property
    def bounds(self) -> tuple[float, float]:
        """Returns the smallest and the largest reward that a trial can have.

        A reward is linear in each score, so both are found where every score is at an end of its range.
        """
        corners = np.array([*product((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (-1.0, 1.0))]).T
        correct, accuracy, gt_prob, rel_score = corners
        values = rewards(correct, accuracy, self, gt_prob=gt_prob, rel_score=rel_score)
        return float(values.min()), float(values.max())

    def weight(self, term: str) -> float:
        """Returns the weight of a term."""
        return self.weights.get(term, DEFAULT_WEIGHTS[term])

    @classmethod
    def of_label(cls, label: str) -> Reward:
        """Returns the reward that a label names; errors as for any other reward."""
        mode, _, weights = label.partition(":")
        pairs = (pair.partition("=") for pair in weights.split(",") if pair)
        return cls(cast(RewardMode, mode), {term: float(weight) for term, _, weight in pairs})


DEFAULT_REWARD = Reward()


def rewards(
    correct: np.ndarray,
    accuracy: np.ndarray,
    reward: Reward = DEFAULT_REWARD,
    *,
    gt_prob: np.ndarray | None = None,
    rel_score: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the reward of each trial, float64 in the shape of the scores.

    The terms are hard = correct, soft = accuracy, gtprob = gt_prob and rel = (1 - correct) * rel_score, each times its weight.
    By mode, the reward is:

    * ``hard_plus_soft``: hard + soft, which is in [0, 2] with the default weights;
    * ``hard_only``: hard;
    * ``soft_only``: soft;
    * ``separated``: 2 * hard + soft;
    * ``separated_gtprob``: 2 * hard + gtprob;
    * ``hard_plus_gtprob``: hard + gtprob;
    * ``hard_plus_gtprob_plus_rel``: hard + gtprob + rel. The term rel tells wrong answers apart and gives right ones nothing,
      as in the predecessor.

    Args:
        correct: ``vqa_correct``, 0 or 1.
        accuracy: ``vqa_acc_score``, in [0, 1].
        reward: the mode and the weights.
        gt_prob: ``vqa_gt_prob``, in [0, 1], NaN where a trial has none.
        rel_score: ``vqa_rel_score``, in [-1, 1], NaN where a trial has none.

    Raises:
        ParameterError: a trial lacks a score that the reward takes.
    """
    hard = np.asarray(correct, dtype=float)
    terms = {
        "hard": 2.0 * hard if reward.mode in _SEPARATED else hard,
        "soft": np.asarray(accuracy, dtype=float),
        "gtprob": np.full(hard.shape, np.nan) if gt_prob is None else np.asarray(gt_prob, dtype=float),
        "rel": (1.0 - hard) * (np.nan if rel_score is None else np.asarray(rel_score, dtype=float)),
    }
    for term in reward.terms:
        if term in _FIELDS and np.isnan(terms[term]).any():
            raise ParameterError(missing_score(reward, _FIELDS[term]))
    return sum((reward.weight(term) * terms[term] for term in reward.terms), np.zeros(hard.shape))


def missing_score(reward: Reward, name: str) -> str:
    """Returns the message about trials that lack a field which a reward takes."""
    return (
        f"reward_mode={reward.mode} needs {name} on every trial; record trials that have it by "
        f"`{command('rollout', gt_prob=True)}`, or use another reward_mode"
    )
