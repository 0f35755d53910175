"""Holds what all steps of an experiment share, and makes steps from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mlflow

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.runs.metrics import DATA
from lever_mlflow.runs.steps import Step
from lever_mlflow.runs.tags import Tag, set_tags
from lever_mlflow.settings import AUTO, GateSettings, RewardMode

__all__ = ["Context", "make_step"]


@dataclass(frozen=True)
class Context:
    """Holds what all steps of an experiment share.

    Attributes:
        resources: data set, VLM and encoder.
        seed: of every random choice.
        reward_mode: how a trial's scores become its reward.
        use_fallback: whether trials that only the fallback could score are used.
        model_name: the registered model that evaluation adds versions to; ``auto`` names it after data set and VLM.
        gate: how RL data are judged, and what happens to bad ones.

    Raises:
        ParameterError: MLflow takes no registered model of that name.
    """

    resources: Resources
    seed: int = 0
    reward_mode: RewardMode = "hard_plus_soft"
    use_fallback: bool = False
    model_name: str = AUTO
    gate: GateSettings = field(default_factory=GateSettings)

    def __post_init__(self) -> None:
        """Refuses names that MLflow's registry does not take."""
        if self.model_name != AUTO and not re.fullmatch(r"[\w .-]+", self.model_name):
            raise ParameterError(
                f"model_name={self.model_name!r}: registered models are named with letters, digits, spaces, _ . and -"
            )

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
            Tag.PROFILE_DIGEST: model.profile.digest,
            Tag.ENCODER_DIGEST: self.resources.encoder_digest,
            Tag.SEED: self.seed,
        }

    def common(self) -> dict[str, Any]:
        """Returns what runs must share so that ``auto`` may find one for the other."""
        return {**self.identity(), Tag.REWARD_MODE: self.reward_mode}


def make_step(
    context: Context,
    step: str,
    name: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    execute: Callable[[], None],
    labels: Mapping[str, Any] | None = None,
) -> Step:
    """Makes a step that works on the context's resources; arguments as ``Step``, ``labels`` beside the resources' names."""
    resources = context.resources
    names = {name: getattr(resources, name) for name in ("dataset", "vlm", "vlm_model", "encoder")}
    recorded = resources.language_model.recorded

    def run() -> None:
        _log_skipped(resources)
        execute()

    all_labels = {**names, "seed": context.seed, **asdict(resources.data), **recorded, **(labels or {})}
    return Step(step, name, settings, inputs, run, all_labels)


def _log_skipped(resources: Resources) -> None:
    """Logs how many questions ``on_bad_item=skip`` left out, and of which kinds."""
    if resources.data.on_bad_item == "skip":
        mlflow.log_metrics({f"{DATA}skipped_{split}": count for split, count in resources.left_out.items()})
        if resources.skipped_items:
            set_tags({Tag.SKIPPED_ITEMS: resources.skipped_items})
