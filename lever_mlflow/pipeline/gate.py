"""Defines the validation step, which judges RL data and stops whatever would be trained on bad ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.pandas_dataset import from_pandas

from lever_mlflow import gate
from lever_mlflow.exceptions import DataError, GateError
from lever_mlflow.gate.report import format_table, report_html, summary
from lever_mlflow.gate.tables import trial_table
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.rollout import LEFT_OUT, SCORING
from lever_mlflow.runs.artifacts import log_json, log_text, read_json
from lever_mlflow.runs.metrics import finite
from lever_mlflow.runs.search import describe, find_run
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.settings import NONE
from lever_mlflow.trials.rl_data import RLData
from lever_mlflow.trials.stored import StoredGroups

__all__ = ["find_verdict", "pass_gate", "rl_data_figures", "rl_dataset", "suite_digest", "validate_step"]

STEP, GATE_FILE, FIGURES_FILE = "validate", "gate.json", "rl_data_figures.json"

log = logging.getLogger(__name__)


def validate_step(context: Context, data: RLData, reference: RLData | None = None) -> Step:
    """Prepares the check of RL data with the Great Expectations suites; a failed critical expectation fails the run."""
    settings = context.gate
    inputs: dict[str, Any] = {
        Tag.RL_DATA_DIGEST: data.digest,
        Tag.SUITE_DIGEST: suite_digest(context),
        Tag.DATASET_DIGEST: context.identity()[Tag.DATASET_DIGEST],
        **({} if reference is None else {Tag.REFERENCE_DIGEST: reference.digest}),
    }
    choices = {**context.reward.options, "thresholds": settings.thresholds, "max_shots": settings.max_shots}
    options = {"rl_data": data.origin, **context.options_of_judgement(), "reference": reference.origin if reference else NONE}
    return make_step(context, STEP, STEP, choices, inputs, partial(_check_data, context, data, reference), options)


def suite_digest(context: Context) -> str:
    """Returns the digest of the gate's suites with the thresholds of this experiment."""
    return gate.suite_digest(thresholds=context.gate.thresholds)


def find_verdict(context: Context, data: RLData) -> gate.GateResult:
    """Returns the gate's verdict on RL data: as recorded for their digest and these suites, or reached now in a child run."""
    step = validate_step(context, data)
    find: Callable[[], Any] = partial(find_run, STEP, {Tag.KEY: step.key}, having=Tag.GATE)
    run = find()
    if run is not None:
        log.debug("data gate: verdict taken from %s", describe(run))
        return _read_verdict(run.info.run_id)
    with suppress(GateError):  # the verdict is recorded in the run; what follows from it is decided where it is asked for
        return _read_verdict(ensure(step))
    return _read_verdict(find().info.run_id)


def pass_gate(context: Context, data: RLData, result: gate.GateResult) -> dict[str, str]:
    """Logs the data and the gate's figures and verdict on the active run, and ends it where a critical expectation failed.

    Returns:
        The tags of what is trained behind the gate: none, or where bad data were let through, which expectations failed.

    Raises:
        DataError: training items are left out, now or when the data were recorded, they are not the same items, and the data
            name them by position only. Or the trials were scored in another way. GateError: a critical expectation failed.
    """
    _check_items(context, data)
    _check_scoring(context, data)
    mlflow.log_input(rl_dataset(data), context="training")
    log_json(finite(result.metrics), FIGURES_FILE)
    # The verdict comes last: a run that has it has all the rest.
    record({Tag.SUITE_DIGEST: result.suite_digest, Tag.RL_DATA_SOURCE: data.origin, Tag.GATE: result.verdict})
    if context.gate.on_bad_data == "stop":
        result.raise_if_critical()
    if not result.failed_critical:
        return {}
    override = {str(Tag.GATE_OVERRIDE): f"on_bad_data=warn: {', '.join(result.failed_critical)}"}
    log.warning("%s: goes on in spite of critical expectations, as on_bad_data=warn asks; the run is tagged", data.source)
    record(override)
    return override


def rl_data_figures(run_id: str) -> dict[str, float]:
    """Returns the figures, such as ``data/reward_mean``, that the data gate computed of the RL data of a training run."""
    return read_json(run_id, FIGURES_FILE)


def rl_dataset(data: RLData) -> Dataset:
    """Returns RL data as an MLflow data set under our content digest; MLflow's own covers the first 10,000 rows only.

    Of RL data that stay in their files it holds no profile, which is made of the whole table.
    """
    source = CodeDatasetSource(tags={"source": data.source})  # MLflow resolves no ``runs:/`` URIs as a source
    if isinstance(data.groups, StoredGroups):
        return MetaDataset(source, name="rl_data", digest=data.digest)  # type: ignore[abstract]  # its profile is None
    return from_pandas(trial_table(data), source=source, name="rl_data", digest=data.digest)


def _check_data(context: Context, data: RLData, reference: RLData | None) -> None:
    """Runs the suites and logs the gate's page and results; raises GateError where a critical expectation failed."""
    settings = context.gate
    result = gate.check(
        data,
        reward=context.reward,
        shots=settings.max_shots,
        train=context.resources.train,
        reference=reference,
        thresholds=settings.thresholds,
        engine=settings.gate_engine,
    )
    mlflow.log_metrics(finite(result.metrics))
    log_text(report_html(result), "gate.html")
    log_json(result.to_json(), GATE_FILE)
    log_json(dict(result.gx_results), "great_expectations.json")
    set_description(result.comparison or summary(result))
    if reference is not None:
        mlflow.log_input(rl_dataset(reference), context="reference")
        record({Tag.COMPARISON: result.comparison})
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s", format_table(result))
    elif not all(check.passed for check in result.checks):
        log.info("%s", format_table(result, passed=False))
    pass_gate(context, data, result)


def _check_items(context: Context, data: RLData) -> None:
    left_out, recorded = context.resources.left_out["train"], data.meta.get(LEFT_OUT, 0)
    unchecked = data.match is None or data.match.n_checked == 0
    if unchecked and (left_out or recorded) and data.meta.get(Tag.DATASET_DIGEST) != context.resources.dataset_digest:
        raise DataError(
            f"{data.source}: RL data name training items by position, and were not recorded on the items at hand (of the "
            f"training questions {left_out} are left out, then {recorded} were); mend the data set, or run the rollout step"
        )


def _check_scoring(context: Context, data: RLData) -> None:
    scoring = context.resources.data.scoring
    recorded = data.meta.get(SCORING, scoring)
    if recorded != scoring:
        raise DataError(
            f"{data.source}: _meta: scoring is {recorded!r}, but this run has scoring={scoring}; give the scoring with which "
            "the trials were recorded, or run the rollout step"
        )


def _read_verdict(run_id: str) -> gate.GateResult:
    """Reads what a validation run concluded.

    Raises:
        DataError: its result is not there, or cannot be read.
    """
    content = read_json(run_id, GATE_FILE)
    try:
        return gate.GateResult.from_json(content)
    except ValueError as error:
        raise DataError(
            f"run {run_id}: {GATE_FILE} cannot be read ({error}); run the validate step again with rerun=true"
        ) from None
