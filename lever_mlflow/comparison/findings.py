"""Describes what a comparison can find: a record per rule, with the figures that the rule rests on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from lever_mlflow.evaluation.answering import BestSingle

__all__ = [
    "BaselineFinding",
    "Choice",
    "DifferenceFinding",
    "EqualEpochs",
    "FewPositive",
    "Finding",
    "Interval",
    "Kind",
    "KlTrend",
    "LittleContrast",
    "MissingParts",
    "NotComparable",
    "OracleFinding",
    "SamePicks",
    "SameRewards",
]

Interval = tuple[float, float]  # in points
Kind = Literal["paired", "bound"]  # of a test: on the same questions, or by a bound where there are no records per question


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(_Record):
    """Names the beta to be taken, and the rule that chose it; ``rules.choice`` says what the rules are."""

    beta: float | None
    rule: Literal["alone", "not_comparable", "unknown", "better", "closest"]


class NotComparable(_Record):
    """Finds that runs differ in more than beta."""

    rule: Literal["not_comparable"] = "not_comparable"
    fields: tuple[str, ...]


class FewPositive(_Record):
    """Finds that few queries of the RL data have a positive trial."""

    rule: Literal["few_positive"] = "few_positive"
    kl_beta: float
    queries: int
    positive: int


class LittleContrast(_Record):
    """Finds that the rewards of a group hardly differ; ``advantage_std`` is the largest of all epochs."""

    rule: Literal["no_contrast"] = "no_contrast"
    kl_beta: float
    advantage_std: float


class SameRewards(_Record):
    """Finds that most groups have equal rewards; ``share`` is the smallest of all epochs."""

    rule: Literal["same_rewards"] = "same_rewards"
    kl_beta: float
    share: float


class KlTrend(_Record):
    """Finds that the KL rises or falls throughout: its first and last value, and the change in percent; None from 0."""

    rule: Literal["kl_rising", "kl_falling"]
    kl_beta: float
    values: tuple[float, float]
    change: float | None


class DifferenceFinding(_Record):
    """Finds a difference between two betas that is significant, or that the largest one is not."""

    rule: Literal["difference", "no_difference"]
    beta: float
    reference: float
    size: int
    shots: int
    points: float
    interval_holm: Interval
    p_holm: float
    kind: Kind
    questions_needed: int | None


class BaselineFinding(_Record):
    """Finds how a best epoch compares with a baseline."""

    rule: Literal["baseline_up", "baseline_down", "no_baseline_difference"]
    beta: float
    baseline: str
    size: int
    points: float
    interval_holm: Interval
    accuracies: tuple[float, float]


class EqualEpochs(_Record):
    """Finds that two epochs have the same accuracy in all cells."""

    rule: Literal["epochs_equal"] = "epochs_equal"
    kl_beta: float
    epochs: tuple[int, int]
    cells: int


class SamePicks(_Record):
    """Finds that the best epochs of two betas, which are written as text, pick the same for every question."""

    rule: Literal["same_picks"] = "same_picks"
    betas: tuple[str, str]
    shots: tuple[int, ...]


class OracleFinding(BestSingle):
    """Finds how much a single demonstration can win."""

    rule: Literal["oracle"] = "oracle"


class MissingParts(_Record):
    """Finds that cells and metrics are missing."""

    rule: Literal["missing"] = "missing"
    cells: int


Finding = (
    NotComparable
    | FewPositive
    | LittleContrast
    | SameRewards
    | KlTrend
    | DifferenceFinding
    | BaselineFinding
    | EqualEpochs
    | SamePicks
    | OracleFinding
    | MissingParts
)
