"""Applies the rules by which the figures of a comparison become findings and the choice of a beta."""

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
    MissingCell,
    primary,
)
from lever_mlflow.comparison.findings import (
    BaselineFinding,
    Choice,
    DifferenceFinding,
    EqualEpochs,
    FewPositive,
    Finding,
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


def choice(betas: Sequence[float], reference: float, cells: Sequence[Difference | MissingCell], *, comparable: bool) -> Choice:
    """Chooses a beta, and says by which rule.

    - ``alone``: there is one beta.
    - ``not_comparable``, ``unknown``: none is chosen, as the runs differ in more than beta, or have no cell in common.
    - ``better``: of the betas that are significantly better than the reference at some shot count and worse at none, the one
      with the highest mean; or the reference, where all others are worse.
    - ``closest``: nothing shows a beta to be better, so the largest one that is not significantly worse, which stays closest to
      the start policy.
    """
    if len(betas) == 1:
        return Choice(beta=reference, rule="alone")
    if not comparable:
        return Choice(beta=None, rule="not_comparable")
    rows = primary(cells)
    if not rows:
        return Choice(beta=None, rule="unknown")
    gains: dict[float, float] = {}
    worse: set[float] = set()
    for beta in dict.fromkeys(row.beta for row in rows):
        of_beta = [row for row in rows if row.beta == beta]
        if any(row.significant and row.points < 0 for row in of_beta):
            worse.add(beta)
        elif any(row.significant for row in of_beta):
            gains[beta] = float(np.mean([row.points for row in of_beta]))
    if gains:
        return Choice(beta=max(gains, key=lambda beta: gains[beta]), rule="better")
    if len(worse) == len(betas) - 1:
        return Choice(beta=reference, rule="better")
    return Choice(beta=max(beta for beta in betas if beta not in worse), rule="closest")


def findings(facts: Comparison) -> Iterator[Finding]:
    """Applies the rules in the order in which a report states what they find."""
    if facts.confounders:
        yield NotComparable(fields=tuple(facts.confounders))
    for run, curves in zip(facts.runs, facts.curves, strict=True):
        yield from _of_training(run, curves)
    yield from _of_differences(primary(facts.differences))
    yield from _of_baselines(facts.against_baselines)
    for pair in facts.epochs_compared:
        if pair.cells and pair.equal == pair.cells:
            yield EqualEpochs(kl_beta=pair.kl_beta, epochs=pair.epochs, cells=pair.cells)
    same = [row for row in facts.overlap_of_best if row.ordered == 1.0]
    if same:
        yield SamePicks(betas=(same[0].first, same[0].second), shots=tuple(row.shots for row in same))
    best_single = next((run.best_single for run in facts.runs if run.best_single), None)
    if best_single:
        yield OracleFinding(**dict(best_single))
    missing = sum(len(part.what) for part in facts.missing)
    if missing:
        yield MissingParts(cells=missing)


def _of_training(run: RunResult, curves: Curves) -> Iterator[Finding]:
    """Judges RL data and curves of a run: few positive queries, no contrast between rewards, the way of the KL."""
    queries, positive = run.rl_data.get("n_queries"), run.rl_data.get("n_positive_queries")
    if isinstance(queries, int) and isinstance(positive, int) and positive < FEW_POSITIVE * queries:
        yield FewPositive(kl_beta=run.kl_beta, queries=queries, positive=positive)
    spreads = present(curves.values["advantage_std"])
    if spreads and max(spreads) < LITTLE_CONTRAST:
        yield LittleContrast(kl_beta=run.kl_beta, advantage_std=max(spreads))
    shares = present(curves.values.get("frac_reward_zero_std", ()))
    if shares and min(shares) > SAME_REWARDS:
        yield SameRewards(kl_beta=run.kl_beta, share=min(shares))
    trend = curves.trends["kl"]
    if trend == "rising" or trend == "falling":
        kl = present(curves.values["kl"])
        yield KlTrend(
            rule="kl_rising" if trend == "rising" else "kl_falling",
            kl_beta=run.kl_beta,
            values=(kl[0], kl[-1]),
            change=change("kl", kl[0], kl[-1]),
        )


def _of_differences(rows: Sequence[Difference]) -> Iterator[Finding]:
    """Reports each beta's significant differences from the reference; where there is none, the largest one."""
    for beta in dict.fromkeys(row.beta for row in rows):
        of_beta = [row for row in rows if row.beta == beta]
        significant = [row for row in of_beta if row.significant]
        for row in significant or [max(of_beta, key=lambda row: abs(row.points))]:
            yield DifferenceFinding(
                rule="difference" if significant else "no_difference",
                beta=row.beta,
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
        leader = _strongest([other for other in rows if other.beta == row.beta])
        if row.baseline in (RANDOM, ZERO_SHOT, START) or (leader is not None and row.baseline == leader.policy):
            yield BaselineFinding(
                rule=_baseline_rule(row),
                beta=row.beta,
                baseline=row.baseline,
                size=row.size,
                points=row.points,
                interval_holm=row.interval_holm,
                accuracies=row.accuracies,
            )


def _strongest(rows: Sequence[AgainstBaseline]) -> Strongest | None:
    """Finds the strongest baseline of a beta by its mean over shots."""
    return strongest({(row.baseline, None): row.accuracies[1] for row in rows}, None)


def _baseline_rule(row: AgainstBaseline) -> Literal["baseline_up", "baseline_down", "no_baseline_difference"]:
    if not row.significant:
        return "no_baseline_difference"
    return "baseline_up" if row.direction == "up" else "baseline_down"
