"""Defines the steps of the registry: promotion to champion on evidence, the way back, and the list of versions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from lever_mlflow.evaluation.policies import CHAMPION, epoch_policy
from lever_mlflow.exceptions import DataError, LeverError, MissingRunError, PromotionError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import evaluate_version_step, read_evaluation, read_records
from lever_mlflow.registry import champion, listing
from lever_mlflow.registry.evidence import (
    Condition,
    ConditionName,
    Evaluated,
    covers,
    gain_over_champion,
    gain_over_random,
    gain_over_similarity,
    gate_condition,
    unknown,
)
from lever_mlflow.registry.model_card import promoted
from lever_mlflow.registry.version_tags import NOTHING_OVERRIDDEN, VersionTag, promotion_tag
from lever_mlflow.registry.versions import find_version, versions
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.steps import Step, active_run, ensure
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.settings import PromotionSettings, format_beta

__all__ = ["promote_step", "read_listing", "rollback_step", "status_step"]

EVIDENCE_FILE, STATUS_FILE = "promotion.json", "status.txt"
_LONGEST_EVIDENCE = 1_000  # characters of a tag

log = logging.getLogger(__name__)


def promote_step(context: Context, kl_beta: float, settings: PromotionSettings) -> Step:
    """Prepares the promotion of a beta's version to champion, if the evidence is for it."""
    choices = {"model_name": context.registered_name, "kl_beta": kl_beta, **asdict(settings)}
    execute = partial(_promote, context, kl_beta, settings)
    return Step("promote", f"promote beta {format_beta(kl_beta)}", choices, {}, execute)


def rollback_step(context: Context) -> Step:
    """Prepares the rollback, which swaps the champion and the previous champion."""
    return Step("rollback", "rollback", {"model_name": context.registered_name}, {}, partial(_roll_back, context))


def status_step(context: Context) -> Step:
    """Prepares the list of the versions of the registered model."""
    return Step("status", "status", {"model_name": context.registered_name}, {}, partial(_log_status, context))


def read_listing(status_run: str) -> str:
    """Reads the table that a status run logged."""
    return artifact(status_run, STATUS_FILE).read_text(encoding="utf-8")


def _promote(context: Context, kl_beta: float, settings: PromotionSettings) -> None:
    """Promotes a beta's version; the result becomes the run's description.

    Raises:
        PromotionError: a condition is not met, or another change of champion came first.
    """
    try:
        message = _promoted(context, kl_beta, settings)
    except PromotionError as error:
        set_description(str(error))
        raise
    log.info("%s", message)
    set_description(message)


def _roll_back(context: Context) -> None:
    name = context.registered_name
    holders = champion.rollback(name, active_run().info.run_id)
    record({Tag.CHAMPION: holders.champion})
    message = f"{name}: version {holders.champion} is champion again, version {holders.previous} previous-champion"
    log.info("%s", message)
    set_description(message)


def _log_status(context: Context) -> None:
    mlflow.log_text(listing.table(context.registered_name, versions(context.registered_name)), STATUS_FILE)


def _promoted(context: Context, kl_beta: float, settings: PromotionSettings) -> str:
    """Weighs the evidence, makes the change, and says what was done."""
    name = context.registered_name
    version = find_version(name, kl_beta)
    number, label = str(version.version), f"{name} version {version.version} (beta {format_beta(kl_beta)})"
    champion.settle(name)
    holders = champion.holders(name)
    if holders.champion == number:
        return f"{label} is champion already; nothing was changed"
    conditions = _conditions(context, version, holders.champion, settings)
    for condition in conditions:
        log.info("%s: %s", "met" if condition.met else "NOT MET", condition.says)
    failed = [condition for condition in conditions if not condition.met]
    rows = [{**condition._asdict(), "gain": condition.gain and condition.gain._asdict()} for condition in conditions]
    evidence = {"candidate": label, "champion": holders.champion, "conditions": rows, **asdict(settings)}
    mlflow.log_dict(evidence, EVIDENCE_FILE)
    if failed and not settings.force:
        raise PromotionError(
            f"{label} is not promoted: {'; '.join(condition.says for condition in failed)}; nothing was changed, "
            "force=true promotes it in spite of that"
        )
    champion.change(name, holders, _change(version, holders.champion, conditions))
    record({Tag.CHAMPION: number})
    former = "" if holders.champion is None else f", version {holders.champion} previous-champion"
    forced = f"; force=true overrode: {', '.join(condition.name for condition in failed)}" if failed else ""
    return f"{label} is champion{former}{forced}"


def _conditions(
    context: Context, version: ModelVersion, champion_version: str | None, settings: PromotionSettings
) -> list[Condition]:
    """Judges the data gate, the gains over random and similar demonstrations and, where there is a champion, that over it."""
    judges: dict[ConditionName, Callable[[Evaluated], Condition]] = {
        "random": gain_over_random,
        "similarity": lambda candidate: gain_over_similarity(candidate, settings),
    }
    if champion_version is not None:
        judges["champion"] = lambda candidate: gain_over_champion(
            candidate, _comparable(context, champion_version, candidate), settings
        )
    gate = gate_condition(version.tags)
    try:
        candidate = _evaluated(version)
    except LeverError as error:
        return [gate, *(unknown(name, error) for name in judges)]
    return [gate, *(_judged(name, judge, candidate) for name, judge in judges.items())]


def _judged(name: ConditionName, judge: Callable[[Evaluated], Condition], candidate: Evaluated) -> Condition:
    """Judges a condition; without evidence on it, it is not met."""
    try:
        return judge(candidate)
    except LeverError as error:
        return unknown(name, error)


def _comparable(context: Context, number: str, candidate: Evaluated) -> Evaluated:
    """Returns the champion's evaluation if it covers the candidate's questions, else one on these questions, made now."""
    try:
        evaluated = _evaluated(MlflowClient().get_model_version(context.registered_name, number))
        if covers(evaluated, candidate):
            return evaluated
        reason = "was evaluated on other questions, shots or pools"
    except LeverError as error:
        reason = f"has no evaluation to compare with ({error})"
    log.info("the champion, version %s, %s: evaluating it on those of the candidate", number, reason)
    run_id = ensure(evaluate_version_step(context, number, candidate.evaluation))
    return Evaluated(candidate.evaluation, read_records(run_id), CHAMPION)


def _evaluated(version: ModelVersion) -> Evaluated:
    """Reads the evaluation that a version was registered by.

    Raises:
        MissingRunError: the version does not name it. DataError: its artifacts are gone, or not what they were.
    """
    tags = version.tags
    if VersionTag.EVALUATION_RUN not in tags:
        raise MissingRunError(f"version {version.version} has no tag evaluation_run; run the evaluate step again")
    run_id, registered = tags[VersionTag.EVALUATION_RUN], tags.get(VersionTag.EVALUATION_DIGEST)
    records = read_records(run_id)
    if records.digest != registered:
        raise DataError(
            f"run {run_id}: the records are not what version {version.version} was registered with "
            f"(digest {records.digest}, then {registered}); run the evaluate step again"
        )
    return Evaluated(read_evaluation(run_id), records, epoch_policy(int(tags[VersionTag.EPOCH])))


def _change(version: ModelVersion, former: str | None, conditions: Sequence[Condition]) -> champion.Change:
    """Returns the aliases after a promotion, and what the version says of it in its tags and its description."""
    when, run_id = datetime.now(UTC).isoformat(timespec="seconds"), active_run().info.run_id
    overridden = ", ".join(condition.name for condition in conditions if not condition.met) or NOTHING_OVERRIDDEN
    lines = [f"- {condition.says}{'' if condition.met else ' (overridden by force=true)'}" for condition in conditions]
    section = "\n".join([f"Champion since {when}, in place of version {former or 'none'}, run {run_id}.", "", *lines])
    tags: dict[str, str] = {
        VersionTag.PROMOTED_AT: when,
        VersionTag.PROMOTION_RUN: run_id,
        VersionTag.PROMOTION_OVERRIDE: overridden,
        **{promotion_tag(condition.name): condition.says[:_LONGEST_EVIDENCE] for condition in conditions},
    }
    return champion.Change(str(version.version), former, f"run {run_id}", tags, promoted(version.description or "", section))
