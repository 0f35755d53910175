"""What a comparison's figures say: findings and the choice of a beta, each by a stated rule and with its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lever_mlflow.comparison.results import RunResult
from lever_mlflow.evaluation.policies import RANDOM, START, ZERO_SHOT

__all__ = ["FEW_POSITIVE", "LITTLE_CONTRAST", "SAME_REWARDS", "change", "choice", "findings", "primary", "trend"]

FEW_POSITIVE = 0.05  # of the queries
LITTLE_CONTRAST = 0.1  # the least standard deviation that advantages are divided by (objectives)
SAME_REWARDS = 0.9  # of the groups
_CLAIM = ("beta", "reference", "size", "shots", "points", "interval_holm", "p_holm", "kind", "questions_needed")


def primary(differences: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that claims rest on and that are known."""
    return [row for row in differences if row["primary"] and row["points"] is not None]


def change(before: float | None, after: float | None) -> float | None:
    """In percent; None where one is missing or there is nothing to divide by."""
    if before is None or after is None or before == 0.0:
        return None
    return 100.0 * (after - before) / abs(before)


def trend(values: Sequence[float | None]) -> str:
    """The way of a metric from epoch to epoch: ``rising``, ``falling`` or ``constant`` throughout, ``not_falling`` or
    ``not_rising`` where it stays at times, else ``mixed``; ``unknown`` where there are fewer than two values.
    """
    found = [value for value in values if value is not None]
    signs = {int(np.sign(after - before)) for before, after in itertools.pairwise(found)}
    names = {(): "unknown", (1,): "rising", (-1,): "falling", (0,): "constant", (0, 1): "not_falling", (-1, 0): "not_rising"}
    return names.get(tuple(sorted(signs)), "mixed")


def choice(runs: Sequence[RunResult], reference: RunResult, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Which beta, and by which rule.

    ``alone``: there is one. ``not_comparable`` or ``unknown`` (no cell in common): none. ``better``: the one significantly
    better than the reference at some shot count and worse at none, with the highest mean, or the reference where all others
    are worse. ``closest``: nothing shows one to be better, so the largest beta that is not significantly worse, which stays
    closest to the start policy.
    """
    if len(runs) == 1:
        return {"beta": reference.kl_beta, "rule": "alone"}
    if not facts["comparable"]:
        return {"beta": None, "rule": "not_comparable"}
    rows = primary(facts["differences"])
    if not rows:
        return {"beta": None, "rule": "unknown"}
    gains: dict[float, float] = {}
    worse: set[float] = set()
    for beta in {row["beta"] for row in rows}:
        of_beta = [row for row in rows if row["beta"] == beta]
        if any(row["significant"] and row["points"] < 0 for row in of_beta):
            worse.add(beta)
        elif any(row["significant"] for row in of_beta):
            gains[beta] = float(np.mean([row["points"] for row in of_beta]))
    if gains:
        return {"beta": max(gains, key=lambda beta: gains[beta]), "rule": "better"}
    if len(worse) == len(runs) - 1:
        return {"beta": reference.kl_beta, "rule": "better"}
    return {"beta": max(run.kl_beta for run in runs if run.kl_beta not in worse), "rule": "closest"}


def findings(runs: Sequence[RunResult], facts: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """What the rules say, each with the numbers it rests on."""
    confounding = [field["field"] for field in facts["fields"] if field["mark"] == "confounding"]
    if confounding:
        yield {"rule": "not_comparable", "fields": confounding}
    for run, curves in zip(runs, facts["curves"], strict=True):
        yield from _findings_of_training(run, curves["values"])
    rows = primary(facts["differences"])
    for beta in dict.fromkeys(row["beta"] for row in rows):
        of_beta = [row for row in rows if row["beta"] == beta]
        shown = [row for row in of_beta if row["significant"]]
        for row in shown:
            yield {"rule": "difference", **{name: row[name] for name in _CLAIM}}
        if not shown:
            widest = max(of_beta, key=lambda row: abs(row["points"]))
            yield {"rule": "no_difference", **{name: widest[name] for name in _CLAIM}}
    for row in facts["against_baselines"]:
        if row["baseline"] in (RANDOM, ZERO_SHOT, START) or row is _strongest(facts["against_baselines"], row["beta"]):
            rule = "no_baseline_difference" if not row["significant"] else f"baseline_{row['direction']}"
            yield {
                "rule": rule,
                **{name: row[name] for name in ("beta", "baseline", "size", "points", "interval_holm", "accuracies")},
            }
    for row in facts["epochs_compared"]:
        if row["cells"] and row["equal"] == row["cells"]:
            yield {"rule": "epochs_equal", **{name: row[name] for name in ("kl_beta", "epochs", "cells")}}
    same = [row for row in facts["overlap_of_best"] if row["ordered"] == 1.0]
    if same:
        yield {"rule": "same_picks", "betas": [same[0]["first"], same[0]["second"]], "shots": [row["shots"] for row in same]}
    bound = next((run.best_single for run in runs if run.best_single), None)
    if bound:
        yield {"rule": "oracle", **bound}
    missing = sum(len(row["what"]) for row in facts["missing"])
    if missing:
        yield {"rule": "missing", "cells": missing}


def _findings_of_training(run: RunResult, values: Mapping[str, Sequence[float | None]]) -> Iterable[dict[str, Any]]:
    """What a run's RL data and curves say: few positive queries, no contrast between rewards, the way of the KL."""
    queries, positive = run.rl_data.get("n_queries"), run.rl_data.get("n_positive_queries")
    if isinstance(queries, int) and isinstance(positive, int) and positive < FEW_POSITIVE * queries:
        yield {"rule": "few_positive", "kl_beta": run.kl_beta, "queries": queries, "positive": positive}
    spread = [value for value in values["advantage_std"] if value is not None]
    if spread and max(spread) < LITTLE_CONTRAST:
        yield {"rule": "no_contrast", "kl_beta": run.kl_beta, "advantage_std": max(spread)}
    same = [value for value in values.get("frac_reward_zero_std", []) if value is not None]
    if same and min(same) > SAME_REWARDS:
        yield {"rule": "same_rewards", "kl_beta": run.kl_beta, "share": min(same)}
    kl = [value for value in values["kl"] if value is not None]
    way = trend(values["kl"])
    if way in ("rising", "falling"):
        yield {"rule": f"kl_{way}", "kl_beta": run.kl_beta, "values": [kl[0], kl[-1]], "change": change(kl[0], kl[-1])}


def _strongest(rows: Sequence[Mapping[str, Any]], beta: float) -> Mapping[str, Any]:
    """The baseline that comes closest to a beta's best epoch, or passes it by most."""
    return min((row for row in rows if row["beta"] == beta), key=lambda row: float(row["points"]))
