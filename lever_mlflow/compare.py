"""Comparison of evaluated betas: what differs between their runs, and paired differences on the same questions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, permutation_test

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.overlap import overlaps

__all__ = ["Evaluation", "compare", "differences", "paired_interval", "paired_p_value", "read_records"]

RESAMPLES = 10_000
_INTENDED = frozenset({"kl_beta"})
_BOOKKEEPING = frozenset(
    {"grpo_run", "models", "start", "start_uri", "checkpoints", "n_oracle", "random_draws"}
)  # name runs and models; their digests are compared instead


class Evaluation(NamedTuple):
    """One finished evaluation: its run, its ``evaluation.json`` and its records per question."""

    run_id: str
    result: Mapping[str, Any]
    records: pd.DataFrame


def read_records(path: Path) -> pd.DataFrame:
    """Records per question of an evaluation.

    Raises:
        DataError: the file is not readable as such.
    """
    try:
        return pd.read_parquet(path, columns=["policy", "part", "position", "question_id", "shots", "picks", "accuracy"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not the records of an evaluation ({error}); evaluate again") from None


def compare(evaluations: Sequence[Evaluation], *, seed: int) -> dict[str, Any]:
    """Everything the report says, as JSON: betas ascending, every field that differs, accuracies, paired differences.

    Raises:
        ParameterError: no evaluation, or two of the same beta.
    """
    evaluations = sorted(evaluations, key=lambda evaluation: evaluation.result["kl_beta"])
    betas = [evaluation.result["kl_beta"] for evaluation in evaluations]
    if not betas or len(set(betas)) < len(betas):
        raise ParameterError(f"kl_betas={betas}: a comparison needs different betas")
    confounders = differences(evaluations)
    pairs = _paired_differences(evaluations, seed)
    return {
        "verdict": _verdict(betas, confounders, pairs),
        "comparable": not confounders,
        "confounders": confounders,
        "pairs": pairs,
        "overlap": _overlap_of_best(evaluations),
        "evaluations": [{"run_id": evaluation.run_id, **evaluation.result} for evaluation in evaluations],
    }


def differences(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Fields other than beta in which the runs differ: ``field`` and its ``values`` in the order of the evaluations."""
    flat = [
        {
            f"{section}.{name}": value
            for section in ("inputs", "training", "settings")
            for name, value in evaluation.result[section].items()
            if name not in _INTENDED | _BOOKKEEPING
        }
        for evaluation in evaluations
    ]
    names = sorted(set().union(*flat))
    values = {name: [fields.get(name, "missing") for fields in flat] for name in names}
    return [{"field": name, "values": found} for name, found in values.items() if any(v != found[0] for v in found)]


def paired_interval(differences_Q: np.ndarray, confidence: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval (percentile, 10,000 resamples) of the mean of paired differences; (m, m) where all are equal m."""
    if np.ptp(differences_Q) == 0.0:
        return float(differences_Q[0]), float(differences_Q[0])
    result = bootstrap(
        (differences_Q,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_p_value(differences_Q: np.ndarray, seed: int) -> float:
    """Two-sided sign-flip permutation test of mean difference 0; exact for up to 13 questions that differ."""
    nonzero = differences_Q[differences_Q != 0.0]  # the others are the same whatever their sign
    if len(nonzero) < 2:
        return 1.0
    result = permutation_test(
        (nonzero,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(seed)
    )
    return float(result.pvalue)


def _paired_differences(evaluations: Sequence[Evaluation], seed: int) -> list[dict[str, Any]]:
    """Second beta minus first at every shot count, on all report questions that both answered, in points.

    Intervals and tests hold together (Bonferroni): each interval has a confidence of 1 - 0.05 / number of comparisons, and a
    difference is significant when its p-value times that number is below 0.05.
    """
    cells = []
    for first, second in itertools.combinations(evaluations, 2):
        merged = _best(first).merge(_best(second), on=["question_id", "shots"], suffixes=("_first", "_second"))
        for shots in sorted(set(merged.shots.tolist())):
            rows = merged[merged.shots == shots]
            cells.append((first, second, shots, 100.0 * (rows.accuracy_second - rows.accuracy_first).to_numpy()))
    pairs = []
    for first, second, shots, points_Q in cells:
        p_value = paired_p_value(points_Q, seed)
        low, high = paired_interval(points_Q, 1.0 - 0.05 / len(cells), seed)
        pairs.append(
            {
                "first": first.result["kl_beta"],
                "second": second.result["kl_beta"],
                "shots": shots,
                "questions": len(points_Q),
                "differing_questions": int(np.count_nonzero(points_Q)),
                "points": float(points_Q.mean()),
                "low": low,
                "high": high,
                "p_value": p_value,
                "significant": p_value * len(cells) < 0.05,
            }
        )
    return pairs


def _overlap_of_best(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """How far the best epochs of each two betas pick the same, on all report questions that both answered."""
    rows = []
    for first, second in itertools.combinations(evaluations, 2):
        merged = _best(first).merge(_best(second), on=["question_id", "shots"], suffixes=("_first", "_second"))
        names = [f"beta {evaluation.result['kl_beta']:g}" for evaluation in (first, second)]
        digests = {evaluation.result["registration"]["checkpoint_digest"] for evaluation in (first, second)}
        for shots in sorted(set(merged.shots.tolist())):
            of_shots = merged[merged.shots == shots]
            picks = [np.stack(of_shots[column].tolist()) for column in ("picks_first", "picks_second")]
            (overlap,) = overlaps(dict(zip(names, picks, strict=True)), [shots])
            row: dict[str, Any] = overlap._asdict()
            if overlap.ordered == 1.0:
                equal = len(digests) == 1
                row["reason"] = "the weights are equal" if equal else "the weights differ, but too little to change a pick"
            rows.append(row)
    return rows


def _best(evaluation: Evaluation) -> pd.DataFrame:
    records = evaluation.records
    name = f"epoch {evaluation.result['best_epoch']}"
    return records.loc[(records.policy == name) & (records.part == "report"), ["question_id", "shots", "picks", "accuracy"]]


def _verdict(betas: Sequence[float], confounders: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> str:
    names = ", ".join(f"{beta:g}" for beta in betas)
    if len(betas) == 1:
        return f"Beta {names} alone: nothing to compare it with."
    if confounders:
        fields = ", ".join(str(item["field"]) for item in confounders)
        return f"Betas {names} are not comparable: the runs also differ in {fields}."
    significant = [pair for pair in pairs if pair["significant"]]
    if not significant:
        questions = min((pair["questions"] for pair in pairs), default=0)
        return f"Betas {names}: comparable; no difference at any shot count that these {questions} questions can show."
    parts = []
    for pair in significant:
        better, other = (pair["second"], pair["first"]) if pair["points"] > 0 else (pair["first"], pair["second"])
        parts.append(f"{better:g} better than {other:g} at {pair['shots']} shots by {abs(pair['points']):.2f} points")
    return f"Betas {names}: comparable; {'; '.join(parts)} (paired, corrected for {len(pairs)} comparisons)."
