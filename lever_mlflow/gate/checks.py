"""Checks one RL data file, alone or against another one: makes the tables, runs the suites and puts the result together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.gate import drift
from lever_mlflow.gate.result import Check, GateResult, Method, metric_name
from lever_mlflow.gate.running import run_suite
from lever_mlflow.gate.suites import (
    DATA_SUITES,
    DEFAULT_PROJECT_DIR,
    DRIFT_SUITES,
    Suites,
    read_suites,
    resolved,
    suite_digest,
)
from lever_mlflow.gate.tables import evaluation_table, query_table, trial_table
from lever_mlflow.settings import EvalSettings
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward
from lever_mlflow.trials.rl_data import RLData

__all__ = ["check"]

_METHODS = ("beam", "sample", "retrieval", "random", "global_search")


class _Tables(NamedTuple):
    """Holds the tables of one RL data file: a row per trial, and a row per query."""

    trials: pd.DataFrame
    queries: pd.DataFrame


def check(
    rl_data: RLData,
    *,
    reward: Reward = DEFAULT_REWARD,
    shots: int = max(EvalSettings.shots),
    train: Sequence[Sample] | None = None,
    reference: RLData | None = None,
    thresholds: Mapping[str, float | str] | None = None,
    project_dir: Path = DEFAULT_PROJECT_DIR,
) -> GateResult:
    """Runs the suites on RL data. Loading Great Expectations takes seconds once; the checks take a fraction of a second.

    Args:
        rl_data: the data to check.
        reward: how the scores of a trial become its reward.
        shots: the largest number of demonstrations that evaluation will use; pools must be larger.
        train: the training items with which ``match_items`` has matched the data. With them, pools are searched for other
            questions about the query's image.
        reference: other RL data. With them, the suites for drift run too.
        thresholds: values that replace those of the suites, as ``suites.read_suites`` takes them.
        project_dir: folder of the Great Expectations project.

    Raises:
        ParameterError: a trial lacks a score that the reward takes, a threshold names nothing, or a suite is missing or
            cannot be used. The message names the file and the expectation.
    """
    suites = read_suites(project_dir, thresholds)
    data = _tables(rl_data, reward, train)
    tables = dict(zip(DATA_SUITES, (*data, evaluation_table(rl_data, data.trials)), strict=True))
    parameters: dict[str, Any] = {"min_pool_size": shots + 1}
    if reference is not None:
        other = _tables(reference, reward)
        pairs = drift.pairs(*data, *other)
        differences = drift.differences(pairs, drift.shared(rl_data, reference))
        tables |= dict(zip(DRIFT_SUITES, (differences, data.trials), strict=True))
        parameters["reference_rewards"] = drift.reward_partition(other.trials["reward"].to_numpy(), reward.bounds)
    checks, gx_results = _run(suites, tables, parameters, reward.bounds)
    result = GateResult(
        source=rl_data.source,
        vintage=rl_data.vintage,
        digest=rl_data.digest,
        reward_mode=reward.label,
        suite_digest=suite_digest(project_dir, thresholds),
        checks=tuple(checks),
        metrics=_metrics(rl_data, data, tables.get("rl_drift")),
        histogram=_histogram(data.trials, reward.bounds),
        positives_per_query=_counts(data.queries["n_positive"]),
        methods=_methods(data.trials),
        items=str(rl_data.match or ""),
        dropped=dict(rl_data.dropped),
        gx_results=gx_results,
    )
    if reference is None:
        return result
    return replace(
        result,
        reference=reference.source,
        comparison=_comparison(rl_data.source, reference.source, checks, pairs),
        reference_histogram=_histogram(other.trials, reward.bounds),
    )


def _tables(data: RLData, reward: Reward, train: Sequence[Sample] | None = None) -> _Tables:
    try:
        trials = trial_table(data, reward)
    except ParameterError as error:
        raise ParameterError(f"{data.source}: {error}") from None
    return _Tables(trials, query_table(data, trials, train))


def _run(
    suites: Suites, tables: Mapping[str, pd.DataFrame], parameters: Mapping[str, Any], bounds: tuple[float, float]
) -> tuple[list[Check], dict[str, Any]]:
    """Runs a suite over each table. Returns all checks, and Great Expectations' own results by suite.

    ``bounds`` are the smallest and the largest reward, to which the suites' reward thresholds are scaled.
    """
    low, high = bounds
    of_suite = {"rl_drift": (0.0, high - low)}  # a row of differences between rewards
    checks: list[Check] = []
    gx_results: dict[str, Any] = {}
    for name, table in tables.items():
        expectations = [resolved(expectation, parameters, of_suite.get(name, bounds)) for expectation in suites[name]]
        suite_checks, gx_results[name] = run_suite(name, expectations, table)
        checks += suite_checks
    return checks, gx_results


def _comparison(source: str, reference: str, checks: Sequence[Check], pairs: Mapping[str, drift.Pair]) -> str:
    """Says in one line whether runs on these data can be compared with runs on the reference, and which figures decide it."""
    failed: dict[str, Check] = {}  # by figure; the critical expectation comes before the warning
    for check in checks:
        if check.suite in DRIFT_SUITES and not check.passed:
            failed.setdefault(check.name.removeprefix("drift_").removesuffix("_warning"), check)
    severities = {check.severity for check in failed.values()}
    answer = "can be compared"
    if "critical" in severities:
        answer = "cannot be compared"
    elif "warning" in severities:
        answer = "can be compared with care"
    figures = [
        str(pairs[name]) if name in pairs else f"{name.replace('_', ' ')} {check.observed} (required {check.required})"
        for name, check in failed.items()
    ]
    return f"{source} and {reference} {answer}: {'; '.join(figures or map(str, pairs.values()))}"


def _metrics(rl_data: RLData, data: _Tables, differences: pd.DataFrame | None) -> dict[str, float]:
    """Returns the figures of the data, and of the comparison where there is one, by metric name. Only finite ones are in it."""
    trials, queries = data
    dropped = sum(rl_data.dropped.values())
    figures: dict[str, float] = {
        "n_queries": len(queries),
        "n_trials": len(trials),
        "dropped_trials": dropped,
        "dropped_share": dropped / max(len(trials) + dropped, 1),
    }
    if len(trials):
        figures |= {
            "positive_query_rate": queries["positive"].mean(),
            "positive_trial_rate": trials["vqa_correct"].mean(),
            "reward_mean": trials["reward"].mean(),
            "reward_std": trials["reward"].std(),
            "frac_reward_zero_std": queries["zero_spread"].mean(),
            "trials_per_query": queries["n_trials"].mean(),
            "pool_size_min": queries["pool_size"].min(),
        }
        figures |= {f"share_{method.name}": method.share for method in _methods(trials)}
    if differences is not None:
        figures |= {f"drift_{name}": value for name, value in differences.iloc[0].items()}
    return {metric_name(figure): float(value) for figure, value in figures.items() if math.isfinite(value)}


def _methods(trials: pd.DataFrame) -> tuple[Method, ...]:
    names = trials["gen_method"].where(trials["gen_method"].isin(_METHODS), "other")
    return tuple(_method(name, trials[names == name], len(trials)) for name in (*_METHODS, "other"))


def _method(name: str, trials: pd.DataFrame, n_all: int) -> Method:
    share = len(trials) / max(n_all, 1)
    return Method(name, len(trials), share, _mean(trials["vqa_correct"]), _mean(trials["reward"]))


def _counts(values: pd.Series) -> tuple[tuple[int, int], ...]:
    """Returns each value with the number of times that it occurs, ascending by value."""
    numbers, counts = np.unique(values.to_numpy(), return_counts=True)
    return tuple(zip(numbers.tolist(), counts.tolist(), strict=True))


def _mean(values: pd.Series) -> float | None:
    """Returns the mean, or None where there are no values or the mean is not finite."""
    mean = float(values.mean()) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def _histogram(trials: pd.DataFrame, bounds: tuple[float, float]) -> tuple[tuple[float, float, float], ...]:
    partition = drift.reward_partition(trials["reward"].to_numpy(), bounds)
    edges = partition["bins"]
    return tuple(zip(edges[:-1], edges[1:], partition["weights"], strict=True)) if len(trials) else ()
