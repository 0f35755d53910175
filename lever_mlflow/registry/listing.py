"""Lists what a registered model holds, as an aligned table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import NamedTuple

from mlflow.entities.model_registry import ModelVersion

from lever_mlflow.evaluation.policies import epoch_policy
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.files.tables import aligned
from lever_mlflow.registry.ownership import is_ours
from lever_mlflow.registry.version_tags import NOTHING_OVERRIDDEN, VersionTag, overrides

__all__ = ["ListedVersion", "table"]

_UNKNOWN = "-"
_SHOWN = 8  # characters of a digest


class ListedVersion(NamedTuple):
    """Holds a version with its aliases and the evaluation that registered it; None where that evaluation cannot be read."""

    version: ModelVersion
    aliases: Sequence[str]
    evaluation: Evaluation | None


def table(name: str, versions: Sequence[ListedVersion]) -> str:
    """Writes a row per version, ordered by beta: aliases, accuracies in percent, gain, digests, data gate.

    Accuracy and gain with their intervals are means over shots, and come from the tags of the version. The accuracies by shots
    and the digests come from its evaluation. What is not known is shown as ``-``, as is all of a version that somebody else
    has registered there.
    """
    ordered = sorted(versions, key=_place)
    accuracies = [_by_shots(row.evaluation) for row in ordered]
    shots = sorted({count for by_shots in accuracies for count in by_shots})
    head = ["beta", "version", "aliases", "epoch", "accuracy", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]
    head += ["gain over strongest baseline", "data set", "RL data", "gate", "overridden"]
    rows = [_row(row, by_shots, shots) for row, by_shots in zip(ordered, accuracies, strict=True)]
    return f"{name}: VQA accuracy in percent, gain in points, means over shots with 95 % intervals\n{aligned([head, *rows])}\n"


def _place(row: ListedVersion) -> tuple[float, int]:
    """Returns what versions are ordered by: beta, then number. Those that no evaluation registered come last."""
    beta = float(row.version.tags[VersionTag.KL_BETA]) if is_ours(row.version) else inf
    return beta, int(row.version.version)


def _row(row: ListedVersion, by_shots: Mapping[int, float], shots: Sequence[int]) -> list[str]:
    tags, evaluation = row.version.tags if is_ours(row.version) else {}, row.evaluation
    digests = [_UNKNOWN, _UNKNOWN]
    if evaluation is not None:
        digests = [evaluation.inputs.dataset_digest[:_SHOWN], evaluation.inputs.rl_data_digest[:_SHOWN]]
    return [
        tags.get(VersionTag.KL_BETA, _UNKNOWN),
        str(row.version.version),
        ", ".join(row.aliases) or _UNKNOWN,
        tags.get(VersionTag.EPOCH, _UNKNOWN),
        tags.get(VersionTag.ACCURACY, _UNKNOWN),
        *(decimals(100.0 * by_shots[k]) if k in by_shots else _UNKNOWN for k in shots),
        tags.get(VersionTag.GAIN, _UNKNOWN),
        *digests,
        tags.get(VersionTag.GATE, _UNKNOWN),
        _overridden(tags) or _UNKNOWN,
    ]


def _by_shots(evaluation: Evaluation | None) -> dict[int, float]:
    """Returns the accuracies of an evaluation's best epoch at its largest size, in [0, 1], by shot count."""
    if evaluation is None:
        return {}
    best_epoch, size = epoch_policy(evaluation.best_epoch), max(evaluation.settings.sizes)
    return {cell.shots: cell.accuracy for cell in evaluation.accuracy if (cell.policy, cell.size) == (best_epoch, size)}


def _overridden(tags: Mapping[str, str]) -> str:
    """Says what was passed over: by ``on_bad_data=warn`` in training, by ``force=true`` in promotion."""
    forced = tags.get(VersionTag.PROMOTION_OVERRIDE, NOTHING_OVERRIDDEN)
    return ", ".join([*overrides(tags), *([] if forced == NOTHING_OVERRIDDEN else [f"forced: {forced}"])])
