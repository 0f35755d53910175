"""Describes the results of runs, from which a comparison starts, and reads them from a file.

The file's format is documented in docs/report.md.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from lever_mlflow.evaluation.answering import BestSingle
from lever_mlflow.evaluation.overlap import PickOverlap
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.settings import format_beta

__all__ = ["Accuracies", "EpochResult", "RegisteredModel", "Results", "RunResult", "Scalar", "read_results", "results_of"]

_REMEDY = "see docs/report.md for the shape of a results file"
_LARGEST = 10**9  # no number of a results file is as large
_LONGEST = 1000  # characters of a text in a results file
_SHOWN = 60  # characters of a value in an error message
_MOST_RUNS, _MOST_EPOCHS = 200, 10_000  # of a results file
_LABEL = 60  # characters of a run's label


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _without_null(value: Any) -> Any:
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value


def _without_empty(value: dict[Any, Any]) -> dict[Any, Any]:
    return {name: item for name, item in value.items() if item}


def _whole(value: Any) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", str(value)):
        raise ValueError(f"{_shortened(repr(value))} should be a whole number")
    return int(value)


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | bool | int | float):
        raise ValueError(f"{_shortened(repr(value))} should be a text, a number, true or false")
    return value


def _label(text: str) -> str:
    if text != text.strip() or not text.isprintable() or not 0 < len(text) <= _LABEL:
        raise ValueError(f"{_shortened(repr(text))} should be a text of 1 to {_LABEL} characters in one line")
    return text


_Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
_Shots = Annotated[int, BeforeValidator(_whole)]
_Number = Annotated[float, Field(strict=True)]
_Percent = Annotated[float, Field(strict=True, ge=0.0, le=100.0)]
_Row = Annotated[dict[_Shots, _Percent], BeforeValidator(_without_null)]
Accuracies = Annotated[dict[_Count, _Row], BeforeValidator(_without_null), AfterValidator(_without_empty)]
Scalar = Annotated[str | bool | int | float, BeforeValidator(_scalar)]
_Scalars = Annotated[dict[str, Scalar], BeforeValidator(_without_null)]


class _Record(BaseModel):
    """Reads a part of a results file: what is ``null`` is missing, and what is not known here is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_null(cls, value: Any) -> Any:
        return _without_null(value)


class EpochResult(_Record):
    """Holds the metrics that training logged for one epoch (1-based), and the epoch's accuracy where it was evaluated.

    In a file the metrics stand beside ``epoch`` and ``accuracy``, so they are extra fields of this record.

    Attributes:
        accuracy: size -> shots -> VQA accuracy in percent.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Number]

    epoch: _Count
    accuracy: Accuracies = {}

    @property
    def metrics(self) -> dict[str, float]:
        """Returns the metrics by name."""
        return self.__pydantic_extra__

    def accuracy_at(self, size: int, shots: int) -> float | None:
        """Returns the accuracy in percent on so many questions; None where it is missing."""
        return self.accuracy.get(size, {}).get(shots)

    @property
    def cells(self) -> dict[tuple[int, int], float]:
        """Returns the accuracies by size and shots."""
        return {(size, shots): value for size, row in self.accuracy.items() for shots, value in row.items()}


class RegisteredModel(_Record):
    """Names the version of a registered model, and the alias that points to it."""

    name: str
    version: str
    alias: str


def _in_order(epochs: tuple[EpochResult, ...]) -> tuple[EpochResult, ...]:
    numbers = [epoch.epoch for epoch in epochs]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"should hold each epoch once, holds {_shortened(str(numbers))}")
    return tuple(sorted(epochs, key=lambda epoch: epoch.epoch))


class RunResult(_Record):
    """Holds the results of one run: how it was trained and on which RL data, its epochs, and what else is known.

    Attributes:
        label: what the run is called; empty where a comparison is to make a label of what differs between its runs.
        kl_beta: None where the run has none, or where it is not known.
        config, rl_data: what decides whether runs are comparable, by name.
        epochs: ascending.
        baselines: the accuracies of each policy that was not trained here, by name; zero-shot has 0 shots.
        best_epoch: the epoch that was chosen on the selection questions.
        selection_accuracy: of each epoch on these questions, in percent, mean over shots.
        best_digest: of the weights of the best epoch.
        overlap: the shares of questions for which two policies pick the same.
        best_single: what the best single demonstration of each pool would bring.
        profile: how the VLM was asked, in words.
        run_id: of the evaluation; ``training_run`` is that of the training, and ``git_commit`` the commit it was trained at.
        commands: what trains and evaluates this run again.
    """

    label: Annotated[str, AfterValidator(_label)] = ""
    kl_beta: Annotated[float, Field(strict=True, ge=0.0)] | None = None
    config: _Scalars = {}
    rl_data: _Scalars = {}
    epochs: Annotated[tuple[EpochResult, ...], Field(min_length=1, max_length=_MOST_EPOCHS), AfterValidator(_in_order)]
    baselines: dict[str, Accuracies] = {}
    best_epoch: _Count | None = None
    selection_accuracy: dict[_Count, _Percent] = {}
    best_digest: str = ""
    registered: RegisteredModel | None = None
    overlap: tuple[PickOverlap, ...] = ()
    best_single: BestSingle | None = None
    profile: str = ""
    run_id: str = ""
    training_run: str = ""
    git_commit: str = ""
    commands: tuple[str, ...] = ()

    @field_validator("best_epoch")
    @classmethod
    def _check_best_epoch(cls, best_epoch: int | None, others: ValidationInfo) -> int | None:
        numbers = [epoch.epoch for epoch in others.data.get("epochs", ())]
        if best_epoch is not None and best_epoch not in numbers:
            raise ValueError(f"{best_epoch} should be one of {_shortened(str(numbers))}")
        return best_epoch

    def epoch(self, number: int | None) -> EpochResult | None:
        """Returns the epoch of that number; None where there is none."""
        return next((epoch for epoch in self.epochs if epoch.epoch == number), None)

    @property
    def best(self) -> EpochResult | None:
        """Returns the best epoch; None where none was chosen."""
        return self.epoch(self.best_epoch)

    @property
    def evaluated(self) -> list[EpochResult]:
        """Returns the epochs that have an accuracy."""
        return [epoch for epoch in self.epochs if epoch.accuracy]

    @property
    def best_or_only(self) -> EpochResult | None:
        """Returns the best epoch, or where none was chosen the only one that was evaluated; None where there are several."""
        return self.best or (self.evaluated[0] if len(self.evaluated) == 1 else None)

    @property
    def best_or_last(self) -> EpochResult:
        """Returns the best epoch, or where none was chosen the last one that was evaluated."""
        return self.best or (self.evaluated or self.epochs)[-1]


def _ascending(runs: tuple[RunResult, ...]) -> tuple[RunResult, ...]:
    return tuple(sorted(runs, key=lambda run: -1.0 if run.kl_beta is None else run.kl_beta))


class Results(_Record):
    """Holds runs in ascending order of beta; runs of the same beta, or of none, are in the order in which they were given.

    Attributes:
        dataset, vlm, sampler: of all runs; empty where they are not the same or not known.
        source: where the numbers are from, in words.
        complete: whether ``config`` and ``rl_data`` hold everything that decides a run. If so, what one run lacks is a
            difference; otherwise it is not known. A results file cannot claim it.
    """

    source: str = ""
    dataset: str = ""
    vlm: str = ""
    sampler: str = ""
    unit: Literal["percent"]
    runs: Annotated[tuple[RunResult, ...], Field(min_length=1, max_length=_MOST_RUNS), AfterValidator(_ascending)]
    complete: bool = Field(default=False, exclude=True)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of a results file; what is not known is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def shared_size(self) -> int:
        """Returns the largest number of questions on which all runs that were evaluated have accuracies; 0 where none is."""
        sizes = [set(run.best_or_last.accuracy) for run in self.runs if run.evaluated]
        return max(set.intersection(*sizes), default=0) if sizes else 0

    @property
    def digest(self) -> str:
        """Names the content, 32 hex characters."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:32]


def read_results(path: Path) -> Results:
    """Reads the runs in a results file.

    Raises:
        DataError: the file is not there, not JSON or not of this shape; the message names the place in it.
    """
    content = read_object(path, missing="give the path of a results file", damaged=_REMEDY)
    try:
        return results_of(content)
    except DataError as error:
        raise DataError(f"{path}: {error}; {_REMEDY}") from None


def results_of(content: Mapping[str, Any]) -> Results:
    """Reads the runs in the content of a results file.

    Raises:
        DataError: the content is not of this shape; the message names the place in it.
    """
    try:
        results = Results.model_validate({**content, "complete": False})
    except ValidationError as error:
        raise DataError(_misfit(error)) from None
    _check_limits(results)
    _check_different(results.runs)
    return results


def _check_different(runs: Sequence[RunResult]) -> None:
    """Refuses runs of the same label, and runs without a label that nothing in the file tells apart."""
    labels = [run.label for run in runs if run.label]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise DataError(f"runs: should hold each label once, holds {twice[0]!r} {labels.count(twice[0])} times")
    for first, second in itertools.combinations((run for run in runs if not run.label), 2):
        if (first.kl_beta, first.config, first.rl_data) == (second.kl_beta, second.config, second.rl_data):
            beta = "no kl_beta" if first.kl_beta is None else f"kl_beta {format_beta(first.kl_beta)}"
            raise DataError(f"runs: two have {beta} and the same config and rl_data; give each a label, or state what differs")


def _misfit(error: ValidationError) -> str:
    """Says where the first error is, what stands there and what should."""
    first = error.errors(include_url=False)[0]
    place = _place(part for part in first["loc"] if part != "[key]")
    if first["type"] == "value_error":  # one of this module's validators, which name the value themselves
        return f"{place}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{place}: missing"
    kinds = {
        "model_type": "should be an object",
        "dict_type": "should be an object",
        "tuple_type": "should be a list",
        "too_short": "should hold at least one",
    }
    message = kinds.get(first["type"], first["msg"].removeprefix("Input "))
    return f"{place}: {_shortened(repr(first['input']))} {message}"


def _place(parts: Iterator[str | int] | Sequence[str | int]) -> str:
    names = (f"[{part}]" if isinstance(part, int) else f".{_shortened(repr(part)[1:-1])}" for part in parts)
    return "".join(names).removeprefix(".")


def _check_limits(results: Results) -> None:
    """Refuses texts and numbers of a size that no results have, so that a report stays readable."""
    for place, value in _leaves(results.model_dump(exclude={"runs": {"__all__": {"commands"}}}), ()):
        if isinstance(value, str) and len(value) > _LONGEST:
            raise DataError(f"{_place(place)}: {_shortened(repr(value))} should be a text of at most {_LONGEST} characters")
        if isinstance(value, float) and not abs(value) <= _LARGEST:
            raise DataError(f"{_place(place)}: {value} should be a number of at most {_LARGEST:g}")


def _leaves(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Returns every text and number within a value, names of fields among them, each behind its place."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield place, name
            yield from _leaves(item, (*place, str(name)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(item, (*place, number))
    else:
        yield place, value
