"""What each step does inside its MLflow run: call the stage, log what it yields, leave its artifacts."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from lever_mlflow import compare, gate, registry, report, tracking
from lever_mlflow.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.evaluate import (
    RANDOM,
    SIMILARITY,
    ZERO_SHOT,
    accuracy_table,
    choose_epoch,
    evaluate,
    greedy_picks,
    random_picks,
    similarity_picks,
    split_questions,
)
from lever_mlflow.exceptions import CheckpointError, DataError
from lever_mlflow.gate import report as gate_report
from lever_mlflow.resources import Resources
from lever_mlflow.rewards import RewardMode
from lever_mlflow.rl_data import RLData, check_fits, load_rl_data, save_rl_data
from lever_mlflow.rollout import choose_queries, rollout
from lever_mlflow.selector import PointerSelector
from lever_mlflow.tracking import TAG
from lever_mlflow.train_grpo import GrpoEpoch, train_grpo
from lever_mlflow.train_rce import RceEpoch, train_rce
from lever_mlflow.types import EvalSettings, GateSettings, GrpoSettings, RceSettings, RolloutSettings, Sample

__all__ = [
    "COMPARISON_FILE",
    "OVERRIDES",
    "RL_DATA_FILE",
    "Context",
    "check_data",
    "compare_betas",
    "evaluate_epochs",
    "promote_beta",
    "read_evaluation",
    "read_verdict",
    "record_trials",
    "register_best",
    "train_by_grpo",
    "train_by_rce",
]

RL_DATA_FILE, GATE_FILE = "rl_data.json", "gate.json"
RECORDS_FILE, RESULT_FILE, COMPARISON_FILE = "records.parquet", "evaluation.json", "comparison.json"
START_POLICY = "start"
OVERRIDES = ("gate_override", "start_gate_override")
_REGISTERED_INPUTS = ("gate", *OVERRIDES, "seed", "start")  # beside every digest, tags of a registered version

Verdict = Callable[[], gate.GateResult]  # asks for the gate's verdict, once inside the run that needs it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """What all steps of an experiment share.

    Attributes:
        resources: data set, VLM and encoder.
        seed: of every random choice.
        reward_mode: how a trial's scores become its reward.
        registered_name: the registered model that evaluation adds versions to.
        gate: how RL data are judged, and what happens to bad ones.
    """

    resources: Resources
    seed: int
    reward_mode: RewardMode
    registered_name: str
    gate: GateSettings = field(default_factory=GateSettings)

    def identity(self) -> dict[str, Any]:
        """Digests of what all steps work on; runs that share them may be found by ``auto``."""
        model = self.resources.language_model
        return {
            "dataset_digest": self.resources.dataset_digest,
            "vlm_digest": model.digest,
            "profile_digest": model.profile.digest,
            "encoder_digest": self.resources.encoder_digest,
            "seed": self.seed,
        }


def record_trials(context: Context, settings: RolloutSettings, selector: PointerSelector) -> None:
    """Rollout: logs ``rl_data.json`` and its digest."""
    train = context.resources.train
    queries = choose_queries(train, settings.n_queries, context.seed)
    answer = partial(context.resources.answer, description="rollout")
    groups = rollout(queries, train, context.resources.features("train"), selector, answer, settings, seed=context.seed)
    meta = {**context.identity(), **asdict(settings), "generation": asdict(context.resources.language_model.profile)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RL_DATA_FILE
        save_rl_data(path, groups, meta)
        data = load_rl_data(path)
        mlflow.log_artifact(str(path))
    mlflow.set_tag(f"{TAG}rl_data_digest", data.digest)
    trials = [trial for group in data.groups for trial in group.trials]
    mlflow.log_metrics(
        {
            "data/n_queries": len(data.groups),
            "data/n_trials": len(trials),
            "data/positive_trial_rate": sum(trial.correct for trial in trials) / len(trials),
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
    _pass_gate(context, data, result)


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


def _pass_gate(context: Context, data: RLData, result: gate.GateResult) -> dict[str, str]:
    """Logs the data and the gate's figures and verdict on the active run, and ends it where a critical expectation failed.

    Returns the tags of what is trained behind it: none, or where bad data were let through, which expectations failed.
    """
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


def train_by_rce(context: Context, data: RLData, verdict: Verdict, settings: RceSettings) -> None:
    """RCE behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = _pass_gate(context, data, verdict())
    train_SD = context.resources.features("train").fused_SD
    device = context.resources.torch_device
    epochs = train_rce(data, train_SD, settings, seed=context.seed, reward_mode=context.reward_mode, device=device)
    _log_epochs(context, "rce", epochs, data, {"rl_data_digest": data.digest}, override)


def train_by_grpo(
    context: Context,
    data: RLData,
    verdict: Verdict,
    start: PointerSelector,
    start_override: Mapping[str, str],
    settings: GrpoSettings,
) -> None:
    """GRPO from ``start`` behind the gate: a checkpoint and metrics per epoch."""
    check_fits(data, context.resources.train)
    override = _pass_gate(context, data, verdict())
    train_SD = context.resources.features("train").fused_SD
    device = context.resources.torch_device
    epochs = train_grpo(start, data, train_SD, settings, seed=context.seed, reward_mode=context.reward_mode, device=device)
    origin = {"rl_data_digest": data.digest, "start_digest": selector_digest(start), "kl_beta": settings.kl_beta}
    _log_epochs(context, "grpo", epochs, data, origin, {**start_override, **override})


def _log_epochs(
    context: Context,
    step: str,
    epochs: Iterable[RceEpoch | GrpoEpoch],
    data: RLData,
    origin: Mapping[str, Any],
    override: Mapping[str, str],
) -> None:
    """Logs each epoch's metrics and checkpoint as it comes, and at the end which is which."""
    dataset = tracking.rl_dataset(data)
    first, train_SD = data.groups[0], context.resources.features("train").fused_SD
    rows = {"query": [train_SD[first.query_id].tolist()], "candidates": [train_SD[list(first.pool[:4])].tolist()]}
    models: dict[int, str] = {}
    rewards: dict[int, float] = {}
    for epoch, metrics, selector in epochs:
        tracking.finite(metrics)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            save_selector(path, selector, {"step": step, "epoch": epoch, "seed": context.seed, **origin, **override})
            beta = f"-beta-{origin['kl_beta']:g}".replace(".", "-") if "kl_beta" in origin else ""
            models[epoch] = tracking.log_checkpoint(
                f"{step}{beta}-epoch-{epoch}",
                path,
                epoch=epoch,
                params={"epoch": epoch, "seed": context.seed, **origin},
                tags={"checkpoint_digest": selector_digest(selector), **override},
                example=pd.DataFrame(rows),
            )
        mlflow.log_metrics(metrics, step=epoch, model_id=models[epoch], dataset=dataset)
        rewards[epoch] = metrics["expected_reward"]
    best = max(rewards, key=lambda epoch: (rewards[epoch], -epoch))
    mlflow.set_tags({f"{TAG}models": json.dumps(models), f"{TAG}best_epoch": str(best), f"{TAG}best_model": models[best]})


def evaluate_epochs(context: Context, grpo_run: str, kl_beta: float, settings: EvalSettings, inputs: Mapping[str, Any]) -> None:
    """Evaluation of a GRPO run's epochs and the baselines: logs accuracies and records, registers the best epoch."""
    models = {int(epoch): model_id for epoch, model_id in json.loads(inputs["models"]).items()}
    selectors = {f"epoch {e}": load_selector(tracking.checkpoint_folder(f"models:/{m}")) for e, m in models.items()}
    start = load_selector(tracking.checkpoint_folder(inputs["start_uri"]))
    if selector_digest(start) != inputs["start_digest"]:
        raise CheckpointError(
            f"{inputs['start_uri']}: not the checkpoint any more that run {grpo_run} started from "
            f"(digest {inputs['start_digest']}); restore it, or train again from the present one"
        )
    epochs = {epoch: f"epoch {epoch}" for epoch in models}
    questions = split_questions(context.resources.val, settings, context.seed)
    answer = partial(context.resources.answer, description=f"evaluate beta {kl_beta:g}")
    evaluated = []
    for part, samples in questions._asdict().items():
        policies = {START_POLICY: start, **selectors} if part == "report" else selectors
        picks = _picks(context, samples, policies, settings, baselines=part == "report")
        evaluated.append(evaluate(samples, part, picks, settings.shots, context.resources.train, answer))
    records = pd.concat(evaluated, ignore_index=True)
    best, selection = choose_epoch(records, epochs)
    table = accuracy_table(records, settings.sizes)
    _log_accuracies(table, epochs, models, selection)
    rows = table.to_dict("records")
    at_largest = {
        f"acc_n{row['size']}_shots{row['shots']}": f"{100 * row['accuracy']:.2f}"
        for row in rows
        if row["policy"] == epochs[best] and row["size"] == max(settings.sizes)
    }
    mlflow.set_tag(f"{TAG}best_epoch", str(best))
    digests = {name: value for name, value in inputs.items() if name.endswith("_digest") or name in _REGISTERED_INPUTS}
    registration = {
        "model_id": models[best],
        "checkpoint_digest": selector_digest(selectors[epochs[best]]),
        "tags": {"epoch": best, **digests, **at_largest},
    }
    result: dict[str, Any] = {
        "kl_beta": kl_beta,
        "best_epoch": best,
        "registration": registration,
        "selection_accuracy": selection,
        "settings": asdict(settings),
        "training": tracking.run_settings(grpo_run),
        "inputs": dict(inputs),
        "epochs": tracking.epoch_metrics(grpo_run),
        "accuracy": rows,
    }
    version = register_best(context, result)
    log.info("beta %g: epoch %d is %s version %s", kl_beta, best, context.registered_name, version)
    mlflow.set_tag(f"{TAG}registered", f"{context.registered_name} version {version}")
    result["registered"] = {"name": context.registered_name, "version": version, "alias": registry.beta_alias(kl_beta)}
    mlflow.log_dict(result, RESULT_FILE)
    with tempfile.TemporaryDirectory() as folder:
        tracking.log_frame(records, Path(folder) / RECORDS_FILE)


def register_best(context: Context, result: Mapping[str, Any]) -> str:
    """Puts an evaluation's best epoch behind its beta's alias, and returns the version."""
    registration = result["registration"]
    return registry.register(
        registration["model_id"],
        context.registered_name,
        result["kl_beta"],
        registration["checkpoint_digest"],
        registration["tags"],
    )


def read_evaluation(run_id: str) -> dict[str, Any]:
    """The ``evaluation.json`` of a finished evaluation."""
    return dict(json.loads(tracking.artifact(run_id, RESULT_FILE).read_text(encoding="utf-8")))


def _picks(
    context: Context,
    samples: Sequence[Sample],
    policies: Mapping[str, PointerSelector],
    settings: EvalSettings,
    *,
    baselines: bool,
) -> dict[str, np.ndarray]:
    """Train indices that each policy, and each baseline if wanted, picks for each question."""
    shots, train_SD = max(settings.shots), context.resources.features("train").fused_SD
    queries_QD = context.resources.features("val").fused_SD[[sample.index for sample in samples]]
    pools_QN = context.resources.pools(samples, settings.pool_size, context.seed)
    picks = {name: greedy_picks(policy, queries_QD, pools_QN, train_SD, shots) for name, policy in policies.items()}
    if not baselines:
        return picks
    return {
        ZERO_SHOT: pools_QN[:, :0],
        RANDOM: random_picks(samples, pools_QN, shots, context.seed),
        SIMILARITY: similarity_picks(queries_QD, pools_QN, train_SD, shots),
        **picks,
    }


def _log_accuracies(table: Any, epochs: Mapping[int, str], models: Mapping[int, str], selection: Mapping[int, float]) -> None:
    """Epochs as metrics ``acc/n{size}/shots{k}`` with the epoch as step, everything else as ``baseline/{policy}/...``."""
    slugs = {ZERO_SHOT: "zero_shot", RANDOM: "random", SIMILARITY: "fused_similarity", START_POLICY: "start"}
    metrics: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        metrics.setdefault(row["policy"], {})[f"n{row['size']}/shots{row['shots']}"] = row["accuracy"]
    for policy, slug in slugs.items():
        mlflow.log_metrics({f"baseline/{slug}/{cell}": value for cell, value in metrics[policy].items()})
    for epoch, name in epochs.items():
        accuracies = {f"acc/{cell}": value for cell, value in metrics[name].items()}
        mlflow.log_metrics({**accuracies, "selection/accuracy": selection[epoch]}, step=epoch, model_id=models[epoch])


def compare_betas(context: Context, evaluations: Sequence[str]) -> None:
    """Comparison of finished evaluations, given as run ids: logs ``report.md`` and ``comparison.json``."""
    results = []
    for run_id in evaluations:
        records = compare.read_records(tracking.artifact(run_id, RECORDS_FILE))
        results.append(compare.Evaluation(run_id, read_evaluation(run_id), records))
    comparison = compare.compare(results, seed=context.seed)
    mlflow.log_dict(comparison, COMPARISON_FILE)
    mlflow.log_text(report.markdown(comparison), "report.md")
    mlflow.set_tag("mlflow.note.content", comparison["verdict"])


def promote_beta(context: Context, kl_beta: float) -> None:
    """Promotion of a beta's version to champion."""
    version, former = registry.promote(context.registered_name, kl_beta)
    log.info("%s: version %s (beta %g) is champion", context.registered_name, version, kl_beta)
    if former is not None:
        log.info("%s: version %s is previous-champion", context.registered_name, former)
    mlflow.set_tag(f"{TAG}champion", version)
