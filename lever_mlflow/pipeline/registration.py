"""Registers an evaluation's best epoch as a retriever that can be served, or says why not; a part of the evaluation step."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.invocation import command
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.grpo import why_nothing_was_learnt
from lever_mlflow.registry.model_card import describe_registered_model
from lever_mlflow.registry.ownership import check_model, made_for
from lever_mlflow.registry.version_tags import VersionTag
from lever_mlflow.registry.versions import beta_alias, describe_model, holds, register
from lever_mlflow.runs.artifacts import living_run
from lever_mlflow.runs.tags import Tag
from lever_mlflow.serving.logged_models import checkpoint_folder, log_retriever
from lever_mlflow.serving.retriever_settings import RetrieverSettings
from lever_mlflow.settings import EvalSettings, format_beta

__all__ = ["check_registered_model", "refusal", "register_best"]

log = logging.getLogger(__name__)


def check_registered_model(context: Context) -> None:
    """Checks before any work that the registered model may take versions of this experiment.

    Raises:
        ParameterError: as ``check_model``.
    """
    if context.register != "never":
        check_model(context.registered_name, made_for(context.identity()))


def refusal(context: Context, evaluation: Evaluation) -> str:
    """Says in a sentence why a best epoch is not registered, and which command registers it; empty where it is registered."""
    if context.register == "always":
        return ""
    if context.register == "never":
        return "Not registered, as register=never was given."
    inputs = evaluation.inputs
    overridden = f"the data gate was overridden ({'; '.join(dict.fromkeys(inputs.overrides.values()))})"
    reason = overridden if inputs.overrides else why_nothing_was_learnt(inputs.grpo_run, evaluation.best_epoch)
    return f"Not registered, because {reason}; `{_registering(evaluation)}` registers it all the same." if reason else ""


def _registering(evaluation: Evaluation) -> str:
    """Returns the command that evaluates in the same way and registers the best epoch in any case."""
    default = asdict(EvalSettings())
    chosen = {name: value for name, value in asdict(evaluation.settings).items() if value != default[name]}
    further = {"checkpoints": evaluation.checkpoints} if evaluation.checkpoints else {}
    named = {"kl_beta": evaluation.kl_beta, "grpo_run": evaluation.inputs.grpo_run}
    return command("evaluate", **named, **chosen, **further, register="always")


def register_best(context: Context, evaluation: Evaluation) -> str:
    """Puts the retriever of an evaluation's best epoch behind its beta's alias, unless the evaluation says why not.

    The retriever is logged in the active run, unless a version holds it already.

    Returns:
        The version; an empty text where none is registered.
    """
    if evaluation.registration.refusal:
        return ""
    try:
        living_run(evaluation.inputs.grpo_run)
    except MissingRunError as error:
        log.warning("beta %s: nothing is registered, as its training is gone: %s", format_beta(evaluation.kl_beta), error)
        return ""
    registration, settings = evaluation.registration, _retriever_settings(context, evaluation)
    model_id, name = registration.model_id, context.registered_name
    if not holds(name, settings.digest):
        model_id = _log_retriever(context, evaluation, settings)
    tags = {**registration.tags, VersionTag.MADE_FOR: made_for(evaluation.inputs)}
    version = register(model_id, name, evaluation.kl_beta, settings.digest, tags, registration.description)
    describe_model(name, describe_registered_model(name, evaluation.resources))
    return version


def _retriever_settings(context: Context, evaluation: Evaluation) -> RetrieverSettings:
    folder = Path(context.resources.encoder).expanduser()
    return RetrieverSettings(
        checkpoint_digest=evaluation.registration.checkpoint_digest,
        dataset_digest=evaluation.inputs.dataset_digest,
        encoder=str(folder.resolve()) if folder.is_dir() else context.resources.encoder,
        encoder_digest=evaluation.inputs.encoder_digest,
        profile=evaluation.profile,
        pool_sampler=evaluation.settings.pool_sampler,
        pool_size=evaluation.settings.pool_size,
        seed=evaluation.inputs.seed,
        order=evaluation.settings.order,
    )


def _log_retriever(context: Context, evaluation: Evaluation, settings: RetrieverSettings) -> str:
    """Logs the retriever around an epoch's checkpoint; it is loaded first, since MLflow only warns of what cannot be loaded."""
    from lever_mlflow.serving.retriever import load_retriever, save_retriever

    resources, model_id = context.resources, evaluation.registration.model_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_retriever(folder, settings, checkpoint_folder(f"models:/{model_id}"), resources.train, resources.features("train"))
        load_retriever(folder)
        return log_retriever(
            f"retriever-{beta_alias(evaluation.kl_beta)}",
            folder,
            params={"kl_beta": evaluation.kl_beta, "epoch": evaluation.best_epoch, "checkpoint_model": model_id},
            tags={Tag.RETRIEVER_DIGEST: settings.digest, **evaluation.inputs.overrides},
        )
