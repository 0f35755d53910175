"""The data gate: Great Expectations suites over the trials and queries of one RL data file, and a verdict.

The suites are ``rl_trials.json`` and ``rl_queries.json`` in ``data_checks/gx/expectations/``: thresholds and remedies
are read from there. They run in an ephemeral context, so that nothing is written to the project; whatever Great
Expectations does not answer, or answers with an exception, counts as failed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lever_mlflow.exceptions import GateError, ParameterError
from lever_mlflow.rewards import RewardMode, rewards
from lever_mlflow.rl_data import RLData, query_table, trial_table

__all__ = ["DEFAULT_PROJECT_DIR", "SEVERITIES", "Check", "GateResult", "check", "suite_digest"]

DEFAULT_PROJECT_DIR = Path(__file__).parents[1] / "data_checks"
SEVERITIES = ("critical", "warning", "info")
_SUITES = ("rl_trials", "rl_queries")
_DIGEST_CHARS = 32
_HISTOGRAM_BINS = 20
_PLAIN_WORDS = {
    "expect_column_values_to_not_be_null": "no missing value",
    "expect_column_values_to_be_unique": "no value twice",
}
_FULL_RANGE = 2.0  # of hard_plus_soft, the mode that the suites' reward thresholds are written for


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
class GateResult:
    """The gate's answer about one RL data file.

    Attributes:
        source: the file; ``vintage``: its format; ``digest``: its content digest.
        reward_mode: the rewards that were checked.
        suite_digest: content digest of both suites, 32 hex characters; changes with any threshold.
        checks: one per expectation, in the order of the suites.
        metrics: figures named ``data/...``, finite ones only.
        histogram: (left edge, right edge, trials) of the rewards.
        gx_results: what Great Expectations returned, by suite.
    """

    source: str
    vintage: str
    digest: str
    reward_mode: str
    suite_digest: str
    checks: tuple[Check, ...]
    metrics: Mapping[str, float]
    histogram: tuple[tuple[float, float, int], ...]
    gx_results: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def verdict(self) -> Literal["pass", "warning", "critical"]:
        """By the worst severity that failed; a failed ``info`` still passes."""
        failed = {check.severity for check in self.checks if not check.passed}
        if "critical" in failed:
            return "critical"
        return "warning" if "warning" in failed else "pass"

    def raise_if_critical(self) -> None:
        """Stops what would train on the data.

        Raises:
            GateError: a critical expectation failed; one line with each one's figure, what is required and what to do.
        """
        failed = [check for check in self.checks if not check.passed and check.severity == "critical"]
        if not failed:
            return
        if not self.metrics["data/n_trials"]:
            raise GateError(
                f"{self.source}: no usable trials in {self.metrics['data/n_queries']:.0f} queries "
                f"({self.metrics['data/dropped_trials']:.0f} dropped); make the RL data again with the rollout step"
            )
        found = "; ".join(f"{check.name} is {check.observed}, required {check.required}" for check in failed)
        remedies = "; ".join(dict.fromkeys(check.remedy for check in failed if check.remedy))
        raise GateError(
            f"{self.source}: RL data failed {len(failed)} critical expectations: {found}. What to do: {remedies}. "
            f"The whole table: mlflow run . -e validate -P rl_data={self.source}"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values, the raw Great Expectations results included."""
        return {**asdict(self), "verdict": self.verdict}


def check(
    rl_data: RLData, *, reward_mode: RewardMode = "hard_plus_soft", project_dir: Path = DEFAULT_PROJECT_DIR
) -> GateResult:
    """Runs both suites on RL data. Loading Great Expectations takes seconds, once; the checks a fraction of one.

    Raises:
        ParameterError: unknown reward mode, one that the data lacks figures for, or a suite that is missing or cannot
            be used; the message names the file and the expectation.
    """
    reward_max = float(rewards(np.ones(1), np.ones(1), reward_mode, gt_prob=np.ones(1))[0])
    suites = {name: _read_suite(project_dir, name) for name in _SUITES}
    tables = {"rl_trials": trial_table(rl_data, reward_mode), "rl_queries": query_table(rl_data, reward_mode)}
    checks: list[Check] = []
    gx_results: dict[str, Any] = {}
    for name, suite in suites.items():
        expectations = [_scaled(expectation, reward_max / _FULL_RANGE) for expectation in suite["expectations"]]
        gx_results[name] = _validate(name, expectations, tables[name])
        checks += _checks(name, expectations, gx_results[name])
    return GateResult(
        source=rl_data.source,
        vintage=rl_data.vintage,
        digest=rl_data.digest,
        reward_mode=reward_mode,
        suite_digest=_digest(suites),
        checks=tuple(checks),
        metrics=_metrics(rl_data, tables["rl_trials"], tables["rl_queries"]),
        histogram=_histogram(tables["rl_trials"], reward_max),
        gx_results=gx_results,
    )


def suite_digest(project_dir: Path = DEFAULT_PROJECT_DIR) -> str:
    """Content digest of both suites, 32 hex characters; changes with any threshold. Errors as ``check``."""
    return _digest({name: _read_suite(project_dir, name) for name in _SUITES})


def _read_suite(project_dir: Path, name: str) -> dict[str, Any]:
    path = project_dir / "gx" / "expectations" / f"{name}.json"
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(
            f"{path}: no such suite of the data gate; work in a clone of the repository, which holds data_checks/"
        ) from None
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path}: not a readable suite: {error}; mend the file or restore it with git") from None
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list) or not expectations:
        raise ParameterError(f"{path}: holds no expectations, so it would let everything pass; restore it with git")
    names = set()
    for i, expectation in enumerate(expectations):
        problem = _problem(expectation)
        if problem is None and expectation["meta"]["name"] in names:
            problem = "another expectation has the same meta.name"
        if problem:
            raise ParameterError(f"{path}: expectation {i}: {problem}; mend the file or restore it with git")
        names.add(expectation["meta"]["name"])
    return suite


def _problem(expectation: Any) -> str | None:
    """What keeps an entry of a suite from being used, before Great Expectations sees it."""
    if not isinstance(expectation, dict) or not isinstance(expectation.get("type"), str):
        return "has no type"
    if not isinstance(expectation.get("kwargs"), dict):
        return "has no kwargs"
    if expectation.get("severity") not in SEVERITIES:
        return f"severity is {expectation.get('severity')!r}, expected one of {', '.join(SEVERITIES)}"
    meta = expectation.get("meta")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        return "has no meta.name"
    return None


def _scaled(expectation: dict[str, Any], factor: float) -> dict[str, Any]:
    """Thresholds marked ``scales_with_reward_mode`` are written for rewards in [0, 2]; other modes differ."""
    if not expectation["meta"].get("scales_with_reward_mode"):
        return expectation
    kwargs = {
        key: value * factor if key in ("min_value", "max_value") and isinstance(value, int | float) else value
        for key, value in expectation["kwargs"].items()
    }
    return {**expectation, "kwargs": kwargs}


def _validate(name: str, expectations: list[dict[str, Any]], table: pd.DataFrame) -> dict[str, Any]:
    """Great Expectations' result as plain JSON values."""
    import great_expectations as gx
    from great_expectations.data_context.types import base

    context = gx.get_context(
        mode="ephemeral",
        project_config=base.DataContextConfig(
            analytics_enabled=False,
            progress_bars=base.ProgressBarsConfig(globally=False),
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        ),
    )
    # Built one by one: a suite given plain dicts only logs the ones it cannot use, and adding configurations replaces an
    # earlier one of the same type and column, so that a warning would displace a critical threshold.
    suite = gx.ExpectationSuite(name=name, expectations=[_expectation(name, item) for item in expectations])
    asset = context.data_sources.add_pandas("rl_data").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    return batch.validate(suite).to_json_dict()


def _expectation(suite: str, item: Mapping[str, Any]) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        return ExpectationConfiguration(**item).to_domain_obj()
    except Exception as error:  # Great Expectations and pydantic raise many kinds for a bad threshold
        reason = " ".join(str(error).split())
        raise ParameterError(
            f"{suite}.json: expectation {item['meta']['name']}: {reason}; mend the suite or restore it with git"
        ) from None


def _checks(suite: str, expectations: list[dict[str, Any]], gx_result: Mapping[str, Any]) -> list[Check]:
    by_name = {result["expectation_config"]["meta"]["name"]: result for result in gx_result["results"]}
    return [_check(suite, expectation, by_name.get(expectation["meta"]["name"])) for expectation in expectations]


def _check(suite: str, expectation: Mapping[str, Any], result: Mapping[str, Any] | None) -> Check:
    kwargs, meta = expectation["kwargs"], expectation["meta"]
    error = "no result" if result is None else _exception(result)
    return Check(
        suite=suite,
        name=meta["name"],
        column=kwargs.get("column", kwargs.get("column_A", "")),
        severity=expectation["severity"],
        passed=result is not None and result["success"] is True and error is None,
        observed=error or _observed(result["result"] if result else {}),
        required=_required(expectation["type"], kwargs),
        note=meta.get("note", ""),
        remedy=meta.get("remedy", ""),
    )


def _exception(result: Mapping[str, Any]) -> str | None:
    """The first exception's message; Great Expectations keeps one flat record or one per metric."""
    info = result.get("exception_info") or {}
    records = [info] if "raised_exception" in info else list(info.values())
    raised = [record for record in records if record["raised_exception"]]
    return " ".join(str(raised[0]["exception_message"]).split())[:120] if raised else None


def _observed(result: Mapping[str, Any]) -> str:
    if "unexpected_count" in result:
        count, total = result["unexpected_count"], result["element_count"]
        examples = ", ".join(dict.fromkeys(str(value) for value in result.get("partial_unexpected_list", [])[:3]))
        return f"{count} of {total} rows amiss" + (f" ({examples})" if examples else "")
    value = result.get("observed_value")
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _number(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, float) else None if value is None else str(value)


def _required(kind: str, kwargs: Mapping[str, Any]) -> str:
    mostly = kwargs.get("mostly", 1)
    rows = f" in {mostly:.0%} of rows" if mostly != 1 else ""
    low, high = _number(kwargs.get("min_value")), _number(kwargs.get("max_value"))
    if "value_set" in kwargs:
        return f"only {', '.join(map(str, kwargs['value_set']))}{rows}"
    if "column_B" in kwargs:
        return f"{kwargs['column_A']} = {kwargs['column_B']}{rows}"
    if low is not None and high is not None:
        return (low if low == high else f"{low} to {high}") + rows
    if low is not None:
        return f"at least {low}{rows}"
    if high is not None:
        return f"at most {high}{rows}"
    return _PLAIN_WORDS.get(kind, kind) + rows


def _metrics(rl_data: RLData, trials: pd.DataFrame, queries: pd.DataFrame) -> dict[str, float]:
    metrics: dict[str, float] = {
        "data/n_queries": len(queries),
        "data/n_trials": len(trials),
        "data/dropped_trials": sum(rl_data.dropped.values()),
    }
    if len(trials):
        metrics |= {
            "data/positive_query_rate": queries["positive"].mean(),
            "data/positive_trial_rate": trials["vqa_correct"].mean(),
            "data/reward_mean": trials["reward"].mean(),
            "data/reward_std": trials["reward"].std(),
            "data/frac_reward_zero_std": queries["zero_spread"].mean(),
        }
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _histogram(trials: pd.DataFrame, reward_max: float) -> tuple[tuple[float, float, int], ...]:
    if trials.empty:
        return ()
    values = trials["reward"].to_numpy(dtype=float)
    values = np.clip(values[np.isfinite(values)], 0.0, reward_max)
    counts, edges = np.histogram(values, bins=_HISTOGRAM_BINS, range=(0.0, reward_max))
    return tuple(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARS]
