"""What a promotion rests on: a version's data gate, its gain over random demonstrations, and its gain over the champion.

Gains are paired over the report questions of the version's own evaluation at their largest number: a question's accuracy is its
mean over shots, and over draws where a policy draws lots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from lever_mlflow.evaluation.policies import RANDOM
from lever_mlflow.evaluation.statistics import mean_interval, sign_flip_p_value
from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import PromotionSettings

__all__ = ["Condition", "Gain", "covers", "gain", "gain_over_champion", "gain_over_random", "gate_condition", "unknown"]

LEVEL = 0.05
_SAME_INPUTS = ("dataset_digest", "vlm_digest", "profile_digest", "encoder_digest", "seed")
_SAME_SETTINGS = ("pool_size", "pool_sampler")


class Gain(NamedTuple):
    """Mean paired difference in points with its 95 % bootstrap interval, and the p-value of the sign-flip test."""

    points: float
    low: float
    high: float
    p_value: float
    questions: int

    def __str__(self) -> str:
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.points:+.2f} points [{self.low:+.2f}, {self.high:+.2f}], {p_value}, {self.questions} questions"

    @property
    def better(self) -> bool:
        """Significantly above 0: by the test, and the interval lies above it."""
        return self.p_value < LEVEL and self.low > 0.0

    @property
    def worse(self) -> bool:
        """Significantly below 0."""
        return self.p_value < LEVEL and self.high < 0.0


class Condition(NamedTuple):
    """One condition of a promotion; ``says`` tells in words and numbers how it stands."""

    name: str
    met: bool
    says: str
    gain: Gain | None = None


def gate_condition(tags: Mapping[str, str]) -> Condition:
    """Neither the RL data of a version nor those of its start were critical: by the tags of its training."""
    overrides = [f"{name}: {tags[name]}" for name in ("gate_override", "start_gate_override") if name in tags]
    verdict = tags.get("gate", "missing")
    met = verdict in ("pass", "warning") and not overrides
    return Condition("gate", met, f"data gate: {'; '.join([verdict, *overrides])}")


def gain_over_random(candidate: pd.DataFrame, policy: str, seed: int) -> Condition:
    """Significantly better than random demonstrations."""
    found = gain(candidate, policy, candidate, RANDOM, seed)
    return Condition("random", found.better, f"over random demonstrations: {found}{_unless(found.better, 'not better')}", found)


def gain_over_champion(
    candidate: pd.DataFrame, policy: str, champion: pd.DataFrame, champion_policy: str, settings: PromotionSettings, seed: int
) -> Condition:
    """Not significantly worse than the champion and, with ``min_gain`` above 0, better by at least that many points."""
    found = gain(candidate, policy, champion, champion_policy, seed)
    enough = settings.min_gain == 0.0 or found.points >= settings.min_gain
    reason = "significantly worse" if found.worse else f"below min_gain={settings.min_gain:g}"
    met = enough and not found.worse
    return Condition("champion", met, f"over the champion: {found}{_unless(met, reason)}", found)


def unknown(name: str, error: Exception) -> Condition:
    """A condition of which nothing can be told, and which is therefore not met."""
    return Condition(name, False, f"no evidence on {name}: {error}")


def covers(records: pd.DataFrame, result: Mapping[str, Any], wanted: pd.DataFrame, wanted_result: Mapping[str, Any]) -> bool:
    """Whether an evaluation asked all that another one asked: its questions at its shots, the pools drawn alike."""
    same = all(result["inputs"].get(name) == wanted_result["inputs"].get(name) for name in _SAME_INPUTS)
    same &= all(result["settings"][name] == wanted_result["settings"][name] for name in _SAME_SETTINGS)
    asked, wanted_asked = (
        set(zip(rows.question_id, rows.shots, strict=True))
        for rows in (frame[(frame.part == "report") & (frame.shots > 0)] for frame in (records, wanted))
    )
    return same and wanted_asked <= asked


def gain(first: pd.DataFrame, policy: str, second: pd.DataFrame, other: str, seed: int) -> Gain:
    """How much better a policy of one evaluation is than one of another, on all that the first was asked.

    Raises:
        DataError: an evaluation lacks its policy, or a question of it.
    """
    scores, others = _accuracies(first, policy), _accuracies(second, other)
    paired = scores - others.reindex(scores.index)
    if paired.empty or paired.isna().any():
        raise DataError(f"records of {policy} and {other} do not cover the same questions; evaluate again")
    differences_Q = paired.groupby("question_id").mean().to_numpy()
    low, high = mean_interval(differences_Q, 1.0 - LEVEL, seed)
    p_value = sign_flip_p_value(differences_Q)
    return Gain(100.0 * float(differences_Q.mean()), 100.0 * low, 100.0 * high, p_value, len(differences_Q))


def _accuracies(records: pd.DataFrame, policy: str) -> pd.Series[float]:
    """Mean over draws by question and shots."""
    rows = records[(records.part == "report") & (records.policy == policy)]
    return rows.groupby(["question_id", "shots"]).accuracy.mean()


def _unless(met: bool, reason: str) -> str:
    return "" if met else f": {reason}"
