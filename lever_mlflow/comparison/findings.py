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
    "IdenticalRuns",
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
    """Names the run to be taken by its label, and the rule that chose it; ``rules.choice`` says what the rules are."""

    run: str | None
    rule: Literal["alone", "no_accuracy", "not_comparable", "undecided", "unknown", "identical", "better", "closest", "none"]


class NotComparable(_Record):
    """Finds that runs differ in more than what is meant to differ, or that it is undecided which of several fields is meant."""

    rule: Literal["not_comparable", "undecided"]
    fields: tuple[str, ...]


class FewPositive(_Record):
    """Finds that few queries of the RL data have a positive trial."""

    rule: Literal["few_positive"] = "few_positive"
    run: str
    queries: int
    positive: int


class LittleContrast(_Record):
    """Finds that the rewards of a group hardly differ; ``advantage_std`` is the largest of all epochs."""

    rule: Literal["no_contrast"] = "no_contrast"
    run: str
    advantage_std: float


class SameRewards(_Record):
    """Finds that most groups have equal rewards; ``share`` is the smallest of all epochs."""

    rule: Literal["same_rewards"] = "same_rewards"
    run: str
    share: float


class KlTrend(_Record):
    """Finds that the KL rises or falls throughout: its first and last value, and the change in percent; None from 0."""

    rule: Literal["kl_rising", "kl_falling"]
    run: str
    values: tuple[float, float]
    change: float | None


class DifferenceFinding(_Record):
    """Finds a difference between two runs that is significant, or that the largest one is not."""

    rule: Literal["difference", "no_difference"]
    run: str
    reference: str
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
    run: str
    baseline: str
    size: int
    points: float
    interval_holm: Interval
    accuracies: tuple[float, float]


class EqualEpochs(_Record):
    """Finds that two epochs have the same accuracy in all cells."""

    rule: Literal["epochs_equal"] = "epochs_equal"
    run: str
    epochs: tuple[int, int]
    cells: int


class IdenticalRuns(_Record):
    """Finds that runs have the same accuracy in every cell, each at its best or last epoch.

    Attributes:
        cells: how many there are.
        picks: the least share of questions for which two of the runs pick the same; None where that is not known.
    """

    rule: Literal["runs_identical"] = "runs_identical"
    runs: tuple[str, ...]
    cells: int
    picks: float | None


class SamePicks(_Record):
    """Finds that the best epochs of two runs pick the same for every question."""

    rule: Literal["same_picks"] = "same_picks"
    runs: tuple[str, str]
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
    | IdenticalRuns
    | SamePicks
    | OracleFinding
    | MissingParts
)
