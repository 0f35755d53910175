"""Finds out what differs between the runs of a comparison, and which of it is meant to differ.

Several fields may tell of the same thing, as the words and the digest of a start checkpoint do, or all figures of the RL data.
Users name the thing, which is called an aspect here. A field that belongs to no such group is an aspect of its own, with the
field's name but for the section: ``training.lr`` is ``lr``.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from lever_mlflow.comparison.facts import ComparedField, Mark
from lever_mlflow.comparison.results import Results, RunResult, Scalar
from lever_mlflow.exceptions import ParameterError

__all__ = ["KL_BETA", "aspect_of", "compared_fields", "varied_aspects"]

KL_BETA = "kl_beta"
_RL_DATA = "rl_data"
_ASPECTS = {  # field -> its aspect, beside those of rl_data
    "gate": _RL_DATA,
    "gate_override": _RL_DATA,
    "start": "start",
    "start_checkpoint": "start",
    "start_digest": "start",
    "start_gate_override": "start",
    "vlm_digest": "vlm",
    "profile_digest": "vlm",
    "dataset_digest": "dataset",
    "encoder_digest": "encoder",
    "training_seed": "seed",
}
_DIGESTS = {  # field that names contents -> digest of these contents, which decides whether they are the same
    "rl_data.source": "rl_data.digest",
    "vlm": "vlm_digest",
    "dataset": "dataset_digest",
    "encoder": "encoder_digest",
}


class _Column(NamedTuple):
    """Holds the values of a field in the order of the runs; ``unknown`` is a field that not every run states."""

    values: tuple[Scalar | None, ...]
    state: Literal["same", "differs", "unknown"]


def aspect_of(field: str) -> str:
    """Returns the aspect that a field belongs to."""
    if field.startswith(f"{_RL_DATA}."):
        return _RL_DATA
    return _ASPECTS.get(field, field.rpartition(".")[2])


def compared_fields(results: Results, varied: Collection[str]) -> tuple[ComparedField, ...]:
    """Returns every field of the runs with its values and a mark.

    Args:
        varied: the aspects or fields that are meant to differ.
    """
    return tuple(
        ComparedField(field=name, values=column.values, mark=_mark(name, column, varied))
        for name, column in _columns(results).items()
    )


def varied_aspects(results: Results, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Returns the aspects or fields that are meant to differ: those that were asked for, else what the runs tell.

    Without being asked this is beta where the betas differ, else the only aspect that differs. It is nothing where none differs
    and where several do, as it is not clear then which one is meant.

    Raises:
        ParameterError: no run has a field of that name, or the runs do not differ in it; the message lists the names.
    """
    columns = _columns(results)
    differing = [*dict.fromkeys(aspect_of(name) for name, column in columns.items() if column.state == "differs")]
    if not names:
        alone = len(results.runs) == 1 and results.runs[0].kl_beta is not None
        if KL_BETA in differing or alone:
            return (KL_BETA,)
        return tuple(differing) if len(differing) == 1 else ()
    for name in names:
        _check(name, columns, differing)
    return tuple(dict.fromkeys(names))


def _check(field: str, columns: dict[str, _Column], differing: Sequence[str]) -> None:
    """Refuses a name that no run has, and one in which the runs do not differ."""
    members = {name: column for name, column in columns.items() if field in (name, aspect_of(name))}
    differ = f"the runs differ in: {', '.join(differing)}" if differing else "the runs differ in no field"
    if not members:
        others = [name for name in dict.fromkeys(map(aspect_of, columns)) if name not in differing]
        also = f"; they also have: {', '.join(others)}" if others else ""
        raise ParameterError(f"vary={field}: no run has such a field; {differ}{also}")
    states = {column.state for column in members.values()}
    if "differs" not in states:
        state = "not every run states it" if "unknown" in states else "it is the same in all runs"
        raise ParameterError(f"vary={field}: {state}, so there is nothing to compare; {differ}")


def _columns(results: Results) -> dict[str, _Column]:
    fields_of_runs = [_fields(run) for run in results.runs]
    names = dict.fromkeys(itertools.chain.from_iterable(fields_of_runs))
    columns = {name: _column([fields.get(name) for fields in fields_of_runs], complete=results.complete) for name in names}
    for name, digest in _DIGESTS.items():
        if name in columns and digest in columns and columns[digest].state == "same":
            columns[name] = columns[name]._replace(state="same")  # the same contents, wherever they were read
    return columns


def _fields(run: RunResult) -> dict[str, Scalar]:
    beta = {} if run.kl_beta is None else {KL_BETA: run.kl_beta}
    return {**{f"{_RL_DATA}.{name}": value for name, value in run.rl_data.items()}, **run.config, **beta}


def _column(values: Sequence[Scalar | None], *, complete: bool) -> _Column:
    stated = values if complete else [value for value in values if value is not None]
    if any(value != stated[0] for value in stated):
        return _Column(tuple(values), "differs")
    return _Column(tuple(values), "same" if len(stated) == len(values) else "unknown")


def _mark(name: str, column: _Column, varied: Collection[str]) -> Mark:
    if column.state != "differs":
        return column.state
    return "intended" if name in varied or aspect_of(name) in varied else "confounding"
