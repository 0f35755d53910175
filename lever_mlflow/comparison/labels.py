"""Names the runs of a comparison by what differs between them: ``lr 5e-06``, ``TextSimSampler``, or a beta such as ``0.12``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lever_mlflow.comparison.facts import ComparedField
from lever_mlflow.comparison.fields import KL_BETA, aspect_of
from lever_mlflow.comparison.results import RunResult, Scalar
from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import as_text, format_beta

__all__ = ["labelled", "named_by_beta"]

_LONGEST = 40  # characters of a value in a label
_DIGEST = 8  # characters of a digest or of a run id in a label


def named_by_beta(runs: Sequence[RunResult], varied: Sequence[str]) -> bool:
    """Says whether the runs are named by their betas: these alone are meant to differ, and no run has another label."""
    betas = [format_beta(run.kl_beta) for run in runs if run.kl_beta is not None]
    different = len(set(betas)) == len(runs)
    return tuple(varied) == (KL_BETA,) and different and all(r.label in ("", b) for r, b in zip(runs, betas, strict=True))


def labelled(runs: Sequence[RunResult], fields: Sequence[ComparedField], varied: Sequence[str]) -> tuple[RunResult, ...]:
    """Returns the runs with a label each: the label that they came with, else one made of what differs between them.

    Args:
        fields: of the runs.
        varied: the aspects or fields that are meant to differ, which labels are made of first.

    Raises:
        DataError: two runs have the same label.
    """
    if named_by_beta(runs, varied):
        labels = [format_beta(run.kl_beta) for run in runs if run.kl_beta is not None]
    else:
        labels = [run.label or short for run, short in zip(runs, _short_labels(runs, fields, varied), strict=True)]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise DataError(f"runs: {labels.count(twice[0])} of them have the label {twice[0]!r}; give each run a label of its own")
    return tuple(run.model_copy(update={"label": label}) for run, label in zip(runs, labels, strict=True))


def _short_labels(runs: Sequence[RunResult], fields: Sequence[ComparedField], varied: Sequence[str]) -> list[str]:
    """Returns labels of as few values as tell the runs apart; where none do, the ids of the runs tell them apart."""
    labels = [""] * len(runs)
    for field in _telling(fields, varied):
        labels = [_joined(label, _text(field.field, value)) for label, value in zip(labels, field.values, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    names = [run.run_id[:_DIGEST] or str(number) for number, run in enumerate(runs, start=1)]
    return [_joined(label, f"run {name}") for label, name in zip(labels, names, strict=True)]


def _telling(fields: Sequence[ComparedField], varied: Sequence[str]) -> Iterator[ComparedField]:
    """Returns a field of each aspect in which runs may differ: first what is meant to, last what not all state."""
    for names in varied, (aspect_of(field.field) for field in fields if field.mark == "confounding"):
        for name in dict.fromkeys(names):
            members = [field for field in fields if name in (field.field, aspect_of(field.field)) and _differs(field)]
            if members:
                yield max(members, key=_clarity)
    yield from (field for field in fields if field.mark == "unknown")


def _differs(field: ComparedField) -> bool:
    return field.mark in ("intended", "confounding")


def _clarity(field: ComparedField) -> tuple[int, bool]:
    """Ranks the fields of an aspect: by how many runs they tell apart, and words before digests."""
    return len(set(map(str, field.values))), not field.field.endswith("digest")


def _text(field: str, value: Scalar | None) -> str:
    """Writes a value so that it can stand alone: a name as it is, anything else behind the name of its field."""
    name = field.rpartition(".")[2]
    if value is None:
        return f"{name} not stated"
    text = " ".join(as_text(value).split())
    if name.endswith("digest"):
        return f"{name} {text[:_DIGEST]}"
    if isinstance(value, str) and re.search(r"[^\W\d_]", text):
        return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"
    return f"{name} {text}".rstrip()


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))
