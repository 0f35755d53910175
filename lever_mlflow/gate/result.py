"""The gate's answer: every expectation with what was found, the figures, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lever_mlflow.exceptions import GateError
from lever_mlflow.gate.suites import DRIFT_SUITES

__all__ = ["Check", "GateResult", "Method"]


@dataclass(frozen=True)
class Check:
    """One expectation and what was found; ``observed`` and ``required`` are ready to print."""

    suite: str
    name: str
    column: str
    severity: str
    passed: bool
    observed: str
    required: str
    note: str
    remedy: str


@dataclass(frozen=True)
class Method:
    """What the trials of one generation method earned; rates are None without trials."""

    name: str
    n_trials: int
    share: float
    positive_rate: float | None
    reward_mean: float | None


@dataclass(frozen=True)
class GateResult:
    """The gate's answer about one RL data file.

    Attributes:
        source: the file; ``vintage``: its format; ``digest``: its content digest.
        reward_mode: the rewards that were checked.
        suite_digest: content digest of the suites with their overrides, 32 hex characters; changes with any threshold.
        checks: one per expectation, in the order of the suites.
        metrics: figures named ``data/...``, finite ones only.
        histogram: (left edge, right edge, share of trials) of the rewards.
        positives_per_query: (positive trials, queries that have so many), ascending.
        methods: the four generation methods, and ``other``.
        reference: the data that these were compared with; ``comparison``: what came out, in one line. Empty without one.
        reference_histogram: as ``histogram``.
        gx_results: what Great Expectations returned, by suite.
    """

    source: str
    vintage: str
    digest: str
    reward_mode: str
    suite_digest: str
    checks: tuple[Check, ...]
    metrics: Mapping[str, float]
    histogram: tuple[tuple[float, float, float], ...]
    positives_per_query: tuple[tuple[int, int], ...]
    methods: tuple[Method, ...]
    reference: str = ""
    comparison: str = ""
    reference_histogram: tuple[tuple[float, float, float], ...] = ()
    gx_results: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def verdict(self) -> Literal["pass", "warning", "critical"]:
        """By the worst severity that failed; a failed ``info`` still passes."""
        failed = {check.severity for check in self.checks if not check.passed}
        if "critical" in failed:
            return "critical"
        return "warning" if "warning" in failed else "pass"

    @property
    def failed_critical(self) -> tuple[str, ...]:
        """Names of the critical expectations that failed."""
        return tuple(check.name for check in self.checks if not check.passed and check.severity == "critical")

    def raise_if_critical(self) -> None:
        """Stops what would train on the data.

        Raises:
            GateError: a critical expectation failed; one line with each one's figure, what is required and what to do.
        """
        failed = [check for check in self.checks if check.name in self.failed_critical]
        if not failed:
            return
        if not self.metrics["data/n_trials"]:
            raise GateError(
                f"{self.source}: no usable trials in {self.metrics['data/n_queries']:.0f} queries "
                f"({self.metrics['data/dropped_trials']:.0f} dropped); make the RL data again with the rollout step"
            )
        own = [check for check in failed if check.suite not in DRIFT_SUITES]
        found = "; ".join(f"{check.name} is {check.observed}, required {check.required}" for check in own)
        about = [f"{self.source}: RL data failed {len(own)} critical expectations: {found}"] if own else []
        about += [self.comparison] if len(own) < len(failed) else []
        remedies = "; ".join(dict.fromkeys(check.remedy for check in failed if check.remedy))
        raise GateError(
            f"{'. '.join(about)}. What to do: {remedies}. The whole table: mlflow run . -e validate "
            f"-P rl_data={self.source}. To go on nevertheless: -P on_bad_data=warn"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values, the raw Great Expectations results included."""
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GateResult:
        """The result that ``to_json`` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        values = {name: value for name, value in content.items() if name != "verdict"}
        return cls(
            **{
                **values,
                "checks": tuple(Check(**check) for check in values["checks"]),
                "methods": tuple(Method(**method) for method in values["methods"]),
                **{
                    name: tuple(tuple(row) for row in values[name])
                    for name in ("histogram", "positives_per_query", "reference_histogram")
                },
            }
        )
