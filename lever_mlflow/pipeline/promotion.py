"""Defines what is done with registered versions: promotion to champion on evidence, the way back, and the list of versions.

Only a promotion always has an MLflow run, which holds its evidence. A rollback is recorded on the version that it makes
champion, and in the run that ``mlflow run`` made for it, if there is one. A list of versions leaves no run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import NoReturn

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_USER

from lever_mlflow.evaluation.policies import CHAMPION, epoch_policy
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.exceptions import DataError, LeverError, MissingRunError, PromotionError
from lever_mlflow.pipeline.context import Context, of_beta
from lever_mlflow.pipeline.evaluation import evaluate_version_step, read_evaluation, read_records
from lever_mlflow.pipeline.planning import look_ahead
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
    metrics,
    unknown,
)
from lever_mlflow.registry.listing import ListedVersion
from lever_mlflow.registry.model_card import describe_promotion, promoted
from lever_mlflow.registry.ownership import check_version
from lever_mlflow.registry.version_tags import NOTHING_OVERRIDDEN, VersionTag
from lever_mlflow.registry.versions import find_version, versions
from lever_mlflow.runs.artifacts import as_recorded, log_json
from lever_mlflow.runs.optional_runs import optional_run
from lever_mlflow.runs.planning import Plan, active_plan
from lever_mlflow.runs.steps import Step, active_run, ensure, run_here
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.runs.whole import lack_of_version
from lever_mlflow.settings import PromotionSettings, format_beta

__all__ = ["list_versions", "plan_promotion", "promote_step", "roll_back"]

EVIDENCE_FILE = "promotion.json"
PROMOTE, ROLLBACK = "promote", "rollback"
_EVALUATE_AGAIN = "run the evaluate step again"

log = logging.getLogger(__name__)


def promote_step(context: Context, kl_beta: float, settings: PromotionSettings) -> Step:
    """Prepares the promotion of a beta's version to champion, if the evidence is for it."""
    choices = {"model_name": context.registered_name, "kl_beta": kl_beta, **asdict(settings)}
    execute = partial(_promote, context, kl_beta, settings)
    options = {**context.shared_options(), PROMOTE: {**choices, "model_name": context.model_name}}
    return Step(PROMOTE, of_beta(PROMOTE, kl_beta), choices, {}, execute, config=options, repeatable=False)


def plan_promotion(context: Context, plan: Plan, kl_beta: float) -> None:
    """Adds to a plan what a promotion would do, with the evaluation of the champion where that has to be made."""
    version = find_version(context.registered_name, kl_beta)
    present = champion.holders(context.registered_name).champion
    if present not in (None, str(version.version)):
        with suppress(LeverError):  # without evidence nothing is evaluated, and the promotion says so
            look_ahead(plan, lambda: _comparable(context, str(present), _evaluated(version)), {})
    plan.look(of_beta(PROMOTE, kl_beta), 0, None)


def roll_back(context: Context, *, plan: bool = False) -> None:
    """Swaps the champion and the previous champion, or with ``plan`` only says which version would be champion again.

    The version that is champion again says so in a tag. It works in the run that ``mlflow run`` made for the entry point
    ``rollback``; started in any other way, it leaves no run.

    Raises:
        MissingRunError: there is no previous champion to go back to. PromotionError: another change of champion came first.
    """
    with optional_run(ROLLBACK) as run:
        if plan:
            version = _restorable(context)
            log.info("%s: version %s would be champion again; nothing was changed", context.registered_name, version)
        elif run is None:
            _rolled_back(context, f"user {_user()}")
        else:
            choices = {"model_name": context.registered_name}
            execute = partial(_log_rollback, context, run.info.run_id)
            run_here(Step(ROLLBACK, ROLLBACK, choices, {}, execute, repeatable=False))


def list_versions(context: Context) -> str:
    """Lists the versions of the registered model as a table, without the help of a run.

    Raises:
        MissingRunError: there is no such registered model.
    """
    name = context.registered_name
    rows = [ListedVersion(version, aliases, _evaluation_if_readable(version)) for version, aliases in versions(name)]
    return listing.table(name, rows)


def _promote(context: Context, kl_beta: float, settings: PromotionSettings) -> None:
    """Promotes a beta's version; the run holds the result and its evidence, whether it is promoted or not.

    Raises:
        PromotionError: a condition is not met, or another change of champion came first.
    """
    name = context.registered_name
    version = find_version(name, kl_beta)
    number, label = str(version.version), f"{name} version {version.version} (beta {format_beta(kl_beta)})"
    champion.settle(name)
    holders = champion.holders(name)
    if holders.champion == number:
        message = f"{label} is champion already; nothing was changed"
        set_description(describe_promotion("Nothing to do.", message, ()))
        return
    if lack := lack_of_version(version):
        raise PromotionError(f"{label}: {lack}, so it cannot be served; {_EVALUATE_AGAIN}, which registers it anew")
    conditions = _conditions(context, version, holders.champion, settings)
    _log_evidence(label, holders.champion, conditions, settings)
    failed = [condition for condition in conditions if not condition.met]
    if failed and not settings.force:
        _refuse(label, holders.champion, conditions, failed)
    try:
        champion.change(name, holders, _change(version, holders.champion, conditions))
    except PromotionError as error:
        set_description(describe_promotion("Not promoted.", str(error), conditions))
        raise
    previous = "" if holders.champion is None else f", version {holders.champion} previous-champion"
    forced = f"; force=true overrode: {', '.join(condition.name for condition in failed)}" if failed else ""
    message = f"{label} is champion{previous}{forced}"
    record({Tag.CHAMPION: number})
    set_description(describe_promotion("Promoted.", message, conditions))


def _log_evidence(label: str, former: str | None, conditions: Sequence[Condition], settings: PromotionSettings) -> None:
    for condition in conditions:
        log.info("%s: %s", "met" if condition.met else "NOT MET", condition.says)
    rows = [{**condition._asdict(), "gain": condition.gain and condition.gain._asdict()} for condition in conditions]
    log_json({"candidate": label, "champion": former, "conditions": rows, **asdict(settings)}, EVIDENCE_FILE)
    mlflow.log_metrics(metrics(conditions))


def _refuse(label: str, former: str | None, conditions: Sequence[Condition], failed: Sequence[Condition]) -> NoReturn:
    """Describes a refusal in the run and raises it."""
    present = "there is still no champion" if former is None else f"version {former} stays champion"
    message = f"{label}: {present}. Not met: {', '.join(condition.name for condition in failed)}."
    set_description(describe_promotion("Not promoted.", f"{message} force=true promotes it in spite of that.", conditions))
    raise PromotionError(
        f"{label} is not promoted: {'; '.join(condition.says for condition in failed)}; nothing was changed, "
        "force=true promotes it in spite of that"
    )


def _log_rollback(context: Context, run_id: str) -> None:
    message = _rolled_back(context, f"run {run_id}")
    record({Tag.CHAMPION: champion.holders(context.registered_name).champion})
    set_description(message)


def _rolled_back(context: Context, by: str) -> str:
    """Rolls back, unless a rollback that was interrupted had to be finished first; returns what was logged of it."""
    name = context.registered_name
    finished = champion.finish_rollback(name)
    if finished is not None:
        message = f"{champion.restored(name, finished)}, as an interrupted rollback had begun; nothing else was changed"
        log.info("%s", message)
        return message
    _restorable(context)
    return champion.restored(name, champion.rollback(name, by))


def _restorable(context: Context) -> str:
    """Returns the version that a rollback makes champion again.

    Raises:
        MissingRunError: as ``champion.restorable`` and ``check_version``.
    """
    number = champion.restorable(context.registered_name)
    check_version(context.registered_name, MlflowClient().get_model_version(context.registered_name, number))
    return number


def _user() -> str:
    """Returns the name of the user who runs this process, as MLflow writes it into the tag ``mlflow.user`` of runs."""
    return str(resolve_tags().get(MLFLOW_USER, "unknown"))


def _evaluation_if_readable(version: ModelVersion) -> Evaluation | None:
    """Reads the evaluation that a version names; None where it names none, or it was deleted or is of another format."""
    try:
        return read_evaluation(version.tags[VersionTag.EVALUATION_RUN])
    except (KeyError, LeverError):
        return None


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
    if active_plan() is None:
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
        raise MissingRunError(
            f"version {version.version} has no tag evaluation_run; run the evaluate step again with rerun=true"
        )
    run_id, registered = tags[VersionTag.EVALUATION_RUN], tags.get(VersionTag.EVALUATION_DIGEST)
    records = read_records(run_id)
    if records.digest != registered:
        raise DataError(
            f"run {run_id}: the records are not what version {version.version} was registered with "
            f"(digest {records.digest}, then {registered}); run the evaluate step again with rerun=true"
        )
    with as_recorded(f"version {version.version}", "its tag epoch"):
        policy = epoch_policy(int(tags[VersionTag.EPOCH]))
    return Evaluated(read_evaluation(run_id), records, policy)


def _change(version: ModelVersion, former: str | None, conditions: Sequence[Condition]) -> champion.Change:
    """Returns the aliases after a promotion, and what the version says of it in its tags and its description."""
    when, run_id = champion.now(), active_run().info.run_id
    overridden = ", ".join(condition.name for condition in conditions if not condition.met) or NOTHING_OVERRIDDEN
    lines = [f"- {condition.says}{'' if condition.met else ' (overridden by force=true)'}" for condition in conditions]
    section = "\n".join([f"Champion since {when}, in place of version {former or 'none'}, run {run_id}.", "", *lines])
    tags: dict[str, str] = {
        VersionTag.PROMOTED_AT: when,
        VersionTag.PROMOTION_RUN: run_id,
        VersionTag.PROMOTION_OVERRIDE: overridden,
    }
    return champion.Change(str(version.version), former, f"run {run_id}", tags, promoted(version.description or "", section))
