"""Describes the facts of a comparison: what ``compare`` returns, ``comparison.json`` holds and reports are written from.

They are figures and names of rules; ``comparison.page`` puts them into words. Runs are named by their labels, which are betas
where beta is what is meant to differ. All differences are in points: a run's accuracy minus the accuracy of the reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lever_mlflow.comparison.findings import Choice, Finding, IdenticalRuns, Interval, Kind
from lever_mlflow.comparison.results import RegisteredModel, Results, Scalar
from lever_mlflow.evaluation.overlap import IdenticalPicks, PickOverlap
from lever_mlflow.files.records import read_record

__all__ = [
    "BEST",
    "AgainstBaseline",
    "AgainstStrongest",
    "Cell",
    "CellStatistics",
    "ComparedField",
    "Comparison",
    "Curves",
    "Difference",
    "EpochPair",
    "Example",
    "ExampleSide",
    "ExtremeCell",
    "Label",
    "LinkedRun",
    "Mark",
    "MissingCell",
    "MissingPart",
    "PairStatistics",
    "RankedRun",
    "ShownItem",
    "TestedDifference",
    "Trend",
    "known",
    "primary",
]

BEST: Literal["best"] = "best"  # the label of what is compared at each run's best epoch
_REPEATED_BETA = "training.kl_beta"  # says the same as the field kl_beta
Label = int | Literal["best"]  # an epoch that is compared, or BEST
Mark = Literal["same", "intended", "confounding", "unknown"]
Trend = Literal["rising", "falling", "not_falling", "not_rising", "constant", "mixed", "unknown"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComparedField(_Record):
    """Holds the values of a field of ``config`` or ``rl_data``, in the order of the runs.

    Attributes:
        mark: ``same``; ``intended`` and ``confounding``, where the values differ and are meant to, or are not;
            ``unknown``, where not every run states one.
    """

    field: str
    values: tuple[Scalar | None, ...]
    mark: Mark


class Curves(_Record):
    """Holds the metrics of a run by epoch, with the digits that are shown.

    Attributes:
        values: of each metric by epoch; None where it is missing.
        changes: from each epoch to the next one, as ``curves.change`` computes them.
        trends: the way of each metric over all epochs.
    """

    run: str
    epochs: tuple[int, ...]
    values: dict[str, tuple[float | None, ...]]
    changes: dict[str, tuple[float | None, ...]]
    trends: dict[str, Trend]


class Cell(_Record):
    """Describes a cell: two runs, each at the epoch that ``label`` names, on ``size`` questions with ``shots`` demonstrations.

    Attributes:
        accuracies: of the run and of the reference, in percent; None where one is missing.
        primary: whether claims rest on this cell.
    """

    run: str
    reference: str
    label: Label
    size: int
    shots: int
    accuracies: tuple[float | None, float | None]
    primary: bool


class MissingCell(Cell):
    """Describes a difference that is not known, because an accuracy is missing."""

    direction: Literal["missing"] = "missing"


class TestedDifference(_Record):
    """Holds a difference with its test, corrected by Holm's method within its family.

    Attributes:
        direction: ``tie`` within a quarter of a point, however sure.
        deviation: the standard deviation of the differences per question, in points, as ``deviation_by_image`` computes it, or
            its bound.
        kind: ``paired`` where there are records per question, else ``bound``.
        interval, interval_holm: in points, with 95 % confidence and with the corrected confidence.
        p, p_holm: as tested, and corrected.
        questions_needed: about as many show a difference of this size in 80 % of experiments; None for no difference.
    """

    points: float
    direction: Literal["up", "tie", "down"]
    deviation: float
    kind: Kind
    p: float
    interval: Interval
    interval_holm: Interval
    p_holm: float
    significant: bool
    questions_needed: int | None


class Difference(Cell, TestedDifference):
    """Holds the difference between two runs in one cell."""


class AgainstBaseline(TestedDifference):
    """Holds the difference between a best epoch and a baseline, means over shots, with both accuracies in percent."""

    run: str
    baseline: str
    size: int
    accuracies: tuple[float, float]


class AgainstStrongest(AgainstBaseline):
    """Holds the difference between a best epoch and the strongest baseline of one shot count, which is chosen by its accuracy.

    The baseline is chosen on the questions that the difference is measured on, which favours it.
    """

    shots: int


class ExtremeCell(_Record):
    """Names the cell with the largest gain or drop."""

    points: float
    size: int
    shots: int


class CellStatistics(_Record):
    """Summarizes the differences of a pair of runs at one label.

    Attributes:
        cells: how many there are; ``up``, ``tie``, ``down`` and ``missing`` add up to it.
        mean: over all cells that are known; ``by_shots`` and ``by_size`` over those of one shot count or size.
    """

    cells: int
    up: int
    tie: int
    down: int
    missing: int
    mean: float | None
    largest_gain: ExtremeCell | None
    largest_drop: ExtremeCell | None
    by_shots: dict[int, float | None]
    by_size: dict[int, float | None]


class PairStatistics(_Record):
    """Holds the statistics of a run against the reference by label, which is written as text."""

    run: str
    reference: str
    by_label: dict[str, CellStatistics]


class EpochPair(_Record):
    """Compares two epochs of a run.

    Attributes:
        cells: how many both were evaluated at; in ``equal`` of them their accuracies are the same.
        largest: the largest difference, in points.
        overlap: shots -> share of questions with the same picks in the same order.
        reason: why all picks are the same, where they are.
    """

    run: str
    epochs: tuple[int, int]
    cells: int
    equal: int
    largest: float | None
    overlap: dict[int, float]
    reason: IdenticalPicks | None


class RankedRun(_Record):
    """Holds the best or last epoch of a run, with what runs are ranked by.

    Attributes:
        selection, accuracy: on the selection questions, and on ``size`` report questions: means over shots, in percent.
        interval: of ``accuracy``, with 95 % confidence.
    """

    run: str
    epoch: int
    selection: float | None
    accuracy: float | None
    interval: Interval | None
    kl: float | None
    size: int | None
    registered: RegisteredModel | None


class MissingPart(_Record):
    """Names cells or metrics of an epoch that a report has a place for, and the command that fills them.

    The command is empty where none is known.
    """

    run: str
    epoch: int
    what: tuple[str, ...]
    command: str


class ShownItem(_Record):
    """Holds what a report shows of an item of the data set.

    Attributes:
        question: empty where the data set is not known.
        answers: how many annotators gave each answer, most frequent first.
    """

    question_id: int
    question: str = ""
    answers: dict[str, int] = {}


class ExampleSide(_Record):
    """Holds what the best epoch of one run made of a question.

    Attributes:
        answer: of the VLM, behind the demonstrations that the policy picked.
        accuracy: of this answer, in percent.
        demonstrations: in the order of the prompt.
    """

    run: str
    answer: str
    accuracy: float
    demonstrations: tuple[ShownItem, ...]


class Example(_Record):
    """Describes a question on which the best epochs of a run and of the reference differ; ``points`` is the difference."""

    query: ShownItem
    shots: int
    points: float
    sides: tuple[ExampleSide, ExampleSide]


class LinkedRun(_Record):
    """Names an MLflow run that a comparison rests on; ``url`` is its page on the tracking server, empty where there is none."""

    name: str
    run_id: str
    url: str = ""


class Comparison(Results):
    """Holds results and everything that follows from them.

    Attributes:
        verdict: what the comparison comes to, in one sentence of the report's language.
        varied: the aspects or fields that are meant to differ; empty where none differs, or where it is not known which one of
            several is meant.
        by_beta: whether labels are betas.
        comparable: whether the runs differ in nothing but what is meant to differ.
        reference: the run that the others are compared with.
        sizes, shots: the grid that the epochs were evaluated on.
        differences: of every cell and every pair of runs.
        statistics: by pair.
        missing: what the report has a place for and nothing to put there.
        command: what makes this comparison again.
        created_at: date and time in UTC; ``git_commit`` is that of the code that compared; empty where it is not known.
        mlflow_runs: the training and the evaluation of each run.
    """

    verdict: str = ""
    created_at: str = ""
    git_commit: str = ""
    mlflow_runs: tuple[LinkedRun, ...] = ()
    varied: tuple[str, ...]
    by_beta: bool
    comparable: bool
    reference: str
    sizes: tuple[int, ...]
    shots: tuple[int, ...]
    fields: tuple[ComparedField, ...]
    curves: tuple[Curves, ...]
    differences: tuple[Annotated[Difference | MissingCell, Field(discriminator="direction")], ...]
    statistics: tuple[PairStatistics, ...]
    epochs_compared: tuple[EpochPair, ...]
    overlap_of_best: tuple[PickOverlap, ...]
    against_baselines: tuple[AgainstBaseline, ...]
    against_strongest: tuple[AgainstStrongest, ...]
    ranking: tuple[RankedRun, ...]
    missing: tuple[MissingPart, ...]
    examples: tuple[Example, ...]
    command: str
    choice: Choice
    findings: tuple[Annotated[Finding, Field(discriminator="rule")], ...]

    @property
    def confounders(self) -> list[str]:
        """Names the fields that the runs differ in and that are not meant to differ."""
        return [field.field for field in self.fields if field.mark == "confounding" and field.field != _REPEATED_BETA]

    @property
    def unevaluated(self) -> dict[str, list[int]]:
        """Returns the epochs that were trained but not evaluated, by run, of those runs that have any."""
        epochs = {run.label: [epoch.epoch for epoch in run.epochs if not epoch.accuracy] for run in self.runs}
        return {label: numbers for label, numbers in epochs.items() if numbers}

    @property
    def claimed_size(self) -> int:
        """Returns the number of questions that the report shows first: the largest one that all runs have.

        Where there is none, it is the largest one with a difference, else the largest one; 0 where there are no accuracies.
        """
        return self.shared_size or max((row.size for row in primary(self.differences)), default=max(self.sizes, default=0))

    @property
    def identical(self) -> list[IdenticalRuns]:
        """Returns the findings of runs whose accuracies are the same in every cell."""
        return [finding for finding in self.findings if isinstance(finding, IdenticalRuns)]

    @property
    def known_differences(self) -> list[Difference]:
        """Returns the differences of all cells where both accuracies are known."""
        return known(self.differences)

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Reads the JSON file that ``write`` made.

        Raises:
            DataError: as ``read_record``.
        """
        return read_record(cls, path, "a comparison", "compare")

    def write(self, path: Path) -> None:
        """Writes the comparison as JSON."""
        path.write_text(self.model_dump_json(indent=2), encoding="utf-8")


def known(cells: Iterable[Difference | MissingCell]) -> list[Difference]:
    """Returns the cells whose difference is known."""
    return [cell for cell in cells if isinstance(cell, Difference)]


def primary(cells: Iterable[Difference | MissingCell]) -> list[Difference]:
    """Returns the known differences that claims rest on."""
    return [cell for cell in known(cells) if cell.primary]
