"""Defines the trainings behind the data gate: RCE, and a round of GRPO, whose epochs ``epochs`` trains and logs."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.features import check_fusion
from lever_mlflow.pipeline.checkpoints import Start, start_selector
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.gate import suite_digest
from lever_mlflow.runs.search import absent, auto_run_id, find_run
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.runs.tags import Tag, run_tags
from lever_mlflow.selector.checkpoint_folder import read_meta
from lever_mlflow.serving.logged_models import checkpoint_folder
from lever_mlflow.settings import AUTO, GrpoSettings, RceSettings, format_beta
from lever_mlflow.training.filters import filter_summary
from lever_mlflow.trials.rl_data import RLData

__all__ = [
    "GRPO_ROUND",
    "RCE",
    "GrpoStart",
    "RoundPlace",
    "find_start",
    "rce_step",
    "round_step",
    "start_of_grpo",
    "start_of_run",
    "training_inputs",
]

RCE, GRPO_ROUND = "rce", "grpo-round"


def rce_step(context: Context, data: RLData, settings: RceSettings, resume: str = AUTO) -> Step:
    """Prepares the training of a new selector by reward-weighted cross-entropy.

    ``interrupted_training`` describes the values of ``resume``.

    Raises:
        DataError: as ``filter_summary``.
        ParameterError: the encoder does not give what the fusion takes.
    """
    check_fusion(settings.fusion, context.resources.encoder_sides)
    filter_summary(data, settings, context.seed)

    def execute() -> None:
        from lever_mlflow.pipeline.epochs import Training, run_training
        from lever_mlflow.training.rce import train_rce

        run_training(Training(context, RCE, data, settings, settings.fusion), train_rce, step, resume)

    options = {"rl_data": data.origin, **context.options_of_judgement(), "resume": resume}
    step = make_step(context, RCE, RCE, asdict(settings), training_inputs(context, data), execute, options)
    return step


def round_step(
    context: Context, data: RLData, start: str, settings: GrpoSettings, place: RoundPlace, resume: str = AUTO
) -> Step:
    """Prepares one round of GRPO: the optimisation of a policy on trials that were recorded from it.

    Args:
        start: the policy at the beginning of the round, by path or model URI.
        place: the round's place among the others.
        resume: as for ``interrupted_training``.
    """
    policy = start_of_grpo(context, start)
    reference = policy.policy if place.reference is None else start_selector(context, place.reference)
    inputs: dict[str, Any] = {
        **training_inputs(context, data),
        Tag.KL_BETA: settings.kl_beta,
        Tag.ROUND: place.number,
        Tag.REFERENCE_POLICY: reference.digest,
        **policy.tags,
    }

    def execute() -> None:
        from lever_mlflow.pipeline.epochs import Training, run_training
        from lever_mlflow.training.grpo import train_grpo

        selector = policy.policy.load()
        origin = {str(name): policy.tags[name] for name in (Tag.START_URI, Tag.START_DIGEST)}
        before = place.epochs_before
        training = Training(context, GRPO_ROUND, data, settings, selector.fusion, origin, policy.override, before)
        run_training(training, partial(train_grpo, reference=reference.load()), step, resume, start=selector)

    name = f"grpo beta {format_beta(settings.kl_beta)} round {place.number}"
    step = make_step(context, GRPO_ROUND, name, {**asdict(settings), "epochs_before": place.epochs_before}, inputs, execute)
    return step


class RoundPlace(NamedTuple):
    """Says where a round of GRPO stands among the others.

    Attributes:
        number: from 1.
        epochs_before: number of epochs of the rounds before it, after which its own epochs are counted on.
        reference: the checkpoint that the KL penalty refers to, by path or model URI; None for the round's own start.
    """

    number: int = 1
    epochs_before: int = 0
    reference: str | None = None


class GrpoStart(NamedTuple):
    """Holds a start checkpoint, the tags that name it, and the data gate's objections that its training overrode."""

    policy: Start
    tags: dict[str, str]
    override: dict[str, str]


def start_of_grpo(context: Context, reference: str) -> GrpoStart:
    """Finds a start checkpoint by path or model URI; errors as ``read_selector``."""
    folder = checkpoint_folder(reference)
    policy = start_selector(context, reference, folder)
    meta = read_meta(folder) if folder.is_dir() else {}
    overrides = "; ".join(meta[name] for name in (Tag.GATE_OVERRIDE, Tag.START_GATE_OVERRIDE) if name in meta)
    override = {str(Tag.START_GATE_OVERRIDE): overrides} if overrides else {}
    tags: dict[str, str] = {
        Tag.START_DIGEST: policy.digest,
        Tag.START: f"{meta.get('step', 'file')} epoch {meta.get('epoch', '?')}" if meta else Path(reference).name,
        Tag.START_URI: reference if ":/" in reference else str(Path(reference).resolve()),
        **override,
    }
    return GrpoStart(policy, tags, override)


def find_start(context: Context, reference: str, data: RLData) -> str:
    """Returns a start checkpoint by path or model URI; ``auto`` is the best epoch of the newest RCE run on these data."""
    if reference != AUTO:
        return reference
    run = find_run(RCE, {**context.same_trainings(), Tag.RL_DATA_DIGEST: data.digest})
    if run is None:
        absent("rce run on these RL data")
        return start_of_run(ensure(rce_step(context, data, RceSettings())))
    return start_of_run(auto_run_id("init", RCE, run))


def start_of_run(run_id: str) -> str:
    """Returns the URI of a training run's checkpoint with the highest expected reward on validation queries."""
    return f"models:/{run_tags(run_id)[Tag.BEST_MODEL]}"


def training_inputs(context: Context, data: RLData) -> dict[str, Any]:
    """Returns what decides the result of every training on these data, beside its settings."""
    return {**context.common(), Tag.RL_DATA_DIGEST: data.digest, Tag.SUITE_DIGEST: suite_digest(context)}
