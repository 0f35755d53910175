"""Holds what all steps of an experiment share, and makes steps from it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import mlflow

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.registry.champion import is_name_of_record
from lever_mlflow.runs.fields import LONGEST_MODEL_NAME
from lever_mlflow.runs.steps import Step
from lever_mlflow.runs.tags import Tag, record
from lever_mlflow.settings import AUTO, GateSettings, ItemOrder, Preset, Register, ResourceSettings, RewardMode, format_beta
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.vlm.asking import AnswerCounts

__all__ = ["ANSWERS_PER_SECOND", "Context", "make_step", "of_beta"]

ANSWERS_PER_SECOND = "vlm/answers_per_second"  # metric of runs that asked the VLM
POOR_ANSWERS = "vlm/answers_"  # metrics of runs that a server gave answers to that were no use, followed by their kind

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Context:
    """Holds what all steps of an experiment share.

    Attributes:
        resources: data set, VLM and encoder.
        seed: of every random choice.
        reward_mode, reward_weights: how a trial's scores become its reward; ``reward`` is both together.
        use_fallback: whether trials that only the fallback could score are used.
        item_order: the order in which the indices of RL data count, where the data do not tell it.
        model_name: the registered model that evaluation adds versions to; ``auto`` names it after data set and VLM.
        register: whether an evaluation registers its best epoch.
        gate: how RL data are judged, and what happens to bad ones.
        preset: what steps that have to be run first take their settings from.

    Raises:
        ParameterError: MLflow takes no registered model of that name, or the weights do not fit the reward mode.
    """

    resources: Resources
    seed: int = 0
    reward_mode: RewardMode = "hard_plus_soft"
    reward_weights: Mapping[str, float] = field(default_factory=dict)
    use_fallback: bool = False
    item_order: ItemOrder = "auto"
    model_name: str = AUTO
    register: Register = "auto"
    gate: GateSettings = field(default_factory=GateSettings)
    preset: Preset = "default"

    def __post_init__(self) -> None:
        """Refuses rewards that there are not, and names that MLflow's registry does not take."""
        _ = self.reward
        if self.model_name != AUTO and not re.fullmatch(r"[\w .-]+", self.model_name):
            raise ParameterError(
                f"model_name={self.model_name!r}: registered models are named with letters, digits, spaces, _ . and -"
            )
        if is_name_of_record(self.model_name):
            raise ParameterError(
                f"model_name={self.model_name!r}: names that end so are those of records that promote and rollback make and "
                "delete; choose another name"
            )
        if len(self.model_name) > LONGEST_MODEL_NAME:
            shown, length = f"{self.model_name[:20]}...", len(self.model_name)
            raise ParameterError(f"model_name: {shown} has {length} characters, more than the {LONGEST_MODEL_NAME} that fit")

    @property
    def reward(self) -> Reward:
        """Returns how a trial's scores become its reward."""
        return Reward(self.reward_mode, self.reward_weights)

    @property
    def registered_name(self) -> str:
        """Returns the name of the registered model."""
        return f"lever-selector-{self.resources.label}" if self.model_name == AUTO else self.model_name

    def identity(self) -> dict[str, Any]:
        """Returns the digests of what all steps work on, and the seed."""
        model = self.resources.language_model
        return {
            Tag.DATASET_DIGEST: self.resources.dataset_digest,
            Tag.VLM_DIGEST: model.digest,
            Tag.PROFILE_DIGEST: self.resources.profile_digest,
            Tag.ENCODER_DIGEST: self.resources.encoder_digest,
            Tag.SEED: self.seed,
        }

    def same_resources(self) -> dict[str, Any]:
        """Returns the tag that runs on the same resources and with the same seed share, by which one finds the other."""
        content = json.dumps({str(name): str(value) for name, value in self.identity().items()}, sort_keys=True)
        return {Tag.IDENTITY: hashlib.sha256(content.encode()).hexdigest()[:12]}

    def same_trainings(self) -> dict[str, Any]:
        """Returns the tags that trainings share so that ``auto`` may find one for the other."""
        return {**self.same_resources(), Tag.REWARD_MODE: self.reward.label}

    def common(self) -> dict[str, Any]:
        """Returns what a training records of that which all steps share."""
        return {**self.identity(), **self.same_trainings()}

    def shared_options(self) -> dict[str, Any]:
        """Returns the options that all steps share, by name, as they stand at the top of a configuration file."""
        names = {setting.name: getattr(self.resources, setting.name) for setting in fields(ResourceSettings)}
        return {**names, **asdict(self.resources.data), "seed": self.seed, "preset": self.preset}

    def options_of_judgement(self) -> dict[str, Any]:
        """Returns the options that all steps behind the data gate take, by name."""
        reading = {"use_fallback": self.use_fallback, "item_order": self.item_order}
        return {**self.reward.options, **reading, **asdict(self.gate)}


def of_beta(step: str, kl_beta: float) -> str:
    """Names the step of a beta, such as ``grpo beta 0.12``."""
    return f"{step} beta {format_beta(kl_beta)}"


def make_step(
    context: Context,
    step: str,
    name: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    execute: Callable[[], None],
    options: Mapping[str, Any] | None = None,
    *,
    shots: int | None = None,
    **details: Any,
) -> Step:
    """Makes a step that works on the context's resources.

    Args:
        step, name, settings, inputs, execute: as the attributes of ``Step``.
        options: further options of the command that runs the step, as a user types them; None where no command runs it.
        shots: most demonstrations of a prompt of the step, with which a server is tried now; None where it asks no VLM.
        details: further attributes of ``Step``.

    Raises:
        DataError, ServerError: as ``Resources.try_longest_prompt``.
    """
    if shots is not None:
        context.resources.try_longest_prompt(shots)
    shared = context.shared_options()

    def run() -> None:
        before = context.resources.answer_counts
        _record_resources(context.resources)
        execute()
        _log_answer_counts(name, before, context.resources.answer_counts)

    config = {} if options is None else {**shared, step: {**options, **settings}}
    return Step(step, name, settings, inputs, run, {**shared, **(options or {})}, **{"config": config, **details})


def _log_answer_counts(name: str, before: AnswerCounts, after: AnswerCounts) -> None:
    """Logs how many answers the VLM gave anew meanwhile, how many in a second, and how many were no use."""
    answers, seconds = after.answers - before.answers, after.seconds - before.seconds
    if answers:
        mlflow.log_metrics({"vlm/answers": answers, ANSWERS_PER_SECOND: answers / seconds})
    poor = {kind: more for kind, number in after.poor.items() if (more := number - before.poor.get(kind, 0))}
    if poor:
        mlflow.log_metrics({f"{POOR_ANSWERS}{kind}": number for kind, number in poor.items()})
        counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(poor.items()))
        log.warning("%s: of %s replies of the VLM's server: %s", name, f"{answers + poor.get('failed', 0):,}", counts)


def _record_resources(resources: Resources) -> None:
    """Records how the VLM is run and scored, and how many questions ``on_bad_item=skip`` left out, of which kinds."""
    record({**resources.language_model.recorded, Tag.SCORING: resources.data.scoring})
    if resources.skipped_items:
        record({Tag.SKIPPED_ITEMS: resources.skipped_items})
