"""RL data: recording them, and the gate before whatever is trained on them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import PandasDataset, from_pandas

from lever_mlflow import gate
from lever_mlflow.exceptions import DataError
from lever_mlflow.gate import report as gate_report
from lever_mlflow.gate.tables import trial_table
from lever_mlflow.pipeline.context import LEFT_OUT, Context
from lever_mlflow.runs import artifacts
from lever_mlflow.runs.metrics import finite
from lever_mlflow.runs.tags import TAG
from lever_mlflow.trials.rl_data import RLData

__all__ = ["check_data", "pass_gate", "read_verdict", "rl_dataset"]

GATE_FILE = "gate.json"

log = logging.getLogger(__name__)


def check_data(context: Context, data: RLData, reference: RLData | None = None) -> None:
    """Validation: logs the gate's page and results; raises GateError where a critical expectation failed."""
    settings = context.gate
    result = gate.check(
        data,
        reward_mode=context.reward_mode,
        shots=settings.max_shots,
        train=context.resources.train,
        reference=reference,
        thresholds=settings.thresholds,
    )
    mlflow.log_text(gate_report.report_html(result), "gate.html")
    mlflow.log_dict(result.to_json(), GATE_FILE)
    mlflow.log_dict(dict(result.gx_results), "great_expectations.json")
    mlflow.set_tag("mlflow.note.content", result.comparison or gate_report.summary(result))
    if reference is not None:
        mlflow.log_input(rl_dataset(reference), context="reference")
        mlflow.set_tag(f"{TAG}comparison", result.comparison)
    log.info("%s", gate_report.format_table(result))
    pass_gate(context, data, result)


def read_verdict(run_id: str) -> gate.GateResult:
    """What a validation run found.

    Raises:
        DataError: its result is not there, or not to be read.
    """
    path = artifacts.artifact(run_id, GATE_FILE)
    try:
        return gate.GateResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"run {run_id}: {GATE_FILE} cannot be read ({error}); run the validate step again") from None


def pass_gate(context: Context, data: RLData, result: gate.GateResult) -> dict[str, str]:
    """Logs the data and the gate's figures and verdict on the active run, and ends it where a critical expectation failed.

    Returns the tags of what is trained behind it: none, or where bad data were let through, which expectations failed.

    Raises:
        DataError: training items are left out, now or when the data were recorded, and they are not the same items: RL data
            name them by position. GateError: a critical expectation failed.
    """
    left_out, recorded = context.resources.left_out["train"], data.meta.get(LEFT_OUT, 0)
    if (left_out or recorded) and data.meta.get("dataset_digest") != context.resources.dataset_digest:
        raise DataError(
            f"{data.source}: RL data name training items by position, and were not recorded on the items at hand (of the "
            f"training questions {left_out} are left out, then {recorded} were); mend the data set, or run the rollout step"
        )
    source = data.source if data.source.startswith("runs:/") else str(Path(data.source).resolve())
    mlflow.log_input(rl_dataset(data), context="training")
    mlflow.log_metrics(finite(result.metrics))
    # The verdict comes last: a run that has it has all the rest.
    mlflow.set_tags({f"{TAG}suite_digest": result.suite_digest, f"{TAG}rl_data_source": source, f"{TAG}gate": result.verdict})
    if context.gate.on_bad_data == "stop":
        result.raise_if_critical()
    if not result.failed_critical:
        return {}
    override = {"gate_override": f"on_bad_data=warn: {', '.join(result.failed_critical)}"}
    log.warning("%s: goes on in spite of critical expectations, as on_bad_data=warn asks; the run is tagged", data.source)
    mlflow.set_tag(f"{TAG}gate_override", override["gate_override"])
    return override


def rl_dataset(data: RLData) -> PandasDataset:
    """RL data as an MLflow data set under our content digest (MLflow's own covers the first 10,000 rows only)."""
    source = CodeDatasetSource(tags={"source": data.source})  # MLflow resolves no ``runs:/`` URIs as a source
    return from_pandas(trial_table(data), source=source, name="rl_data", digest=data.digest)
