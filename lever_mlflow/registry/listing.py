"""Lists what a registered model holds, as an aligned table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import ModelVersion

from lever_mlflow.files.tables import aligned
from lever_mlflow.registry.version_tags import NOTHING_OVERRIDDEN, VersionTag, accuracy_text, gain_text, overrides, shots_of

__all__ = ["table"]

_UNKNOWN = "-"


def table(name: str, versions: Sequence[tuple[ModelVersion, Sequence[str]]]) -> str:
    """Writes a row per version, ordered by beta: aliases, accuracies in percent, gain, digests, data gate.

    The gain is that over the strongest baseline, in points and in the mean over shots.

    Args:
        versions: each with its aliases.
    """
    ordered = sorted(versions, key=lambda row: (float(row[0].tags.get(VersionTag.KL_BETA, "inf")), int(row[0].version)))
    shots = sorted({count for version, _ in ordered for count in shots_of(version.tags)})
    head = ["beta", "version", "aliases", "epoch", "questions", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]
    head += ["gain over strongest baseline", "data set", "RL data", "gate", "overridden"]
    rows = [_row(version, aliases, shots) for version, aliases in ordered]
    return f"{name}: VQA accuracy in percent, gain in points as a mean over shots, 95 % intervals\n{aligned([head, *rows])}\n"


def _row(version: ModelVersion, aliases: Sequence[str], shots: Sequence[int]) -> list[str]:
    tags = version.tags
    return [
        tags.get(VersionTag.KL_BETA, _UNKNOWN),
        str(version.version),
        ", ".join(aliases) or _UNKNOWN,
        tags.get(VersionTag.EPOCH, _UNKNOWN),
        tags.get(VersionTag.QUESTIONS, _UNKNOWN),
        *(accuracy_text(tags, k) or _UNKNOWN for k in shots),
        gain_text(tags) or _UNKNOWN,
        tags.get(VersionTag.DATASET_DIGEST, _UNKNOWN),
        tags.get(VersionTag.RL_DATA_DIGEST, _UNKNOWN),
        tags.get(VersionTag.GATE, _UNKNOWN),
        _overridden(tags) or _UNKNOWN,
    ]


def _overridden(tags: Mapping[str, str]) -> str:
    """Says what was passed over: by ``on_bad_data=warn`` in training, by ``force=true`` in promotion."""
    forced = tags.get(VersionTag.PROMOTION_OVERRIDE, NOTHING_OVERRIDDEN)
    return ", ".join([*overrides(tags), *([] if forced == NOTHING_OVERRIDDEN else [f"forced: {forced}"])])
