"""Names the tags of registered versions, and makes them from an evaluation.

A version has about ten tags: those by which it is looked up, and those that say at a glance how good it is. Everything else is
in its model card, and in the artifacts of the evaluation that the tag ``evaluation_run`` names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import NamedTuple

from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.evaluation.rounding import decimals, interval_text

__all__ = ["NOTHING_OVERRIDDEN", "Estimate", "Lead", "VersionTag", "evaluation_tags", "measured", "overrides"]

_FORMER_CELL = re.compile(r"(acc|baseline_\w+)_n\d+_(mean|shots\d+)(_interval)?")  # tags of earlier versions of this package
_FORMER_MEASURES = {"questions", "strongest_baseline", "gain_over_strongest"}  # which they had beside those


class VersionTag(StrEnum):
    """Names a tag of a version."""

    ACCURACY = "accuracy"  # in percent, as a mean over shots, with its interval and the number of questions
    GAIN = "gain"  # over the strongest baseline: paired, in points, as a mean over shots, with its interval
    KL_BETA = "kl_beta"
    EPOCH = "epoch"
    GATE = "gate"
    GATE_OVERRIDE = "gate_override"
    START_GATE_OVERRIDE = "start_gate_override"
    EVALUATION_RUN = "evaluation_run"
    EVALUATION_DIGEST = "evaluation_digest"  # of the records there
    MADE_FOR = "made_for"  # digests of data set, VLM, encoder and profile; a tag of the registered model, too
    MODEL_DIGEST = "model_digest"  # of all that the model holds; the same model is registered once
    PROMOTED_AT = "promoted_at"
    PROMOTION_RUN = "promotion_run"
    PROMOTION_OVERRIDE = "promotion_override"  # conditions that force=true overrode, or NOTHING_OVERRIDDEN
    RESTORED = "restored"  # when a rollback made the version champion again, in place of which one, and who made it


NOTHING_OVERRIDDEN = "none"


class Estimate(NamedTuple):
    """Holds a mean accuracy in percent, or a mean gain in points, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{decimals(self.mean)} [{decimals(self.low)}, {decimals(self.high)}]"

    @property
    def signed(self) -> str:
        """Writes a gain, such as ``+1.25 [-0.50, +3.00]``."""
        return f"{decimals(self.mean, signed=True)} {interval_text((self.low, self.high))}"


class Lead(NamedTuple):
    """Holds how far a version is ahead of the strongest baseline (below 0: behind it), and which baseline that is."""

    baseline: str
    gain: Estimate

    def __str__(self) -> str:
        return f"{self.gain.signed} over {self.baseline}"


def evaluation_tags(evaluation: Evaluation, records_digest: str, accuracy: Estimate, lead: Lead | None) -> dict[str, str]:
    """Makes the tags of the version that holds an evaluation's best epoch.

    Args:
        records_digest: of the evaluation's records.
        accuracy: of the best epoch in the mean over shots, at the largest size.
        lead: over the strongest baseline in the mean over shots; None where there is no baseline.
    """
    return {
        VersionTag.ACCURACY: f"{accuracy} on {max(evaluation.settings.sizes)} questions",
        **({} if lead is None else {VersionTag.GAIN: str(lead)}),
        VersionTag.EPOCH: str(evaluation.best_epoch),
        VersionTag.GATE: evaluation.inputs.gate,
        **evaluation.inputs.overrides,
        VersionTag.EVALUATION_RUN: evaluation.run_id,
        VersionTag.EVALUATION_DIGEST: records_digest,
    }


def measured(tags: Collection[str]) -> set[str]:
    """Returns those of a version's tags that hold what an evaluation measured, which the next evaluation replaces.

    Tags that somebody else gave the version are not among them.
    """
    cells = {tag for tag in tags if _FORMER_CELL.fullmatch(tag)}
    return cells | ({VersionTag.ACCURACY, VersionTag.GAIN, *(_FORMER_MEASURES if cells else ())} & {*tags})


def overrides(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns what ``on_bad_data=warn`` let through in training, by tag."""
    return {name: tags[name] for name in (VersionTag.GATE_OVERRIDE, VersionTag.START_GATE_OVERRIDE) if name in tags}
