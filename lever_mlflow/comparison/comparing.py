"""Compares runs: what differs between them and what of it is meant to, and which differences in accuracy the questions show.

Of two betas the reference is the larger one, which stays closer to the start policy; of two other runs it is the first one. Of
more runs it is the one with the highest accuracy on the selection questions, which are not among those reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lever_mlflow.comparison.curves import CURVES, curves_of, shown_metric
from lever_mlflow.comparison.differences import Pair, against_baselines, against_strongest, differences
from lever_mlflow.comparison.facts import ComparedField, Comparison, Difference, MissingCell, MissingPart, primary
from lever_mlflow.comparison.fields import compared_fields, varied_aspects
from lever_mlflow.comparison.findings import Choice
from lever_mlflow.comparison.labels import labelled, named_by_beta
from lever_mlflow.comparison.pair_statistics import statistics_of
from lever_mlflow.comparison.picks import Items, best_overlaps, epoch_pairs, examples
from lever_mlflow.comparison.ranking import ranked
from lever_mlflow.comparison.results import Results, RunResult
from lever_mlflow.comparison.rules import choice, findings
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.invocation import command

__all__ = ["NamedRuns", "compare", "named_runs"]


def compare(
    results: Results,
    records: Mapping[str, EvaluationRecords],
    *,
    seed: int,
    vary: Sequence[str] = (),
    items: Items | None = None,
) -> Comparison:
    """Returns everything that a report says: the results and what follows from them.

    Args:
        records: by the ids of the runs, where there are any; without them only a bound on the error of a difference is known.
        seed: of the resamples.
        vary: the fields that are meant to differ, as ``fields.varied_aspects`` takes them; nothing finds them out.
        items: of the data set, for the examples; there are none without them.

    Raises:
        DataError, ParameterError: as ``named_runs``.
    """
    named = named_runs(results, vary)
    runs, by_label = named.runs, {run.label: records[run.run_id] for run in named.runs if run.run_id in records}
    reference = _reference(runs, by_beta=named.by_beta)
    pairs = [Pair(run, reference) for run in runs if run is not reference]
    comparable = all(field.mark != "confounding" for field in named.fields)
    sizes, shots = _grid(runs)
    size = results.shared_size or max(sizes, default=0)
    cells = differences(pairs, by_label, sizes, shots, seed)
    facts = Comparison(
        **{**dict(results), **named._asdict()},
        comparable=comparable,
        reference=reference.label,
        sizes=sizes,
        shots=shots,
        curves=tuple(curves_of(run) for run in runs),
        differences=cells,
        statistics=tuple(statistics_of(pair, cells) for pair in pairs),
        epochs_compared=tuple(row for run in runs for row in epoch_pairs(run)),
        overlap_of_best=tuple(row for pair in pairs for row in best_overlaps(pair, by_label)),
        against_baselines=against_baselines(runs, by_label, size, seed),
        against_strongest=against_strongest(runs, by_label, size, shots, seed),
        ranking=tuple(ranked(runs, by_label, size, seed)),
        missing=tuple(_missing(runs, sizes, shots, by_beta=named.by_beta)),
        examples=tuple(examples(_widest(pairs, cells), by_label, max(shots), items)) if pairs and shots and items else (),
        command=_command(runs, vary, by_beta=named.by_beta),
        choice=Choice(run=None, rule="unknown"),
        findings=(),
    )
    facts = facts.model_copy(update={"findings": tuple(findings(facts))})
    return facts.model_copy(update={"choice": choice(facts)})


class NamedRuns(NamedTuple):
    """Holds runs with their labels and their compared fields; attributes as those of ``Comparison``."""

    runs: tuple[RunResult, ...]
    fields: tuple[ComparedField, ...]
    varied: tuple[str, ...]
    by_beta: bool


def named_runs(results: Results, vary: Sequence[str] = ()) -> NamedRuns:
    """Finds out what is meant to differ between runs, marks their fields accordingly, and gives each run a label.

    Raises:
        ParameterError: two results are of the same run, or as ``fields.varied_aspects``.
        DataError: as ``labels.labelled``.
    """
    run_ids = [run.run_id for run in results.runs if run.run_id]
    twice = [run_id for run_id in run_ids if run_ids.count(run_id) > 1]
    if twice:
        raise ParameterError(f"evaluations: run {twice[0]} is named twice; name each run once")
    varied = varied_aspects(results, vary)
    fields = compared_fields(results, varied)
    return NamedRuns(labelled(results.runs, fields, varied), fields, varied, named_by_beta(results.runs, varied))


def _reference(runs: Sequence[RunResult], *, by_beta: bool) -> RunResult:
    """Returns the run that the others are compared with."""
    chosen = [run for run in runs if run.best_epoch in run.selection_accuracy]
    if len(runs) <= 2 or len(chosen) < len(runs):
        return runs[-1] if by_beta else runs[0]
    order = runs[::-1] if by_beta else runs  # of equal ones the largest beta, or the first run
    return max(order, key=lambda run: run.selection_accuracy[run.best_epoch or 0])


def _command(runs: Sequence[RunResult], vary: Sequence[str], *, by_beta: bool) -> str:
    """Returns the command that makes this comparison again; nothing where the runs are not in MLflow and are no betas."""
    further = {"vary": vary} if vary else {}
    if by_beta:
        return command("compare", kl_betas=[run.kl_beta for run in runs], **further)
    run_ids = [run.run_id for run in runs]
    return command("compare", evaluations=run_ids, **further) if all(run_ids) else ""


def _widest(pairs: Sequence[Pair], cells: Sequence[Difference | MissingCell]) -> Pair:
    """Returns the pair with the largest mean difference in the cells that claims rest on."""

    def width(pair: Pair) -> float:
        points = [row.points for row in primary(cells) if row.run == pair.run.label]
        return abs(float(np.mean(points))) if points else -1.0

    return max(pairs, key=width)


def _grid(runs: Sequence[RunResult]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns all sizes, and all shot counts, that any epoch was evaluated at."""
    cells = {cell for run in runs for epoch in run.epochs for cell in epoch.cells}
    return tuple(sorted({size for size, _ in cells})), tuple(sorted({shots for _, shots in cells}))


def _missing(runs: Sequence[RunResult], sizes: Sequence[int], shots: Sequence[int], *, by_beta: bool) -> list[MissingPart]:
    """Returns the cells and metrics that a report has a place for but no value, with the command that would fill them.

    An epoch that was not evaluated, in a run of which others were, has no place among the accuracies. Metrics have no place
    where no run has any.
    """
    parts = []
    curves = CURVES if any(epoch.metrics for run in runs for epoch in run.epochs) else ()
    for run in runs:
        evaluate, train = _remedies(run, sizes, shots, by_beta=by_beta)
        for epoch in run.epochs:
            expected = epoch.accuracy or not run.evaluated
            cells = [f"{n}/{k}" for n in sizes for k in shots if expected and epoch.accuracy_at(n, k) is None]
            metrics = [name for name in curves if shown_metric(run, epoch, name) is None]
            parts += [
                MissingPart(run=run.label, epoch=epoch.epoch, what=tuple(what), command=remedy)
                for what, remedy in ((cells, evaluate), (metrics, train))
                if what
            ]
    return parts


def _remedies(run: RunResult, sizes: Sequence[int], shots: Sequence[int], *, by_beta: bool) -> tuple[str, str]:
    """Returns the commands that would evaluate a run and train it; nothing where they are not known."""
    if by_beta:
        return command("evaluate", kl_beta=run.kl_beta, sizes=sizes, shots=shots), command("grpo", kl_beta=run.kl_beta)
    if not run.training_run:
        return "", ""
    evaluate = command("evaluate", kl_beta=run.kl_beta, grpo_run=run.training_run, sizes=sizes, shots=shots)
    return evaluate, run.commands[0] if run.commands else ""
