"""What a registered model holds, as an aligned table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow.entities.model_registry import ModelVersion

__all__ = ["table"]


def table(name: str, versions: Sequence[tuple[ModelVersion, Sequence[str]]]) -> str:
    """A row per version, ordered by beta: aliases, accuracies in percent with 95 % intervals by shots, digests, data gate.

    Args:
        versions: each with its aliases.
    """
    rows = sorted(versions, key=lambda row: (float(row[0].tags.get("kl_beta", "inf")), int(row[0].version)))
    shots = sorted({_shots(key) for version, _ in rows for key in version.tags if _is_accuracy(key)})
    head = ["beta", "version", "aliases", "epoch", "questions", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]
    lines = [[*head, "data set", "RL data", "gate", "overridden"]]
    for version, aliases in rows:
        tags = version.tags
        cells = [_accuracy(tags, f"acc_n{tags.get('questions')}_shots{k}") for k in shots]
        digests = [tags.get("dataset_digest", "-"), tags.get("rl_data_digest", "-")]
        lines.append(
            [
                tags.get("kl_beta", "-"),
                str(version.version),
                ", ".join(aliases) or "-",
                tags.get("epoch", "-"),
                tags.get("questions", "-"),
                *cells,
                *digests,
                tags.get("gate", "-"),
                _overridden(tags),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{name}: VQA accuracy in percent, 95 % intervals", *aligned]) + "\n"


def _is_accuracy(key: str) -> bool:
    return key.startswith("acc_n") and "_shots" in key and not key.endswith("_interval")


def _shots(key: str) -> int:
    return int(key.rpartition("_shots")[2])


def _accuracy(tags: Mapping[str, str], key: str) -> str:
    return f"{tags[key]} {tags.get(f'{key}_interval', '')}".rstrip() if key in tags else "-"


def _overridden(tags: Mapping[str, str]) -> str:
    """What was passed over: by ``on_bad_data=warn`` in training, by ``force=true`` in promotion."""
    names = [name for name in ("gate_override", "start_gate_override") if name in tags]
    forced = tags.get("promotion_override", "none")
    return ", ".join([*names, *([] if forced == "none" else [f"forced: {forced}"])]) or "-"
