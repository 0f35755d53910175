"""Evaluation of a beta's epochs beside the baselines, and registration of the best."""

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
import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.answering import best_single, evaluate
from lever_mlflow.evaluation.policies import RANDOM, START, ZERO_SHOT
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.evaluation.records import accuracy_table, choose_epoch
from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.registration import register_best
from lever_mlflow.registry import model_card, versions
from lever_mlflow.runs import artifacts, metrics, steps, tags
from lever_mlflow.runs.tags import TAG
from lever_mlflow.selector.checkpoint import load_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving import logged_models
from lever_mlflow.settings import EvalSettings
from lever_mlflow.vlm.prompt import Prompt

__all__ = ["RECORDS_FILE", "evaluate_epochs", "read_evaluation"]

RECORDS_FILE, RESULT_FILE, ANSWERS_TABLE = "records.parquet", "evaluation.json", "answers.json"

log = logging.getLogger(__name__)


def evaluate_epochs(
    context: Context,
    grpo_run: str,
    kl_beta: float,
    settings: EvalSettings,
    inputs: Mapping[str, Any],
    others: Mapping[str, PointerSelector],
) -> None:
    """Evaluation of a GRPO run's epochs, of other checkpoints and the baselines; registers the best epoch."""
    models = {int(epoch): model_id for epoch, model_id in json.loads(inputs["models"]).items()}
    selectors = {f"epoch {e}": load_selector(logged_models.checkpoint_folder(f"models:/{m}")) for e, m in models.items()}
    start = load_selector(logged_models.checkpoint_folder(inputs["start_uri"]))
    if selector_digest(start) != inputs["start_digest"]:
        raise CheckpointError(
            f"{inputs['start_uri']}: not the checkpoint any more that run {grpo_run} started from "
            f"(digest {inputs['start_digest']}); restore it, or train again from the present one"
        )
    epochs = {epoch: f"epoch {epoch}" for epoch in models}
    parts = {
        part: QuestionSet(context, samples, settings)
        for part, samples in split_questions(context.resources.val, settings, context.seed)._asdict().items()
    }
    report = parts["report"]
    checkpoints = {START: start, **others, **selectors}
    learned = report.learned(checkpoints)
    picks = {"report": {**report.baselines(), **learned}, "selection": parts["selection"].learned(selectors)}
    train, answer = context.resources.train, partial(context.resources.answer, description=f"evaluate beta {kl_beta:g}")
    key = context.resources.language_model.key
    records = pd.concat(
        [evaluate(parts[part].samples, part, found, settings.shots, train, answer, key) for part, found in picks.items()],
        ignore_index=True,
    )
    best, selection = choose_epoch(records, epochs)
    table = accuracy_table(records, settings.sizes)
    overlap = report.overlap(checkpoints, learned)
    _log_accuracies(table, epochs, models, selection)
    _log_overlap(overlap, epochs, models)
    _log_answers(report.samples, records, epochs[best])
    rows = table.to_dict("records")
    mlflow.set_tag(f"{TAG}best_epoch", str(best))
    result: dict[str, Any] = {
        "kl_beta": kl_beta,
        "best_epoch": best,
        "run_id": steps.active_run_id(),
        "git_commit": mlflow.get_run(grpo_run).data.tags.get("mlflow.source.git.commit", "unknown"),
        "selection_accuracy": selection,
        "settings": asdict(settings),
        "training": steps.run_settings(grpo_run),
        "inputs": dict(inputs),
        "rl_data": _rl_data(grpo_run),
        "resources": {name: getattr(context.resources, name) for name in ("dataset", "vlm", "encoder")},
        "epochs": metrics.epoch_metrics(grpo_run),
        "profile": asdict(context.resources.language_model.profile),
        "accuracy": rows,
        "checkpoints": [name.partition("(")[2].removesuffix(")") for name in others],
        "overlap": overlap,
        "best_single": _best_single(report, answer),
        "registered": {"name": context.registered_name, "alias": versions.beta_alias(kl_beta)},
    }
    result["registration"] = {
        "model_id": models[best],
        "checkpoint_digest": selector_digest(selectors[epochs[best]]),
        "tags": model_card.version_tags(result, records),
        "description": model_card.markdown(result, records),
    }
    version = register_best(context, result)
    log.info("beta %g: epoch %d is %s version %s", kl_beta, best, context.registered_name, version)
    mlflow.set_tag(f"{TAG}registered", f"{context.registered_name} version {version}")
    result["registered"]["version"] = version
    mlflow.log_dict(result, RESULT_FILE)
    with tempfile.TemporaryDirectory() as folder:
        artifacts.log_frame(records, Path(folder) / RECORDS_FILE)


def read_evaluation(run_id: str) -> dict[str, Any]:
    """The ``evaluation.json`` of a finished evaluation."""
    return dict(json.loads(artifacts.artifact(run_id, RESULT_FILE).read_text(encoding="utf-8")))


def _rl_data(grpo_run: str) -> dict[str, Any]:
    """What a GRPO run was trained on: where it was read, its size and how much there was to learn from."""
    metrics = mlflow.get_run(grpo_run).data.metrics
    queries = int(metrics["data/n_queries"])
    return {
        "source": tags.run_tags(grpo_run, "grpo")["rl_data_source"],
        "n_queries": queries,
        "n_positive_queries": round(metrics["data/positive_query_rate"] * queries),
        "mean_reward": metrics["data/reward_mean"],
    }


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
        slug = re.sub(r"[^a-z0-9]+", "_", policy.lower())
        mlflow.log_metrics({f"baseline/{slug}/{cell}": value for cell, value in cells.items()})


def _log_overlap(rows: Sequence[Mapping[str, Any]], epochs: Mapping[int, str], models: Mapping[int, str]) -> None:
    """The share of questions with the start's picks, in order, as ``overlap/shots{k}`` per epoch."""
    for epoch, name in epochs.items():
        of_start = [row for row in rows if (row["first"], row["second"]) == (START, name)]
        shares = {f"overlap/shots{row['shots']}": row["ordered"] for row in of_start}
        mlflow.log_metrics(shares, step=epoch, model_id=models[epoch])


def _best_single(questions: QuestionSet, answer: Callable[[Sequence[Prompt]], list[str]]) -> dict[str, Any] | None:
    """What the best single demonstration of each pool would bring, logged as ``baseline/oracle/...``; None if not asked for."""
    n = min(questions.settings.n_oracle, len(questions.samples))
    if not n:
        return None
    found = best_single(questions.samples[:n], questions.pools_QN[:n], questions.context.resources.train, answer)
    mlflow.log_metrics({f"baseline/oracle/n{n}/shots1": found["oracle"]})
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
