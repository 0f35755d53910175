"""Weighs what a promotion rests on: its data gate, and its gains over random picks, similarity search and the champion.

Gains are paired over the report questions of the version's own evaluation at their largest number: a question's accuracy is its
mean over shots, and over draws where a policy draws lots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from lever_mlflow.evaluation.policies import RANDOM, SIMILARITY_BASELINES
from lever_mlflow.evaluation.records import EvaluationRecords, images_of
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.evaluation.rounding import decimals, interval_text
from lever_mlflow.evaluation.statistics import mean_interval, sign_flip_p_value
from lever_mlflow.evaluation.strongest import Strongest, strongest
from lever_mlflow.exceptions import DataError
from lever_mlflow.registry.version_tags import VersionTag, overrides
from lever_mlflow.settings import PromotionSettings

__all__ = [
    "Condition",
    "ConditionName",
    "Evaluated",
    "Gain",
    "covers",
    "gain",
    "gain_over_champion",
    "gain_over_random",
    "gain_over_similarity",
    "gate_condition",
    "metrics",
    "unknown",
]

LEVEL = 0.05
_DIGITS = 9  # of a gain in points; below them, differences that cancel out leave what rounding left of them
_NOT_BETTER, _IS_NEEDED = "not significantly better", f"p < {LEVEL:g} and an interval above 0 are needed"
ConditionName = Literal["gate", "random", "similarity", "champion"]
_SAME_INPUTS = ("dataset_digest", "vlm_digest", "profile_digest", "encoder_digest", "seed")
_SAME_SETTINGS = ("pool_size", "pool_sampler", "order")


class Evaluated(NamedTuple):
    """Holds a version's evaluation, its records, and the version's policy in them."""

    evaluation: Evaluation
    records: EvaluationRecords
    policy: str


class Gain(NamedTuple):
    """Holds a mean paired difference in points with its 95 % bootstrap interval, and the p-value of the sign-flip test."""

    points: float
    low: float
    high: float
    p_value: float
    questions: int

    def __str__(self) -> str:
        p_value = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        interval = interval_text((self.low, self.high))
        return f"{decimals(self.points, signed=True)} points {interval}, {p_value}, {self.questions} questions"

    @property
    def better(self) -> bool:
        """Says whether the difference is significantly above 0: by the test, and the interval lies above 0."""
        return self.p_value < LEVEL and self.low > 0.0

    @property
    def worse(self) -> bool:
        """Says whether the difference is significantly below 0."""
        return self.p_value < LEVEL and self.high < 0.0


class Condition(NamedTuple):
    """Describes one condition of a promotion; ``says`` tells in words and numbers how it stands."""

    name: ConditionName
    met: bool
    says: str
    gain: Gain | None = None


def gate_condition(tags: Mapping[str, str]) -> Condition:
    """Demands that neither the RL data of a version nor those of its start were critical, by the version's tags."""
    let_through = overrides(tags)
    verdict = tags.get(VersionTag.GATE, "missing")
    met = verdict in ("pass", "warning") and not let_through
    overridden = [f"{name}: {expectations}" for name, expectations in let_through.items()]
    return Condition("gate", met, f"data gate: {'; '.join([verdict, *overridden])}")


def gain_over_random(candidate: Evaluated) -> Condition:
    """Demands that a version is significantly better than random demonstrations."""
    over = gain(candidate, candidate._replace(policy=RANDOM))
    reason = _unless(over.better, f"{_NOT_BETTER}; {_IS_NEEDED}")
    return Condition("random", over.better, f"over random demonstrations: {over}{reason}", over)


def gain_over_similarity(candidate: Evaluated, settings: PromotionSettings) -> Condition:
    """Demands that a version is significantly better than the strongest similarity baseline, in the pool or in the whole set.

    With ``similarity=not-worse`` it demands only that the version is not significantly worse, and says so.

    Raises:
        DataError: the evaluation has no similarity baseline, or none on the same questions.
    """
    baseline = _strongest_similarity(candidate.records).policy
    over = gain(candidate, candidate._replace(policy=baseline))
    if settings.similarity == "better":
        met, reason, relaxed = over.better, f"{_NOT_BETTER}, as similarity=better asks; {_IS_NEEDED}", ""
    else:
        met, reason, relaxed = not over.worse, "significantly worse", " (similarity=not-worse refuses only a significant loss)"
    says = f"over {baseline}, the strongest similarity baseline: {over}{relaxed}{_unless(met, reason)}"
    return Condition("similarity", met, says, over)


def gain_over_champion(candidate: Evaluated, champion: Evaluated, settings: PromotionSettings) -> Condition:
    """Demands that a version has gained at least ``min_gain`` points over the champion, and more than none.

    A version that is exactly as accurate as the champion, as one with the same picks is, leaves the champion in its place.
    """
    over, least = gain(candidate, champion), settings.min_gain
    needed = f"a gain of at least {least:g} points is needed (min_gain)" if least else "a gain above 0 points is needed"
    if over.worse:
        reason = "significantly less accurate than the champion"
    elif over.points < 0.0:
        reason = "less accurate than the champion, though not significantly"
    elif over.points == 0.0:
        reason = "exactly as accurate as the champion, which stays"
    elif over.points < least:
        reason = "more accurate than the champion, but by too little"
    else:
        reason = ""
    return Condition("champion", not reason, f"over the champion: {over}{_unless(not reason, f'{reason}; {needed}')}", over)


def unknown(name: ConditionName, error: Exception) -> Condition:
    """Describes a condition that is not met because there is no evidence on it."""
    return Condition(name, False, f"no evidence on {name}: {error}")


def covers(evaluated: Evaluated, candidate: Evaluated) -> bool:
    """Says whether an evaluation asked all that the candidate's asked: its questions at its shots, with pools drawn alike."""
    evaluation, other = evaluated.evaluation, candidate.evaluation
    same_inputs = all(getattr(evaluation.inputs, name) == getattr(other.inputs, name) for name in _SAME_INPUTS)
    same_settings = all(getattr(evaluation.settings, name) == getattr(other.settings, name) for name in _SAME_SETTINGS)
    return same_inputs and same_settings and candidate.records.question_shots <= evaluated.records.question_shots


def gain(candidate: Evaluated, other: Evaluated) -> Gain:
    """Measures how much better a version is than another policy, on all that the version was asked.

    Raises:
        DataError: an evaluation lacks its policy, or a question of the candidate's.
    """
    accuracies, others = (side.records.by_question_and_shots(side.policy) for side in (candidate, other))
    paired = accuracies - others.reindex(accuracies.index)
    if paired.empty or paired.isna().any():
        policies = f"{candidate.policy} and {other.policy}"
        raise DataError(f"records of {policies} do not cover the same questions; run the evaluate step again with rerun=true")
    by_question = paired.groupby(["question_id", "image_id"]).mean()
    differences_Q, images_Q = by_question.to_numpy(), images_of(by_question)
    low, high = mean_interval(differences_Q, 1.0 - LEVEL, candidate.evaluation.inputs.seed, images_Q)
    points = round(100.0 * float(differences_Q.mean()), _DIGITS) + 0.0  # which makes 0 of -0
    return Gain(points, 100.0 * low, 100.0 * high, sign_flip_p_value(differences_Q, images_Q), len(differences_Q))


def metrics(conditions: Iterable[Condition]) -> dict[str, float]:
    """Returns the gains of conditions by the names of metrics, such as ``gain/over_random`` and ``gain/over_random_low``."""
    return {
        f"gain/over_{condition.name}{suffix}": value
        for condition in conditions
        if (over := condition.gain) is not None
        for suffix, value in (("", over.points), ("_low", over.low), ("_high", over.high), ("_p", over.p_value))
    }


def _strongest_similarity(records: EvaluationRecords) -> Strongest:
    """Finds the similarity baseline with the highest mean over shots."""
    accuracies = {policy: records.by_question(policy) for policy in SIMILARITY_BASELINES}
    means: dict[tuple[str, int | None], float] = {(p, None): float(of.mean()) for p, of in accuracies.items() if of is not None}
    baseline = strongest(means, None)
    if baseline is None:
        raise DataError(
            "the evaluation has no similarity baseline to compare with; run the evaluate step again with rerun=true"
        )
    return baseline


def _unless(met: bool, reason: str) -> str:
    return "" if met else f": {reason}"
