"""Checks one RL data file, alone or against another one: makes the tables, runs the suites and puts the result together.

The tables are made block by block. RL data that stay in their files are never held as a whole, and where the engine is SQL,
neither are the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.gate import drift
from lever_mlflow.gate.result import Check, GateResult
from lever_mlflow.gate.running import run_suite
from lever_mlflow.gate.stores import TableStore, opened_store
from lever_mlflow.gate.suites import (
    DATA_SUITES,
    DEFAULT_PROJECT_DIR,
    DRIFT_SUITES,
    Suites,
    read_suites,
    resolved,
    suite_digest,
)
from lever_mlflow.gate.tables import evaluation_table, known_images, query_table, trial_table
from lever_mlflow.gate.totals import Totals
from lever_mlflow.settings import EvalSettings, GateEngine
from lever_mlflow.trials.columns import blocks
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward
from lever_mlflow.trials.rl_data import RLData

__all__ = ["check"]


class _Tables(NamedTuple):
    """Holds the tables of a block: a row per trial, a row per query, and a row per recorded trial."""

    trials: pd.DataFrame
    queries: pd.DataFrame
    evaluations: pd.DataFrame


class _Reference(NamedTuple):
    """Holds what the data are compared with, and how they differ: the pairs of figures, and the differences by name."""

    source: str
    totals: Totals
    pairs: Mapping[str, drift.Pair]
    differences: Mapping[str, float]


def check(
    rl_data: RLData,
    *,
    reward: Reward = DEFAULT_REWARD,
    shots: int = max(EvalSettings.shots),
    train: Sequence[Sample] | None = None,
    reference: RLData | None = None,
    thresholds: Mapping[str, float | str] | None = None,
    project_dir: Path = DEFAULT_PROJECT_DIR,
    engine: GateEngine = "pandas",
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
        engine: where Great Expectations looks at the tables: as data frames of pandas in memory, or by SQL in a temporary file
            of SQLite. Both give the same verdict and figures, but for the last digits of means.

    Raises:
        ParameterError: a trial lacks a score that the reward takes, a threshold names nothing, or a suite is missing or
            cannot be used. The message names the file and the expectation.
    """
    suites = read_suites(project_dir, thresholds)
    parameters: dict[str, Any] = {"min_pool_size": shots + 1}
    tables = {suite: suite for suite in DATA_SUITES}  # the table that each suite looks at
    other = None
    with opened_store(engine) as store:
        totals = _stored(store, _tables(rl_data, reward, train), Totals(reward.bounds))
        if reference is not None:
            other = _compared(store, rl_data, totals, reference, reward)
            tables |= dict(zip(DRIFT_SUITES, ("rl_drift", "rl_trials"), strict=True))
            parameters["reference_rewards"] = other.totals.partition()
        checks, gx_results = _run(suites, store, tables, parameters, reward.bounds)
    result = GateResult(
        source=rl_data.source,
        vintage=rl_data.vintage,
        digest=rl_data.digest,
        reward_mode=reward.label,
        suite_digest=suite_digest(project_dir, thresholds),
        checks=tuple(checks),
        metrics=totals.metrics(sum(rl_data.dropped.values()), other.differences if other else {}),
        histogram=totals.histogram(),
        positives_per_query=totals.positives_per_query(),
        methods=totals.by_method(),
        items=str(rl_data.match or ""),
        dropped=dict(rl_data.dropped),
        gx_results=gx_results,
    )
    return result if other is None else _with_reference(result, other)


def _compared(store: TableStore, data: RLData, totals: Totals, reference: RLData, reward: Reward) -> _Reference:
    """Compares RL data with others, and adds the table of differences to the store."""
    other = Totals(reward.bounds)
    for block in _tables(reference, reward):
        other.add(block.trials, block.queries)
    pairs = drift.pairs(totals, other)
    row = drift.differences(pairs, drift.shared(data, reference))
    store.add("rl_drift", row)
    return _Reference(reference.source, other, pairs, {str(name): float(value) for name, value in row.iloc[0].items()})


def _with_reference(result: GateResult, other: _Reference) -> GateResult:
    return replace(
        result,
        reference=other.source,
        comparison=_comparison(result.source, other.source, result.checks, other.pairs),
        reference_histogram=other.totals.histogram(),
    )


def _tables(data: RLData, reward: Reward, train: Sequence[Sample] | None = None) -> Iterator[_Tables]:
    """Yields the tables of RL data block by block; the rows of dropped trials come last."""
    images = known_images(data, train)
    trials, queries = pd.DataFrame(), pd.DataFrame()
    for columns in blocks(data.groups):
        block = replace(data, groups=columns, dropped={})
        try:
            trials = trial_table(block, reward)
        except ParameterError as error:
            raise ParameterError(f"{data.source}: {error}") from None
        queries = query_table(block, trials, train, images)
        yield _Tables(trials, queries, evaluation_table(block, trials))
    yield _Tables(trials.head(0), queries.head(0), evaluation_table(data, trials.head(0)))


def _stored(store: TableStore, blocks: Iterable[_Tables], totals: Totals) -> Totals:
    """Adds tables to the store, and their figures to the totals, which it returns."""
    for tables in blocks:
        totals.add(tables.trials, tables.queries)
        for name, table in zip(DATA_SUITES, tables, strict=True):
            store.add(name, table)
    return totals


def _run(
    suites: Suites,
    store: TableStore,
    tables: Mapping[str, str],
    parameters: Mapping[str, Any],
    bounds: tuple[float, float],
) -> tuple[list[Check], dict[str, Any]]:
    """Runs each suite over its table. Returns all checks, and Great Expectations' own results by suite.

    ``bounds`` are the smallest and the largest reward, to which the suites' reward thresholds are scaled.
    """
    low, high = bounds
    of_suite = {"rl_drift": (0.0, high - low)}  # a row of differences between rewards
    checks: list[Check] = []
    gx_results: dict[str, Any] = {}
    for name, table in tables.items():
        expectations = [resolved(expectation, parameters, of_suite.get(name, bounds)) for expectation in suites[name]]
        suite_checks, gx_results[name] = run_suite(name, expectations, store, table)
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
