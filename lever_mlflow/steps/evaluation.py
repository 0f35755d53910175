"""Evaluation, registration, comparison and promotion."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from lever_mlflow import compare, registry, report, tracking
from lever_mlflow.checkpoint import load_selector, selector_digest
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
from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.selector import PointerSelector
from lever_mlflow.steps.context import OVERRIDES, Context
from lever_mlflow.tracking import TAG
from lever_mlflow.types import EvalSettings, Sample

__all__ = ["COMPARISON_FILE", "compare_betas", "evaluate_epochs", "promote_beta", "read_evaluation", "register_best"]

RECORDS_FILE, RESULT_FILE, COMPARISON_FILE = "records.parquet", "evaluation.json", "comparison.json"
START_POLICY = "start"
_REGISTERED_INPUTS = ("gate", *OVERRIDES, "seed", "start")  # beside every digest, tags of a registered version

log = logging.getLogger(__name__)


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
    shots, train, val = max(settings.shots), context.resources.features("train"), context.resources.features("val")
    rows = [sample.index for sample in samples]
    pools_QN = context.resources.pools(samples, settings.pool_size, context.seed)
    picks = {
        name: greedy_picks(policy, val.of(policy.fusion)[rows], pools_QN, train.of(policy.fusion), shots)
        for name, policy in policies.items()
    }
    if not baselines:
        return picks
    return {
        ZERO_SHOT: pools_QN[:, :0],
        RANDOM: random_picks(samples, pools_QN, shots, context.seed),
        SIMILARITY: similarity_picks(val.fused_SD[rows], pools_QN, train.fused_SD, shots),
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
