"""Aggregate results of runs with different betas: what a comparison starts from, in MLflow or not (docs/report.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import read_object

__all__ = ["Accuracies", "EpochResult", "Results", "RunResult", "read_results"]

Accuracies = Mapping[tuple[int, int], float]  # (size, shots) -> percent
_Scalar = str | int | float | bool | None
_DAMAGED = "see docs/report.md for the shape of a results file"
_LARGEST = 10**9  # of whole numbers and other figures: nothing here is as large
_LONGEST = 1000  # characters of a text


@dataclass(frozen=True)
class EpochResult:
    """One epoch: what training logged, and its accuracy in percent where it was evaluated."""

    epoch: int
    metrics: Mapping[str, float]
    accuracy: Accuracies


@dataclass(frozen=True)
class RunResult:
    """One beta: how it was trained and on which RL data, its epochs ascending, and what else is known.

    Attributes:
        config, rl_data: what decides whether runs are comparable, by name.
        baselines: accuracy of what was not trained here, by name; zero-shot at 0 shots.
        best_epoch: the one chosen on selection questions; ``selection``: mean accuracy on them, in percent, per epoch.
        best_digest: of the best epoch's weights.
        registered: name, version and alias of the registered model.
        overlap: pairs of policies with the shares of questions on which their picks are the same, and why where all are.
        best_single: the oracle bound of one demonstration.
        profile: how the VLM was asked, in words.
        run_id: of the evaluation; ``commands``: what trains and evaluates this beta again.
    """

    kl_beta: float
    config: Mapping[str, _Scalar]
    rl_data: Mapping[str, _Scalar]
    epochs: tuple[EpochResult, ...]
    baselines: Mapping[str, Accuracies] = field(default_factory=dict)
    best_epoch: int | None = None
    selection: Mapping[int, float] = field(default_factory=dict)
    best_digest: str = ""
    registered: Mapping[str, str] | None = None
    overlap: tuple[Mapping[str, Any], ...] = ()
    best_single: Mapping[str, float] | None = None
    profile: str = ""
    run_id: str = ""
    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As in a results file; unknown parts are left out."""
        epochs = [{"epoch": e.epoch, **e.metrics, "accuracy": _nested(e.accuracy)} for e in self.epochs]
        known = {
            "best_epoch": self.best_epoch,
            "selection_accuracy": {str(epoch): value for epoch, value in self.selection.items()},
            "baselines": {name: _nested(cells) for name, cells in self.baselines.items()},
            "registered": self.registered and dict(self.registered),
            "overlap": [dict(row) for row in self.overlap],
            "best_single": self.best_single and dict(self.best_single),
            "profile": self.profile,
            "run_id": self.run_id,
            "commands": list(self.commands),
        }
        required = {"kl_beta": self.kl_beta, "config": dict(self.config), "rl_data": dict(self.rl_data), "epochs": epochs}
        return required | {name: value for name, value in known.items() if value not in (None, {}, [], "")}


@dataclass(frozen=True)
class Results:
    """Runs of different betas, ascending, on one data set and VLM.

    ``complete``: everything that decides a run is in its ``config`` and ``rl_data``, so that what one of them lacks is a
    difference; otherwise it is not known.
    """

    runs: tuple[RunResult, ...]
    dataset: str = ""
    vlm: str = ""
    sampler: str = ""
    source: str = ""
    complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """As in a results file."""
        head = {name: value for name in ("source", "dataset", "vlm", "sampler") if (value := getattr(self, name))}
        return {**head, "unit": "percent", "runs": [run.to_json() for run in self.runs]}


def read_results(path: Path) -> Results:
    """The runs in a results file.

    Raises:
        DataError: the file is not there, not JSON or not of this shape; the message names the place in it.
    """
    content = read_object(path, missing="give the path of a results file", damaged=_DAMAGED)
    try:
        return _results(content)
    except _Misfit as error:
        raise DataError(f"{path}: {error}; {_DAMAGED}") from None


class _Misfit(Exception):
    """What does not fit, and where."""


def _results(content: Mapping[str, Any]) -> Results:
    if content.get("unit") != "percent":
        raise _Misfit(f"unit: {_shown(content.get('unit'))}, expected 'percent'")
    runs = [_run(item, f"runs[{i}]") for i, item in enumerate(_list(content.get("runs"), "runs"))]
    betas = [run.kl_beta for run in runs]
    if not runs:
        raise _Misfit("runs: empty, expected at least one")
    if len(set(betas)) < len(betas):
        raise _Misfit(f"runs: kl_beta {', '.join(f'{beta:g}' for beta in sorted(betas))}, expected each once")
    dataset, vlm, sampler, source = (_text(content.get(name, ""), name) for name in ("dataset", "vlm", "sampler", "source"))
    return Results(tuple(sorted(runs, key=lambda run: run.kl_beta)), dataset, vlm, sampler, source)


def _run(item: Any, where: str) -> RunResult:
    fields = _mapping(item, where)
    epochs = [_epoch(e, f"{where}.epochs[{i}]") for i, e in enumerate(_list(fields.get("epochs"), f"{where}.epochs"))]
    numbers = [epoch.epoch for epoch in epochs]
    if not epochs or len(set(numbers)) < len(numbers):
        raise _Misfit(f"{where}.epochs: epochs {numbers}, expected at least one, and each once")
    best = fields.get("best_epoch")
    if best is not None and best not in numbers:
        raise _Misfit(f"{where}.best_epoch: {_shown(best)}, expected one of {numbers}")
    registered = fields.get("registered")
    return RunResult(
        _number(fields.get("kl_beta"), f"{where}.kl_beta", 0.0),
        _scalars(fields.get("config", {}), f"{where}.config"),
        _scalars(fields.get("rl_data", {}), f"{where}.rl_data"),
        tuple(sorted(epochs, key=lambda epoch: epoch.epoch)),
        baselines={
            _text(name, f"{where}.baselines"): _accuracy(cells, f"{where}.baselines.{_short(name)}")
            for name, cells in _mapping(fields.get("baselines", {}), f"{where}.baselines").items()
        },
        best_epoch=best,
        selection=_by_number(fields.get("selection_accuracy", {}), f"{where}.selection_accuracy"),
        registered=None
        if registered is None
        else {
            name: _text(_mapping(registered, f"{where}.registered").get(name), f"{where}.registered.{name}")
            for name in ("name", "version", "alias")
        },
        profile=_text(fields.get("profile", ""), f"{where}.profile"),
        run_id=_text(fields.get("run_id", ""), f"{where}.run_id"),
    )


def _epoch(item: Any, where: str) -> EpochResult:
    fields = dict(_mapping(item, where))
    accuracy = _accuracy(fields.pop("accuracy", {}), f"{where}.accuracy")
    epoch = _whole(fields.pop("epoch", None), f"{where}.epoch")
    metrics = {
        _text(name, where): _number(value, f"{where}.{_short(name)}", -_LARGEST)
        for name, value in fields.items()
        if value is not None
    }
    return EpochResult(epoch, metrics, accuracy)


def _accuracy(item: Any, where: str) -> Accuracies:
    return {
        (_whole(size, f"{where}: size"), _whole(shots, f"{where}.{size}: shots", 0)): _number(
            value, f"{where}.{size}.{shots}", 0.0, 100.0
        )
        for size, row in _mapping(item, where).items()
        for shots, value in _mapping(row, f"{where}.{_short(size)}").items()
        if value is not None
    }


def _by_number(item: Any, where: str) -> dict[int, float]:
    return {
        _whole(name, where): _number(value, f"{where}.{_short(name)}", 0.0, 100.0)
        for name, value in _mapping(item, where).items()
    }


def _scalars(item: Any, where: str) -> dict[str, _Scalar]:
    scalars = _mapping(item, where)
    for name, value in scalars.items():
        if isinstance(value, str):
            _text(value, f"{where}.{_short(name)}")
        elif isinstance(value, float):
            _number(value, f"{where}.{_short(name)}", -math.inf)
        elif not isinstance(value, int | None):
            raise _Misfit(f"{where}.{_short(name)}: {_shown(value)}, expected a text, a number, true, false or null")
    return {_text(name, where): value for name, value in scalars.items() if value is not None}


def _mapping(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise _Misfit(f"{where}: {_shown(item)}, expected an object")
    return item


def _list(item: Any, where: str) -> list[Any]:
    if not isinstance(item, list):
        raise _Misfit(f"{where}: {_shown(item)}, expected a list")
    return item


def _number(value: Any, where: str, low: float, high: float = _LARGEST) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _Misfit(f"{where}: {_shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)


def _whole(value: Any, where: str, low: int = 1) -> int:
    text = str(value)
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text) or int(text) < low:
        raise _Misfit(f"{where}: {_shown(value)}, expected a whole number of at least {low}")
    return int(text)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise _Misfit(f"{where}: {_shown(value)}, expected a text of at most {_LONGEST} characters")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else _short(repr(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nested(cells: Accuracies) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for (size, shots), value in cells.items():
        rows.setdefault(str(size), {})[str(shots)] = value
    return rows
