"""Applies the rules by which the figures of a comparison become findings and the choice of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from lever_mlflow.comparison.curves import change, present
from lever_mlflow.comparison.facts import (
    AgainstBaseline,
    Comparison,
    Curves,
    Difference,
    primary,
)
from lever_mlflow.comparison.findings import (
    BaselineFinding,
    Choice,
    DifferenceFinding,
    EqualEpochs,
    FewPositive,
    Finding,
    IdenticalRuns,
    KlTrend,
    LittleContrast,
    MissingParts,
    NotComparable,
    OracleFinding,
    SamePicks,
    SameRewards,
)
from lever_mlflow.comparison.results import RunResult
from lever_mlflow.evaluation.policies import RANDOM, START, ZERO_SHOT
from lever_mlflow.evaluation.strongest import Strongest, strongest

__all__ = ["FEW_POSITIVE", "LITTLE_CONTRAST", "SAME_REWARDS", "choice", "findings"]

FEW_POSITIVE = 0.05  # of the queries
LITTLE_CONTRAST = 0.1  # the least standard deviation that advantages are divided by (training.objectives)
SAME_REWARDS = 0.9  # of the groups
_LEAST_CELLS = 2  # that runs must share to be called identical


def choice(facts: Comparison) -> Choice:
    """Chooses a run, and says by which rule.

    - ``alone``: there is one run.
    - ``not_comparable``, ``undecided``, ``no_accuracy``, ``unknown``: none is chosen, as the runs differ in more than they are
      meant to, as it is not said what is meant to differ, as no accuracy is known, or as they have no cell in common.
    - ``identical``: none is chosen, as all runs are the same in every cell, which is rather a fault of the evaluation.
    - ``better``: of the runs that are significantly better than the reference at some shot count and worse at none, the one
      with the highest mean; or the reference, where all others are worse.
    - ``closest``: nothing shows a beta to be better, so the largest one that is not significantly worse, which stays closest to
      the start policy.
    - ``none``: nothing shows a run to be better, and runs that are no betas have no such order.
    """
    labels, rows = [run.label for run in facts.runs], primary(facts.differences)
    rule = _no_choice(facts)
    if rule is not None:
        return Choice(run=labels[0] if rule == "alone" else None, rule=rule)
    gains: dict[str, float] = {}
    worse: set[str] = set()
    for label in dict.fromkeys(row.run for row in rows):
        of_run = [row for row in rows if row.run == label]
        if any(row.significant and row.points < 0 for row in of_run):
            worse.add(label)
        elif any(row.significant for row in of_run):
            gains[label] = float(np.mean([row.points for row in of_run]))
    if gains:
        return Choice(run=max(gains, key=lambda label: gains[label]), rule="better")
    if len(worse) == len(labels) - 1:
        return Choice(run=facts.reference, rule="better")
    if not facts.by_beta:
        return Choice(run=None, rule="none")
    return Choice(run=[label for label in labels if label not in worse][-1], rule="closest")  # betas ascend


_NoChoice = Literal["alone", "no_accuracy", "not_comparable", "undecided", "unknown", "identical"]


def _no_choice(facts: Comparison) -> _NoChoice | None:
    """Returns the rule by which there is nothing to choose between the runs; None where there is."""
    if len(facts.runs) == 1:
        return "alone"
    if not facts.comparable:
        return "not_comparable" if facts.varied else "undecided"
    if not facts.sizes:
        return "no_accuracy"
    if not primary(facts.differences):
        return "unknown"
    return "identical" if any(len(finding.runs) == len(facts.runs) for finding in facts.identical) else None


def findings(facts: Comparison) -> Iterator[Finding]:
    """Applies the rules in the order in which a report states what they find."""
    if facts.confounders:
        yield NotComparable(rule="not_comparable" if facts.varied else "undecided", fields=tuple(facts.confounders))
    yield from _identical_runs(facts)
    for run, curves in zip(facts.runs, facts.curves, strict=True):
        yield from _of_training(run, curves)
    yield from _of_differences(primary(facts.differences))
    yield from _of_baselines(facts.against_baselines)
    for pair in facts.epochs_compared:
        if pair.cells and pair.equal == pair.cells:
            yield EqualEpochs(run=pair.run, epochs=pair.epochs, cells=pair.cells)
    same = [row for row in facts.overlap_of_best if row.ordered == 1.0]
    if same:
        yield SamePicks(runs=(same[0].first, same[0].second), shots=tuple(row.shots for row in same))
    best_single = next((run.best_single for run in facts.runs if run.best_single), None)
    if best_single:
        yield OracleFinding(**dict(best_single))
    missing = sum(len(part.what) for part in facts.missing)
    if missing:
        yield MissingParts(cells=missing)


def _identical_runs(facts: Comparison) -> Iterator[IdenticalRuns]:
    """Finds runs that have the same accuracy in every cell that they share, of at least two cells, as one may be chance."""
    left = [run for run in facts.runs if run.evaluated]
    while left:
        first, *others = left
        same = [run for run in others if _equal_cells(first, run) >= _LEAST_CELLS]
        if same:
            labels = (first.label, *(run.label for run in same))
            shares = [row.ordered for row in facts.overlap_of_best if row.first in labels and row.second in labels]
            cells = min(_equal_cells(first, run) for run in same)
            yield IdenticalRuns(runs=labels, cells=cells, picks=min(shares, default=None))
        left = [run for run in others if run not in same]


def _equal_cells(first: RunResult, second: RunResult) -> int:
    """Counts the cells of two runs, each at its best or last epoch, if all accuracies are the same; else returns 0."""
    cells, others = first.best_or_last.cells, second.best_or_last.cells
    shared = cells.keys() & others.keys()
    return len(shared) if all(cells[cell] == others[cell] for cell in shared) else 0


def _of_training(run: RunResult, curves: Curves) -> Iterator[Finding]:
    """Judges RL data and curves of a run: few positive queries, no contrast between rewards, the way of the KL."""
    queries, positive = run.rl_data.get("n_queries"), run.rl_data.get("n_positive_queries")
    if isinstance(queries, int) and isinstance(positive, int) and positive < FEW_POSITIVE * queries:
        yield FewPositive(run=run.label, queries=queries, positive=positive)
    spreads = present(curves.values["advantage_std"])
    if spreads and max(spreads) < LITTLE_CONTRAST:
        yield LittleContrast(run=run.label, advantage_std=max(spreads))
    shares = present(curves.values.get("frac_reward_zero_std", ()))
    if shares and min(shares) > SAME_REWARDS:
        yield SameRewards(run=run.label, share=min(shares))
    trend = curves.trends["kl"]
    if trend == "rising" or trend == "falling":
        kl = present(curves.values["kl"])
        yield KlTrend(
            rule="kl_rising" if trend == "rising" else "kl_falling",
            run=run.label,
            values=(kl[0], kl[-1]),
            change=change("kl", kl[0], kl[-1]),
        )


def _of_differences(rows: Sequence[Difference]) -> Iterator[Finding]:
    """Reports each run's significant differences from the reference; where there is none, the largest one."""
    for run in dict.fromkeys(row.run for row in rows):
        of_run = [row for row in rows if row.run == run]
        significant = [row for row in of_run if row.significant]
        for row in significant or [max(of_run, key=lambda row: abs(row.points))]:
            yield DifferenceFinding(
                rule="difference" if significant else "no_difference",
                run=row.run,
                reference=row.reference,
                size=row.size,
                shots=row.shots,
                points=row.points,
                interval_holm=row.interval_holm,
                p_holm=row.p_holm,
                kind=row.kind,
                questions_needed=row.questions_needed,
            )


def _of_baselines(rows: Sequence[AgainstBaseline]) -> Iterator[Finding]:
    """Compares each best epoch with zero-shot, random picks, its start and the strongest baseline in the mean over shots."""
    for row in rows:
        leader = _strongest([other for other in rows if other.run == row.run])
        if row.baseline in (RANDOM, ZERO_SHOT, START) or (leader is not None and row.baseline == leader.policy):
            yield BaselineFinding(
                rule=_baseline_rule(row),
                run=row.run,
                baseline=row.baseline,
                size=row.size,
                points=row.points,
                interval_holm=row.interval_holm,
                accuracies=row.accuracies,
            )


def _strongest(rows: Sequence[AgainstBaseline]) -> Strongest | None:
    """Finds the strongest baseline of a run by its mean over shots."""
    return strongest({(row.baseline, None): row.accuracies[1] for row in rows}, None)


def _baseline_rule(row: AgainstBaseline) -> Literal["baseline_up", "baseline_down", "no_baseline_difference"]:
    if not row.significant:
        return "no_baseline_difference"
    return "baseline_up" if row.direction == "up" else "baseline_down"
