"""Compares betas: what differs between their runs beside beta, and which differences in accuracy the questions show.

With two betas the reference is the larger one, which stays closer to the start policy. With more it is the one with the highest
accuracy on the selection questions, which are not among those reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lever_mlflow.comparison.curves import CURVES, curves_of, shown_metric
from lever_mlflow.comparison.differences import Pair, Records, against_baselines, against_strongest, differences
from lever_mlflow.comparison.facts import Comparison, Difference, MissingCell, MissingPart, primary
from lever_mlflow.comparison.fields import compared_fields
from lever_mlflow.comparison.pair_statistics import statistics_of
from lever_mlflow.comparison.picks import Items, best_overlaps, epoch_pairs, examples
from lever_mlflow.comparison.ranking import ranked
from lever_mlflow.comparison.results import Results, RunResult
from lever_mlflow.comparison.rules import choice, findings
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.invocation import command

__all__ = ["compare"]


def compare(
    results: Results,
    records: Records,
    *,
    seed: int,
    items: Items | None = None,
) -> Comparison:
    """Returns everything that a report says: the results and what follows from them.

    Args:
        records: by beta, where there are any; without them only a bound on the error of a difference is known.
        seed: of the resamples.
        items: of the data set, for the examples; there are none without them.

    Raises:
        ParameterError: two runs have the same beta.
    """
    runs = results.runs
    betas = [run.kl_beta for run in runs]
    if len(set(betas)) < len(betas):
        raise ParameterError(f"kl_betas={betas}: a comparison needs different betas")
    reference = _reference(runs)
    pairs = [Pair(run, reference) for run in runs if run is not reference]
    fields = compared_fields(results)
    comparable = all(field.mark != "confounding" for field in fields)
    sizes, shots = _grid(runs)
    cells = differences(pairs, records, sizes, shots, seed)
    facts = Comparison(
        **dict(results),
        comparable=comparable,
        reference=reference.kl_beta,
        sizes=sizes,
        shots=shots,
        fields=fields,
        curves=tuple(curves_of(run) for run in runs),
        differences=cells,
        statistics=tuple(statistics_of(pair, cells) for pair in pairs),
        epochs_compared=tuple(row for run in runs for row in epoch_pairs(run)),
        overlap_of_best=tuple(row for pair in pairs for row in best_overlaps(pair, records)),
        against_baselines=against_baselines(runs, records, sizes, seed),
        against_strongest=against_strongest(runs, records, sizes, shots, seed),
        ranking=tuple(ranked(runs, records, sizes, seed)),
        missing=tuple(_missing(runs, sizes, shots)),
        examples=tuple(examples(_widest(pairs, cells), records, max(shots), items)) if pairs and shots and items else (),
        command=command("compare", kl_betas=betas),
        choice=choice(betas, reference.kl_beta, cells, comparable=comparable),
        findings=(),
    )
    return facts.model_copy(update={"findings": tuple(findings(facts))})


def _reference(runs: Sequence[RunResult]) -> RunResult:
    """Returns the run that the others are compared with."""
    chosen = [run for run in runs if run.best_epoch in run.selection_accuracy]
    if len(runs) <= 2 or len(chosen) < len(runs):
        return runs[-1]
    return max(chosen, key=lambda run: (run.selection_accuracy[run.best_epoch or 0], run.kl_beta))


def _widest(pairs: Sequence[Pair], cells: Sequence[Difference | MissingCell]) -> Pair:
    """Returns the pair with the largest mean difference in the cells that claims rest on."""

    def width(pair: Pair) -> float:
        points = [row.points for row in primary(cells) if row.beta == pair.run.kl_beta]
        return abs(float(np.mean(points))) if points else -1.0

    return max(pairs, key=width)


def _grid(runs: Sequence[RunResult]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns all sizes, and all shot counts, that any epoch was evaluated at."""
    cells = {cell for run in runs for epoch in run.epochs for cell in epoch.cells}
    return tuple(sorted({size for size, _ in cells})), tuple(sorted({shots for _, shots in cells}))


def _missing(runs: Sequence[RunResult], sizes: Sequence[int], shots: Sequence[int]) -> list[MissingPart]:
    """Returns the cells and metrics that a report has a place for but no value, with the command that would fill them.

    An epoch that was not evaluated, in a run of which others were, has no place among the accuracies.
    """
    parts = []
    for run in runs:
        evaluate = command("evaluate", kl_beta=run.kl_beta, sizes=sizes, shots=shots)
        train = command("grpo", kl_beta=run.kl_beta)
        for epoch in run.epochs:
            expected = epoch.accuracy or not run.evaluated
            cells = [f"{n}/{k}" for n in sizes for k in shots if expected and epoch.accuracy_at(n, k) is None]
            metrics = [name for name in CURVES if shown_metric(run, epoch, name) is None]
            parts += [
                MissingPart(beta=run.kl_beta, epoch=epoch.epoch, what=tuple(what), command=remedy)
                for what, remedy in ((cells, evaluate), (metrics, train))
                if what
            ]
    return parts
