"""What the data gate looks at: tables of one RL data file, or of it and another, through the suites to a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.gate import drift
from lever_mlflow.gate.result import Check, GateResult, Method
from lever_mlflow.gate.running import run_suite
from lever_mlflow.gate.suites import DATA_SUITES, DEFAULT_PROJECT_DIR, DRIFT_SUITES, read_suites, resolved, suite_digest
from lever_mlflow.gate.tables import evaluation_table, query_table, trial_table
from lever_mlflow.settings import EvalSettings, RewardMode
from lever_mlflow.trials.rewards import rewards
from lever_mlflow.trials.rl_data import RLData

__all__ = ["check"]

_METHODS = ("beam", "sample", "retrieval", "random")
_FULL_RANGE = 2.0  # of hard_plus_soft, the mode that the suites' reward thresholds are written for


def check(
    rl_data: RLData,
    *,
    reward_mode: RewardMode = "hard_plus_soft",
    shots: int = max(EvalSettings.shots),
    train: Sequence[Sample] | None = None,
    reference: RLData | None = None,
    thresholds: Mapping[str, float | str] | None = None,
    project_dir: Path = DEFAULT_PROJECT_DIR,
) -> GateResult:
    """Runs the suites on RL data. Loading Great Expectations takes seconds, once; the checks a fraction of one.

    Args:
        shots: the most demonstrations that evaluation will use; pools must be larger.
        train: the data set's training items; with them, pools are searched for other questions about the query's image.
        reference: other RL data; with them, the suites for drift run too.
        thresholds: values instead of the suites' own, as ``suites.read_suites`` takes them.

    Raises:
        ParameterError: unknown reward mode, one that the data lacks figures for, a threshold that names nothing, or a
            suite that is missing or cannot be used; the message names the file and the expectation.
    """
    suites = read_suites(project_dir, thresholds)
    reward_max = float(rewards(np.ones(1), np.ones(1), reward_mode, gt_prob=np.ones(1))[0])
    trials = trial_table(rl_data, reward_mode)
    queries = query_table(rl_data, trials, train)
    tables = dict(zip(DATA_SUITES, (trials, queries, evaluation_table(rl_data, trials)), strict=True))
    parameters: dict[str, Any] = {"min_pool_size": shots + 1}
    pairs: dict[str, drift.Pair] = {}
    other: dict[str, Any] = {}
    if reference is not None:
        other_trials = trial_table(reference, reward_mode)
        pairs = drift.pairs(trials, queries, other_trials, query_table(reference, other_trials))
        differences = drift.differences(pairs, drift.shared(rl_data, reference))
        tables |= dict(zip(DRIFT_SUITES, (differences, trials), strict=True))
        parameters["reference_rewards"] = drift.reward_partition(other_trials["reward"].to_numpy(), reward_max)
        other = {"reference": reference.source, "reference_histogram": _histogram(other_trials, reward_max)}
    checks: list[Check] = []
    gx_results: dict[str, Any] = {}
    for name, table in tables.items():
        expectations = [resolved(expectation, parameters, reward_max / _FULL_RANGE) for expectation in suites[name]]
        found, gx_results[name] = run_suite(name, expectations, table)
        checks += found
    if reference is not None:
        other["comparison"] = _comparison(rl_data.source, reference.source, checks, pairs)
    return GateResult(
        source=rl_data.source,
        vintage=rl_data.vintage,
        digest=rl_data.digest,
        reward_mode=reward_mode,
        suite_digest=suite_digest(project_dir, thresholds),
        checks=tuple(checks),
        metrics=_metrics(rl_data, trials, queries, tables.get("rl_drift")),
        histogram=_histogram(trials, reward_max),
        positives_per_query=_counts(queries["n_positive"]),
        methods=_methods(trials),
        gx_results=gx_results,
        **other,
    )


def _comparison(source: str, reference: str, checks: Sequence[Check], pairs: Mapping[str, drift.Pair]) -> str:
    """One line: may runs on these data be compared with runs on the reference?"""
    failed: dict[str, Check] = {}  # by figure, the critical expectation before the warning
    for check in checks:
        if check.suite in DRIFT_SUITES and not check.passed:
            failed.setdefault(check.name.removeprefix("drift_").removesuffix("_warning"), check)
    worst = {check.severity for check in failed.values()}
    words = "not comparable" if "critical" in worst else "comparable with care" if "warning" in worst else "comparable"
    found = [
        str(pairs[name]) if name in pairs else f"{name.replace('_', ' ')} {check.observed} (required {check.required})"
        for name, check in failed.items()
    ]
    return f"{source} and {reference} are {words}: {'; '.join(found or map(str, pairs.values()))}"


def _metrics(
    rl_data: RLData, trials: pd.DataFrame, queries: pd.DataFrame, differences: pd.DataFrame | None
) -> dict[str, float]:
    dropped = sum(rl_data.dropped.values())
    metrics: dict[str, float] = {
        "data/n_queries": len(queries),
        "data/n_trials": len(trials),
        "data/dropped_trials": dropped,
        "data/dropped_share": dropped / max(len(trials) + dropped, 1),
    }
    if len(trials):
        metrics |= {
            "data/positive_query_rate": queries["positive"].mean(),
            "data/positive_trial_rate": trials["vqa_correct"].mean(),
            "data/reward_mean": trials["reward"].mean(),
            "data/reward_std": trials["reward"].std(),
            "data/frac_reward_zero_std": queries["zero_spread"].mean(),
            "data/trials_per_query": queries["n_trials"].mean(),
            "data/pool_size_min": queries["pool_size"].min(),
        }
        metrics |= {f"data/share_{method.name}": method.share for method in _methods(trials)}
    if differences is not None:
        metrics |= {f"data/drift_{name}": value for name, value in differences.iloc[0].items()}
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _methods(trials: pd.DataFrame) -> tuple[Method, ...]:
    names = trials["gen_method"].where(trials["gen_method"].isin(_METHODS), "other")
    groups = trials.groupby(names)
    return tuple(
        Method(
            name,
            len(rows := groups.get_group(name) if name in groups.groups else trials.iloc[:0]),
            len(rows) / max(len(trials), 1),
            _mean(rows["vqa_correct"]),
            _mean(rows["reward"]),
        )
        for name in (*_METHODS, "other")
    )


def _counts(values: pd.Series) -> tuple[tuple[int, int], ...]:
    numbers, counts = np.unique(values.to_numpy(), return_counts=True)
    return tuple(zip(numbers.tolist(), counts.tolist(), strict=True))


def _mean(values: pd.Series) -> float | None:
    mean = float(values.mean()) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def _histogram(trials: pd.DataFrame, reward_max: float) -> tuple[tuple[float, float, float], ...]:
    partition = drift.reward_partition(trials["reward"].to_numpy(), reward_max)
    edges = partition["bins"]
    return tuple(zip(edges[:-1], edges[1:], partition["weights"], strict=True)) if len(trials) else ()
