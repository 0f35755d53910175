"""Promotion of a beta's version to champion on evidence, the way back, and what the registry holds."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lever_mlflow.evaluation.answering import evaluate
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.exceptions import DataError, LeverError, MissingRunError, PromotionError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import RECORDS_FILE, read_evaluation
from lever_mlflow.registry import champion, evidence, listing, model_card, versions
from lever_mlflow.registry.evidence import Condition
from lever_mlflow.runs import artifacts, steps
from lever_mlflow.runs.tags import TAG
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.serving import logged_models
from lever_mlflow.settings import EvalSettings, PromotionSettings

__all__ = ["STATUS_FILE", "evaluate_version", "promote_beta", "roll_back", "show_status"]

EVIDENCE_FILE, STATUS_FILE = "promotion.json", "status.txt"
VERSION_POLICY = "champion"
_NOTE = "mlflow.note.content"
EvaluateVersion = Callable[[str, Mapping[str, Any]], str]

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """A version's evaluation: its ``evaluation.json``, its records, and the version's policy in them."""

    result: Mapping[str, Any]
    records: pd.DataFrame
    policy: str


def promote_beta(context: Context, kl_beta: float, settings: PromotionSettings, evaluate_now: EvaluateVersion) -> None:
    """Promotion of a beta's version to champion; refused where a condition is not met, unless it is forced.

    Args:
        evaluate_now: evaluates a version on the questions of an evaluation, given as its result, and returns the run's id.

    Raises:
        PromotionError: a condition is not met, or another change of champion came first.
    """
    try:
        told = _promote(context.registered_name, kl_beta, settings, evaluate_now)
    except PromotionError as error:
        mlflow.set_tag(_NOTE, str(error))
        raise
    log.info("%s", told)
    mlflow.set_tag(_NOTE, told)


def evaluate_version(context: Context, reference: str, settings: EvalSettings) -> None:
    """Evaluation of a registered version on the report questions; logs ``records.parquet``."""
    samples = split_questions(context.resources.val, settings, context.seed).report
    picks = QuestionSet(context, samples, settings).learned(
        {VERSION_POLICY: load_selector(logged_models.checkpoint_folder(reference))}
    )
    resources = context.resources
    answer = partial(resources.answer, description="evaluate champion")
    records = evaluate(samples, "report", picks, settings.shots, resources.train, answer, resources.language_model.key)
    with tempfile.TemporaryDirectory() as folder:
        artifacts.log_frame(records, Path(folder) / RECORDS_FILE)


def roll_back(context: Context) -> None:
    """Swap of champion and previous champion."""
    name = context.registered_name
    found = champion.rollback(name, steps.active_run_id())
    mlflow.set_tag(f"{TAG}champion", str(found.champion))
    told = f"{name}: version {found.champion} is champion again, version {found.previous} previous-champion"
    log.info("%s", told)
    mlflow.set_tag(_NOTE, told)


def show_status(context: Context) -> None:
    """What the registered model holds: logs ``status.txt``."""
    mlflow.log_text(listing.table(context.registered_name, versions.versions(context.registered_name)), STATUS_FILE)


def _promote(name: str, kl_beta: float, settings: PromotionSettings, evaluate_now: EvaluateVersion) -> str:
    version = versions.find_version(name, kl_beta)
    number, label = str(version.version), f"{name} version {version.version} (beta {kl_beta:g})"
    champion.settle(name)
    held = champion.holders(name)
    if held.champion == number:
        return f"{label} is champion already; nothing was changed"
    conditions = _conditions(name, version, held.champion, settings, evaluate_now)
    for condition in conditions:
        log.info("%s: %s", "met" if condition.met else "NOT MET", condition.says)
    failed = [condition for condition in conditions if not condition.met]
    rows = [{**condition._asdict(), "gain": condition.gain and condition.gain._asdict()} for condition in conditions]
    evidence = {"candidate": label, "champion": held.champion, "conditions": rows, **asdict(settings)}
    mlflow.log_dict(evidence, EVIDENCE_FILE)
    if failed and not settings.force:
        raise PromotionError(
            f"{label} is not promoted: {'; '.join(condition.says for condition in failed)}; nothing was changed, "
            "force=true promotes it in spite of that"
        )
    champion.change(name, held, _change(version, held.champion, conditions))
    mlflow.set_tag(f"{TAG}champion", number)
    former = "" if held.champion is None else f", version {held.champion} previous-champion"
    forced = f"; force=true overrode: {', '.join(condition.name for condition in failed)}" if failed else ""
    return f"{label} is champion{former}{forced}"


def _conditions(
    name: str, version: ModelVersion, champion_version: str | None, settings: PromotionSettings, evaluate_now: EvaluateVersion
) -> list[Condition]:
    """The data gate, the gain over random demonstrations and, where there is a champion, the gain over it."""
    conditions = [evidence.gate_condition(version.tags)]
    wanted = ["random", *(["champion"] if champion_version else [])]
    try:
        candidate = _evaluated(version)
    except LeverError as error:
        return conditions + [evidence.unknown(condition, error) for condition in wanted]
    records, policy, seed = candidate.records, candidate.policy, int(candidate.result["inputs"]["seed"])
    conditions.append(evidence.gain_over_random(records, policy, seed))
    if champion_version is None:
        return conditions
    try:
        other = _comparable(name, champion_version, candidate, evaluate_now)
        return [*conditions, evidence.gain_over_champion(records, policy, other.records, other.policy, settings, seed)]
    except LeverError as error:
        return [*conditions, evidence.unknown("champion", error)]


def _comparable(name: str, number: str, candidate: Evaluated, evaluate_now: EvaluateVersion) -> Evaluated:
    """The champion's own evaluation where it covers the candidate's questions, else one on these, made now."""
    try:
        own = _evaluated(MlflowClient().get_model_version(name, number))
        if evidence.covers(own.records, own.result, candidate.records, candidate.result):
            return own
        reason = "was evaluated on other questions, shots or pools"
    except LeverError as error:
        reason = f"has no evaluation to compare with ({error})"
    log.info("the champion, version %s, %s: evaluating it on those of the candidate", number, reason)
    run_id = evaluate_now(number, candidate.result)
    return Evaluated(candidate.result, pd.read_parquet(artifacts.artifact(run_id, RECORDS_FILE)), VERSION_POLICY)


def _evaluated(version: ModelVersion) -> Evaluated:
    """The evaluation that a version was registered by.

    Raises:
        MissingRunError: the version does not name it. DataError: its artifacts are gone, or not what they were.
    """
    if "evaluation_run" not in version.tags:
        raise MissingRunError(f"version {version.version} has no tag evaluation_run; run the evaluate step again")
    run_id = version.tags["evaluation_run"]
    path = artifacts.artifact(run_id, RECORDS_FILE)
    try:
        records = pd.read_parquet(path)
        digest = model_card.records_digest(records)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"run {run_id}: {RECORDS_FILE} cannot be read ({error}); run the evaluate step again") from None
    if digest != (registered := version.tags.get("evaluation_digest")):
        raise DataError(
            f"run {run_id}: {RECORDS_FILE} is not what version {version.version} was registered with "
            f"(digest {digest}, then {registered}); run the evaluate step again"
        )
    return Evaluated(read_evaluation(run_id), records, f"epoch {version.tags['epoch']}")


def _change(version: ModelVersion, former: str | None, conditions: Sequence[Condition]) -> champion.Change:
    """The aliases after a promotion, and what the version says of it in its tags and its description."""
    when, run_id = datetime.now(UTC).isoformat(timespec="seconds"), steps.active_run_id()
    overridden = ", ".join(condition.name for condition in conditions if not condition.met) or "none"
    lines = [f"- {condition.says}{'' if condition.met else ' (overridden by force=true)'}" for condition in conditions]
    section = "\n".join([f"Champion since {when}, in place of version {former or 'none'}, run {run_id}.", "", *lines])
    tags = {"promoted_at": when, "promotion_run": run_id, "promotion_override": overridden}
    tags |= {f"promotion_{condition.name}": condition.says[:1000] for condition in conditions}
    description = model_card.promoted(version.description or "", section)
    return champion.Change(str(version.version), former, f"run {run_id}", tags, description)
