"""RL data: recording them, and the gate before whatever is trained on them."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlflow

from lever_mlflow import gate, tracking
from lever_mlflow.exceptions import DataError
from lever_mlflow.gate import report as gate_report
from lever_mlflow.resources import Resources
from lever_mlflow.rl_data import RLData, load_rl_data, save_rl_data
from lever_mlflow.rollout import choose_queries, is_mined, positive_query_rate, rollout
from lever_mlflow.selector import PointerSelector
from lever_mlflow.steps.context import Context
from lever_mlflow.tracking import TAG
from lever_mlflow.types import RolloutSettings

__all__ = ["RL_DATA_FILE", "check_data", "log_skipped", "pass_gate", "read_verdict", "record_trials"]

RL_DATA_FILE, GATE_FILE = "rl_data.json", "gate.json"
_LEFT_OUT = "skipped_train"  # in the meta of RL data: training items left out when they were recorded

log = logging.getLogger(__name__)


def log_skipped(resources: Resources) -> None:
    """Where ``on_bad_item=skip``: how many questions it left out, and the tag ``lever.skipped_items`` if any."""
    if resources.data.on_bad_item == "skip":
        mlflow.log_metrics({f"data/skipped_{split}": count for split, count in resources.left_out.items()})
        if resources.skipped_items:
            mlflow.set_tag(f"{TAG}skipped_items", resources.skipped_items)


def record_trials(context: Context, settings: RolloutSettings, selector: PointerSelector) -> None:
    """Rollout: logs ``rl_data.json``, its digest and what mining changed."""
    train = context.resources.train
    queries = choose_queries(train, settings.n_queries, context.seed)
    answer = partial(context.resources.answer, description="rollout")
    score = partial(context.resources.score, description="rollout, right answers")
    if settings.gt_prob:
        score([])  # refused now, if at all, and not after all answers
    features = context.resources.features("train")
    groups = rollout(queries, train, features, selector, answer, settings, seed=context.seed, score=score)
    meta = {**context.identity(), **asdict(settings), "generation": asdict(context.resources.language_model.profile)}
    meta[_LEFT_OUT] = context.resources.left_out["train"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RL_DATA_FILE
        save_rl_data(path, groups, meta)
        data = load_rl_data(path)
        mlflow.log_artifact(str(path))
    mlflow.set_tag(f"{TAG}rl_data_digest", data.digest)
    trials = [trial for group in groups for trial in group.trials]
    mlflow.log_metrics(
        {
            "data/n_queries": len(groups),
            "data/n_trials": len(trials),
            "data/positive_trial_rate": sum(trial.correct for trial in trials) / len(trials),
            "data/positive_query_rate_before": positive_query_rate(groups, mined=False),
            "data/positive_query_rate": positive_query_rate(groups),
            "data/mined_trials": sum(map(is_mined, trials)),
            "data/mined_queries": sum(any(map(is_mined, group.trials)) for group in groups),
        }
    )


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
        mlflow.log_input(tracking.rl_dataset(reference), context="reference")
        mlflow.set_tag(f"{TAG}comparison", result.comparison)
    log.info("%s", gate_report.format_table(result))
    pass_gate(context, data, result)


def read_verdict(run_id: str) -> gate.GateResult:
    """What a validation run found.

    Raises:
        DataError: its result is not there, or not to be read.
    """
    path = tracking.artifact(run_id, GATE_FILE)
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
    left_out, recorded = context.resources.left_out["train"], data.meta.get(_LEFT_OUT, 0)
    if (left_out or recorded) and data.meta.get("dataset_digest") != context.resources.dataset_digest:
        raise DataError(
            f"{data.source}: RL data name training items by position, and were not recorded on the items at hand (of the "
            f"training questions {left_out} are left out, then {recorded} were); mend the data set, or run the rollout step"
        )
    source = data.source if data.source.startswith("runs:/") else str(Path(data.source).resolve())
    mlflow.log_input(tracking.rl_dataset(data), context="training")
    mlflow.log_metrics(tracking.finite(result.metrics))
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
