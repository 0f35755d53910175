"""Finds out what differs between the runs of a comparison beside beta."""

from __future__ import annotations

import itertools

from lever_mlflow.comparison.facts import ComparedField, Mark
from lever_mlflow.comparison.results import Results, RunResult, Scalar

__all__ = ["compared_fields"]

_OF_BETA = frozenset({"kl_beta", "training.kl_beta"})
_DIGEST, _SOURCE = "rl_data.digest", "rl_data.source"


def compared_fields(results: Results) -> tuple[ComparedField, ...]:
    """Returns every field of the runs with its values and a mark."""
    fields_of_runs = [_fields(run) for run in results.runs]
    names = dict.fromkeys(itertools.chain.from_iterable(fields_of_runs))
    columns = {name: tuple(fields.get(name) for fields in fields_of_runs) for name in names}
    marks = {name: _mark(name, values, complete=results.complete) for name, values in columns.items()}
    if marks.get(_DIGEST) == "same" and _SOURCE in marks:
        marks[_SOURCE] = "same"  # the same contents, wherever they were read
    return tuple(ComparedField(field=name, values=columns[name], mark=marks[name]) for name in names)


def _fields(run: RunResult) -> dict[str, Scalar]:
    return {**{f"rl_data.{name}": value for name, value in run.rl_data.items()}, **run.config, "kl_beta": run.kl_beta}


def _mark(name: str, values: tuple[Scalar | None, ...], *, complete: bool) -> Mark:
    stated = values if complete else tuple(value for value in values if value is not None)
    if any(value != stated[0] for value in stated):
        return "intended" if name in _OF_BETA else "confounding"
    return "same" if len(stated) == len(values) else "unknown"
