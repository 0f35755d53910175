"""Holds the gate's answer about one RL data file: every expectation with its figure, figures of the data, the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from lever_mlflow.exceptions import GateError
from lever_mlflow.files.records import first_misfit
from lever_mlflow.gate.suites import DRIFT_SUITES, Severity
from lever_mlflow.invocation import command

__all__ = ["Check", "GateResult", "Method", "Verdict", "metric_name"]

Verdict = Literal["pass", "warning", "critical"]
_STRICT = ConfigDict(extra="forbid")


def metric_name(figure: str) -> str:
    """Returns the name under which a figure of the data is logged to MLflow, such as ``data/reward_mean``."""
    return f"data/{figure}"


@with_config(_STRICT)
@dataclass(frozen=True)
class Check:
    """Describes one expectation and how it came out; ``observed`` and ``required`` are texts to print.

    An expectation that nothing is known for is not ``checked``, and does not fail.
    """

    suite: str
    name: str
    column: str
    severity: Severity
    passed: bool
    observed: str
    required: str
    note: str
    remedy: str
    checked: bool = True


@with_config(_STRICT)
@dataclass(frozen=True)
class Method:
    """Describes the trials of one generation method. The rate and the mean are None where the method has no trials."""

    name: str
    n_trials: int
    share: float
    positive_rate: float | None
    reward_mean: float | None


@with_config(_STRICT)
@dataclass(frozen=True)
class GateResult:
    """Holds the gate's answer about one RL data file.

    Attributes:
        source: the file.
        vintage: the vintage of its format.
        digest: the digest of its content.
        reward_mode: the reward mode that the rewards were computed with.
        suite_digest: digest of the suites with their overrides, 32 hex characters; it changes with any threshold.
        checks: one per expectation, in the order of the suites.
        metrics: finite figures by the names of ``metric_name``.
        histogram: distribution of the rewards, as (left edge, right edge, share of trials) per bin.
        positives_per_query: (number of positive trials, number of queries with that many), ascending.
        methods: the four generation methods, then ``other``.
        reference: the file that this one was compared with; empty without a comparison.
        comparison: the result of that comparison in one line; empty without a comparison.
        reference_histogram: distribution of the reference's rewards, like ``histogram``.
        items: how the indices of the data were matched with the items of the data set, in words; empty if they were not.
        dropped: number of trials that are not used, by reason.
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
    items: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    gx_results: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """Returns the worst severity among the failed expectations. Data that fail nothing worse than ``info`` pass."""
        severities = {check.severity for check in self.checks if not check.passed}
        if "critical" in severities:
            return "critical"
        return "warning" if "warning" in severities else "pass"

    @property
    def failed_critical(self) -> tuple[str, ...]:
        """Returns the names of the critical expectations that failed."""
        return tuple(check.name for check in self._critical())

    def count(self, figure: str) -> int:
        """Returns a figure that is a number of things, such as ``n_trials``."""
        return round(self.metrics[metric_name(figure)])

    def raise_if_critical(self) -> None:
        """Stops whatever would be trained on data that fail a critical expectation.

        Raises:
            GateError: a critical expectation failed. The message is one line, which names each such expectation with its
                figure, what is required and what to do.
        """
        checks = self._critical()
        if not checks:
            return
        if not self.count("n_trials"):
            raise GateError(
                f"{self.source}: there are no usable trials in {self.count('n_queries')} queries, and "
                f"{self.count('dropped_trials')} trials were dropped; record the RL data again with "
                f"`{command('rollout', rerun=True)}`"
            )
        remedies = "; ".join(dict.fromkeys(check.remedy for check in checks if check.remedy))
        raise GateError(
            f"{'. '.join(self._failures(checks))}. What to do: {remedies}. To see all expectations, run "
            f"`{command('validate', rl_data=self.source, verbose=True)}`. "
            f"To train on these data all the same, add `-P on_bad_data=warn`"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the whole result as plain JSON values, with the verdict and the raw Great Expectations results."""
        return {**_ADAPTER.dump_python(self, mode="json"), "verdict": self.verdict}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GateResult:
        """Returns the result that ``to_json`` wrote.

        Raises:
            ValueError: the content is not a result; the message is one line, which names the first wrong field.
        """
        if not isinstance(content, Mapping):
            raise ValueError("not a result of the data gate: it is no JSON object")
        try:
            return _ADAPTER.validate_python({name: value for name, value in content.items() if name != "verdict"})
        except ValidationError as error:
            raise ValueError(f"not a result of the data gate: {first_misfit(error)}") from None

    def _critical(self) -> list[Check]:
        return [check for check in self.checks if not check.passed and check.severity == "critical"]

    def _failures(self, checks: Sequence[Check]) -> list[str]:
        """Returns one sentence about the data themselves and one about the comparison, each where something failed there."""
        data_checks = [check for check in checks if check.suite not in DRIFT_SUITES]
        sentences = []
        if data_checks:
            figures = "; ".join(f"{check.name}: {check.observed} (required: {check.required})" for check in data_checks)
            sentences.append(f"{self.source}: RL data failed {len(data_checks)} critical expectations: {figures}")
        if len(data_checks) < len(checks):
            sentences.append(self.comparison)
        return sentences


_ADAPTER = TypeAdapter(GateResult)
