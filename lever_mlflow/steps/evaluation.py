"""Evaluation, registration, comparison and promotion."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
    ZERO_SHOT,
    accuracy_table,
    best_single,
    choose_epoch,
    evaluate,
    first_logits,
    greedy_picks,
    random_picks,
    similarity_picks,
    split_questions,
)
from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.overlap import overlaps, why_identical
from lever_mlflow.pools import nearest
from lever_mlflow.selector import PointerSelector
from lever_mlflow.steps.context import OVERRIDES, Context
from lever_mlflow.tracking import TAG
from lever_mlflow.types import EvalSettings, Prompt, Sample

__all__ = ["COMPARISON_FILE", "compare_betas", "evaluate_epochs", "promote_beta", "read_evaluation", "register_best"]

RECORDS_FILE, RESULT_FILE, COMPARISON_FILE = "records.parquet", "evaluation.json", "comparison.json"
ANSWERS_TABLE = "answers.json"
START_POLICY = "start"
SIMILARITIES, OF_ALL = ("image", "text", "fused"), " of all"
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
    key = context.resources.language_model.key
    checkpoints = {START_POLICY: start, **selectors}
    picks = _learned_picks(context, questions.report, checkpoints, settings)
    parts = {
        "report": {**_baseline_picks(context, questions.report, settings), **picks},
        "selection": _learned_picks(context, questions.selection, selectors, settings),
    }
    evaluated = [
        evaluate(getattr(questions, part), part, found, settings.shots, context.resources.train, answer, key)
        for part, found in parts.items()
    ]
    records = pd.concat(evaluated, ignore_index=True)
    best, selection = choose_epoch(records, epochs)
    table = accuracy_table(records, settings.sizes)
    _log_accuracies(table, epochs, models, selection)
    overlap = _log_overlap(context, questions.report, checkpoints, picks, epochs, models, settings)
    single = _log_best_single(context, questions.report[: settings.n_oracle], settings, answer)
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
        "profile": asdict(context.resources.language_model.profile),
        "accuracy": rows,
        "overlap": overlap,
        "best_single": single,
    }
    version = register_best(context, result)
    log.info("beta %g: epoch %d is %s version %s", kl_beta, best, context.registered_name, version)
    mlflow.set_tag(f"{TAG}registered", f"{context.registered_name} version {version}")
    result["registered"] = {"name": context.registered_name, "version": version, "alias": registry.beta_alias(kl_beta)}
    mlflow.log_dict(result, RESULT_FILE)
    with tempfile.TemporaryDirectory() as folder:
        tracking.log_frame(records, Path(folder) / RECORDS_FILE)
    _log_answers(questions.report, records, epochs[best])


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


def _learned_picks(
    context: Context, samples: Sequence[Sample], selectors: Mapping[str, PointerSelector], settings: EvalSettings
) -> dict[str, np.ndarray]:
    """Train indices that each selector picks for each question, [Q, K]."""
    train, queries = context.resources.features("train"), context.resources.features("val")
    rows, pools_QN = [sample.index for sample in samples], _pools(context, samples, settings)
    return {
        name: greedy_picks(
            selector, queries.of(selector.fusion)[rows], pools_QN, train.of(selector.fusion), max(settings.shots)
        )
        for name, selector in selectors.items()
    }


def _baseline_picks(context: Context, samples: Sequence[Sample], settings: EvalSettings) -> dict[str, np.ndarray]:
    """Train indices that each baseline picks for each question, [Q, K]; [draws, Q, K] of the random one."""
    shots, train, val = max(settings.shots), context.resources.features("train"), context.resources.features("val")
    rows, pools_QN = [sample.index for sample in samples], _pools(context, samples, settings)
    images = np.array([sample.image_id for sample in context.resources.train])
    own_images = [np.flatnonzero(images == sample.image_id) for sample in samples]
    draws = [random_picks(samples, pools_QN, shots, context.seed, draw) for draw in range(settings.random_draws)]
    picks = {ZERO_SHOT: pools_QN[:, :0], RANDOM: np.stack(draws)}
    for kind in SIMILARITIES:
        queries_QD, items_SD = getattr(val, f"{kind}_SD")[rows], getattr(train, f"{kind}_SD")
        picks[f"{kind}-similarity"] = similarity_picks(queries_QD, pools_QN, items_SD, shots)
        picks[f"{kind}-similarity{OF_ALL}"] = nearest(queries_QD, items_SD, shots, own_images)
    return picks


def _pools(context: Context, samples: Sequence[Sample], settings: EvalSettings) -> np.ndarray:
    return context.resources.pools(samples, settings.pool_size, context.seed, settings.pool_sampler)


def _log_accuracies(table: Any, epochs: Mapping[int, str], models: Mapping[int, str], selection: Mapping[int, float]) -> None:
    """Epochs as metrics ``acc/n{size}/shots{k}`` with the epoch as step, everything else as ``baseline/{policy}/...``."""
    metrics: dict[str, dict[str, float]] = {}
    for row in table.to_dict("records"):
        cell = f"n{row['size']}/shots{row['shots']}"
        metrics.setdefault(row["policy"], {})[cell] = row["accuracy"]
        if row["policy"] == RANDOM:
            metrics.setdefault("random_spread", {})[cell] = row["spread"]
    for epoch, name in epochs.items():
        accuracies = {f"acc/{cell}": value for cell, value in metrics.pop(name).items()}
        mlflow.log_metrics({**accuracies, "selection/accuracy": selection[epoch]}, step=epoch, model_id=models[epoch])
    for policy, cells in metrics.items():
        slug = re.sub(r"[^a-z]+", "_", policy)
        mlflow.log_metrics({f"baseline/{slug}/{cell}": value for cell, value in cells.items()})


def _log_overlap(
    context: Context,
    samples: Sequence[Sample],
    checkpoints: Mapping[str, PointerSelector],
    picks: Mapping[str, np.ndarray],
    epochs: Mapping[int, str],
    models: Mapping[int, str],
    settings: EvalSettings,
) -> list[dict[str, Any]]:
    """How far checkpoints pick the same, that with the start as ``overlap/shots{k}`` per epoch; why, where they always do."""
    train, val = context.resources.features("train"), context.resources.features("val")
    rows, pools_QN = [sample.index for sample in samples], _pools(context, samples, settings)

    def logits(name: str) -> np.ndarray:
        fusion = checkpoints[name].fusion
        return first_logits(checkpoints[name], val.of(fusion)[rows], pools_QN, train.of(fusion))

    found = []
    for overlap in overlaps(picks, settings.shots):
        row = overlap._asdict()
        if overlap.ordered == 1.0:
            digests = [selector_digest(checkpoints[name]) for name in (overlap.first, overlap.second)]
            pair = logits(overlap.first), logits(overlap.second)
            row["reason"] = why_identical(*pair, overlap.shots, equal_weights=digests[0] == digests[1])
            log.info(
                "%s and %s pick the same at %d shots for all %d questions: %s",
                overlap.first, overlap.second, overlap.shots, len(samples), row["reason"],
            )  # fmt: skip
        found.append(row)
    for epoch, name in epochs.items():
        of_start = [row for row in found if (row["first"], row["second"]) == (START_POLICY, name)]
        shares = {f"overlap/shots{row['shots']}": row["ordered"] for row in of_start}
        mlflow.log_metrics(shares, step=epoch, model_id=models[epoch])
    return found


def _log_best_single(
    context: Context, samples: Sequence[Sample], settings: EvalSettings, answer: Callable[[Sequence[Prompt]], list[str]]
) -> dict[str, Any] | None:
    """What the best single demonstration of each pool would bring, as ``baseline/oracle/...``; None where not asked for."""
    if not samples:
        return None
    found = best_single(samples, _pools(context, samples, settings), context.resources.train, answer)
    mlflow.log_metrics({f"baseline/oracle/n{len(samples)}/shots1": found["oracle"]})
    return found


def _log_answers(samples: Sequence[Sample], records: pd.DataFrame, best: str) -> None:
    """A table for the UI: what the best epoch picked and the VLM answered on each report question, beside zero-shot."""
    asked = pd.DataFrame(
        {
            "question_id": [sample.question_id for sample in samples],
            "question": [sample.question for sample in samples],
            "annotators": [", ".join(sorted(set(sample.answers))) for sample in samples],
        }
    )
    shown = records[(records.part == "report") & records.policy.isin([ZERO_SHOT, best])]
    table = shown.merge(asked, on="question_id")[
        ["question_id", "question", "annotators", "policy", "shots", "picks", "answer", "accuracy"]
    ]
    mlflow.log_table(table.assign(picks=table.picks.map(str)), ANSWERS_TABLE)


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
