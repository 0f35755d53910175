"""Names the tags of registered versions, makes them from an evaluation, and reads them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from lever_mlflow.evaluation.policies import epoch_policy, metric_name
from lever_mlflow.evaluation.result import Evaluation

__all__ = [
    "NOTHING_OVERRIDDEN",
    "Estimate",
    "Lead",
    "VersionTag",
    "accuracy_text",
    "evaluation_tags",
    "gain_text",
    "is_measured",
    "overrides",
    "promotion_tag",
    "shots_of",
]

_ACCURACY, _BASELINE = "acc", "baseline"  # beginnings of the tags that hold accuracies
_ALL_SHOTS = "mean"
_INPUTS = (
    *("dataset_digest", "vlm_digest", "profile_digest", "encoder_digest", "seed", "rl_data_digest", "gate"),
    *("gate_override", "start_gate_override", "start", "start_digest", "start_uri", "grpo_run"),
)


class VersionTag(StrEnum):
    """Names a tag of a version."""

    KL_BETA = "kl_beta"
    EPOCH = "epoch"
    SELECTOR_DIGEST = "selector_digest"  # of the weights
    MODEL_DIGEST = "model_digest"  # of all that the model holds; the same model is registered once
    EVALUATION_RUN = "evaluation_run"
    EVALUATION_DIGEST = "evaluation_digest"  # of the records there
    QUESTIONS = "questions"  # that the accuracies are over
    STRONGEST_BASELINE = "strongest_baseline"  # in the mean over shots
    GAIN_OVER_STRONGEST = "gain_over_strongest"  # paired, in points, in the mean over shots
    GIT_COMMIT = "git_commit"
    DATASET_DIGEST = "dataset_digest"
    RL_DATA_DIGEST = "rl_data_digest"
    GATE = "gate"
    GATE_OVERRIDE = "gate_override"
    START_GATE_OVERRIDE = "start_gate_override"
    PROMOTED_AT = "promoted_at"
    PROMOTION_RUN = "promotion_run"
    PROMOTION_OVERRIDE = "promotion_override"  # conditions that force=true overrode, or NOTHING_OVERRIDDEN


NOTHING_OVERRIDDEN = "none"


class Estimate(NamedTuple):
    """Holds a mean accuracy in percent, or a mean gain in points, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def signed(self) -> str:
        """Writes a gain, such as ``+1.25 [-0.50, +3.00]``."""
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Lead(NamedTuple):
    """Holds how far a version is ahead of the strongest baseline (below 0: behind it), and which baseline that is."""

    baseline: str
    gain: Estimate


def evaluation_tags(
    evaluation: Evaluation, records_digest: str, accuracies: Mapping[tuple[str, int | None], Estimate], lead: Lead | None
) -> dict[str, str]:
    """Makes the tags of the version that holds an evaluation's best epoch.

    Args:
        records_digest: of the evaluation's records.
        accuracies: by policy and shot count at the largest size; None stands for the mean over shots.
        lead: over the strongest baseline in the mean over shots; None where there is no baseline.
    """
    size = max(evaluation.settings.sizes)
    inputs = evaluation.inputs.model_dump()
    tags = {name: str(inputs[name]) for name in _INPUTS if inputs[name] is not None}
    tags |= {
        VersionTag.EPOCH: str(evaluation.best_epoch),
        VersionTag.EVALUATION_RUN: evaluation.run_id,
        VersionTag.EVALUATION_DIGEST: records_digest,
        VersionTag.GIT_COMMIT: evaluation.git_commit,
        VersionTag.QUESTIONS: str(size),
    }
    if lead is not None:
        tags |= {VersionTag.STRONGEST_BASELINE: lead.baseline, VersionTag.GAIN_OVER_STRONGEST: lead.gain.signed}
    for (policy, shots), estimate in accuracies.items():
        if policy == epoch_policy(evaluation.best_epoch):
            name = _accuracy_tag(size, shots)
            tags[name] = f"{estimate.mean:.2f}"
            tags[f"{name}_interval"] = f"[{estimate.low:.2f}, {estimate.high:.2f}]"
        else:
            tags[f"{_BASELINE}_{metric_name(policy)}_{_cell(size, shots)}"] = f"{estimate.mean:.2f}"
    return tags


def is_measured(tag: str) -> bool:
    """Says whether a tag holds what an evaluation measured: an accuracy of the version or a baseline, or the gain over one."""
    gain = (VersionTag.STRONGEST_BASELINE, VersionTag.GAIN_OVER_STRONGEST)
    return tag in gain or tag.startswith((f"{_ACCURACY}_", f"{_BASELINE}_"))


def shots_of(tags: Iterable[str]) -> set[int]:
    """Returns the shot counts that a version's own accuracies are known at."""
    return {int(match[1]) for tag in tags if (match := re.fullmatch(rf"{_ACCURACY}_n\d+_shots(\d+)", tag))}


def accuracy_text(tags: Mapping[str, str], shots: int) -> str | None:
    """Returns a version's accuracy at a shot count with its interval, such as ``68.84 [65.66, 72.01]``; None where unknown."""
    name = _accuracy_tag(tags.get(VersionTag.QUESTIONS, "?"), shots)
    return f"{tags[name]} {tags.get(f'{name}_interval', '')}".rstrip() if name in tags else None


def gain_text(tags: Mapping[str, str]) -> str | None:
    """Returns a version's gain over the strongest baseline: ``+1.25 [-0.50, +3.00] over random``; None where unknown."""
    gain, baseline = tags.get(VersionTag.GAIN_OVER_STRONGEST), tags.get(VersionTag.STRONGEST_BASELINE)
    return None if gain is None or baseline is None else f"{gain} over {baseline}"


def overrides(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns what ``on_bad_data=warn`` let through in training, by tag."""
    return {name: tags[name] for name in (VersionTag.GATE_OVERRIDE, VersionTag.START_GATE_OVERRIDE) if name in tags}


def promotion_tag(condition: str) -> str:
    """Names the tag that holds the evidence on a condition of a promotion."""
    return f"promotion_{condition}"


def _accuracy_tag(size: int | str, shots: int | None) -> str:
    return f"{_ACCURACY}_{_cell(size, shots)}"


def _cell(size: int | str, shots: int | None) -> str:
    return f"n{size}_{_ALL_SHOTS if shots is None else f'shots{shots}'}"
