"""What all steps of an experiment share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlflow

from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.runs.tags import TAG
from lever_mlflow.settings import GateSettings, RewardMode

__all__ = ["LEFT_OUT", "OVERRIDES", "Context", "log_skipped"]

LEFT_OUT = "skipped_train"  # in the meta of RL data: training items left out when they were recorded
OVERRIDES = ("gate_override", "start_gate_override")  # tags of what was trained on data that the gate would have stopped


@dataclass(frozen=True)
class Context:
    """What all steps of an experiment share.

    Attributes:
        resources: data set, VLM and encoder.
        seed: of every random choice.
        reward_mode: how a trial's scores become its reward.
        registered_name: the registered model that evaluation adds versions to.
        gate: how RL data are judged, and what happens to bad ones.
    """

    resources: Resources
    seed: int
    reward_mode: RewardMode
    registered_name: str
    gate: GateSettings = field(default_factory=GateSettings)

    def identity(self) -> dict[str, Any]:
        """Digests of what all steps work on; runs that share them may be found by ``auto``."""
        model = self.resources.language_model
        return {
            "dataset_digest": self.resources.dataset_digest,
            "vlm_digest": model.digest,
            "profile_digest": model.profile.digest,
            "encoder_digest": self.resources.encoder_digest,
            "seed": self.seed,
        }


def log_skipped(resources: Resources) -> None:
    """Where ``on_bad_item=skip``: how many questions it left out, and the tag ``lever.skipped_items`` if any."""
    if resources.data.on_bad_item == "skip":
        mlflow.log_metrics({f"data/skipped_{split}": count for split, count in resources.left_out.items()})
        if resources.skipped_items:
            mlflow.set_tag(f"{TAG}skipped_items", resources.skipped_items)
