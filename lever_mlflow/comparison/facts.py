"""Comparison of betas: what differs between their runs beside beta, and which differences in accuracy the questions show.

Everything here is figures and names of rules; ``report`` puts them into words. Differences are a beta's accuracy minus the
reference's, in points: with two betas the reference is the larger one, which stays closer to the start policy; with more it
is the one with the highest accuracy on the selection questions, which are not among those reported.

Tests and intervals are corrected by Holm's method within two families: ``primary``, the best epochs at the largest size, on
which all claims rest, and everything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm

from lever_mlflow.comparison.findings import change, choice, findings, trend
from lever_mlflow.comparison.results import Accuracies, EpochResult, Results, RunResult
from lever_mlflow.evaluation.overlap import overlaps
from lever_mlflow.evaluation.statistics import holm, interval, questions_needed, resampled_means, sign_flip_p_value
from lever_mlflow.exceptions import DataError, ParameterError

__all__ = ["BEST", "CURVES", "TIE", "Records", "compare", "read_records"]

TIE = 0.25  # points; a smaller difference is a tie whatever its interval
LEVEL = 0.05
BEST = "best"
DIGITS = 6  # of a metric that are shown; what these do not show is no change
CURVES = ("train_loss", "val_loss", "ppo_loss", "kl", "advantage_std", "advantage_max", "beta")
_INTENDED = frozenset({"kl_beta", "training.kl_beta"})
_EXAMPLES = 5  # questions lost, and as many won


class Records:
    """Records per question of one evaluation: accuracies and picks by policy and shots."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame[frame.part == "report"]

    @cached_property
    def _table(self) -> tuple[np.ndarray, dict[tuple[str, int], np.ndarray]]:
        """Question ids in the seeded order, and accuracies by (policy, shots); several draws are averaged."""
        table = self._frame.pivot_table(
            index=["position", "question_id"], columns=["policy", "shots"], values="accuracy", aggfunc="mean"
        )
        columns = {(policy, shots): table[policy, shots].to_numpy() for policy, shots in table.columns.to_numpy().tolist()}
        return table.index.get_level_values("question_id").to_numpy(), columns

    def of(self, policy: str, shots: int, size: int) -> pd.Series | None:
        """Accuracies in [0, 1] on the first ``size`` questions, by question id; None where not all are there."""
        ids, columns = self._table
        found = columns.get((policy, shots))
        return None if found is None else _whole(ids, [found], size)

    def mean_of(self, policy: str, size: int) -> pd.Series | None:
        """As ``of``, mean over the shot counts that the policy was evaluated at."""
        ids, columns = self._table
        return _whole(ids, [column for (name, _), column in columns.items() if name == policy], size)

    def shown(self, policy: str) -> pd.DataFrame:
        """Picks and answers of a policy: columns ``question_id``, ``shots``, ``picks``, ``answer``, ``accuracy``."""
        rows = self._frame[self._frame.policy == policy]
        return rows[["question_id", "shots", "picks", "answer", "accuracy"]]


def _whole(ids: np.ndarray, columns: Sequence[np.ndarray], size: int) -> pd.Series | None:
    """The mean of columns on the first questions; None where one of them lacks any."""
    if not columns or len(ids) < size:
        return None
    mean = np.mean([column[:size] for column in columns], axis=0)
    return None if np.isnan(mean).any() else pd.Series(mean, index=ids[:size])


class _Pair(NamedTuple):
    """Two runs to be compared, the reference second."""

    run: RunResult
    reference: RunResult


def read_records(path: Path) -> Records:
    """Records per question of an evaluation.

    Raises:
        DataError: the file is not readable as such.
    """
    columns = ["policy", "part", "position", "question_id", "shots", "picks", "answer", "accuracy"]
    try:
        return Records(pd.read_parquet(path, columns=columns))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not the records of an evaluation ({error}); evaluate again") from None


def compare(
    results: Results,
    records: Mapping[float, Records],
    *,
    seed: int,
    questions: Mapping[int, str] | None = None,
    project: str = "mlflow run .",
) -> dict[str, Any]:
    """Everything that a report says, as JSON: the results and what follows from them.

    Args:
        records: by beta, where there are any; without them only a bound on the error of a difference is known.
        questions: texts by question id, for the examples.
        project: how the commands that the report names begin.

    Raises:
        ParameterError: no run, or two of the same beta.
    """
    runs = results.runs
    betas = [run.kl_beta for run in runs]
    if not betas or len(set(betas)) < len(betas):
        raise ParameterError(f"kl_betas={betas}: a comparison needs different betas")
    reference = _reference(runs)
    pairs = [_Pair(run, reference) for run in runs if run is not reference]
    fields = _fields(results)
    sizes, shots = _grid(runs)
    differences = _differences(pairs, records, sizes, shots, seed)
    against = _against_baselines(runs, records, sizes, seed)
    facts: dict[str, Any] = {
        **results.to_json(),
        "comparable": all(field["mark"] != "confounding" for field in fields),
        "reference": reference.kl_beta,
        "sizes": sizes,
        "shots": shots,
        "fields": fields,
        "curves": [_curves(run) for run in runs],
        "differences": differences,
        "statistics": [_statistics(pair, differences) for pair in pairs],
        "epochs_compared": [row for run in runs for row in _epochs_compared(run)],
        "overlap_of_best": [row for pair in pairs for row in _overlap_of_best(pair, records)],
        "against_baselines": against,
        "ranking": _ranking(runs, records, sizes, seed),
        "missing": _missing(runs, sizes, shots, project),
        "examples": _examples(pairs[0], records, max(shots, default=0), questions) if len(pairs) == 1 and questions else [],
    }
    facts["command"] = f"{project} -e compare -P kl_betas={','.join(f'{beta:g}' for beta in betas)}"
    facts["choice"] = choice(runs, reference, facts)
    facts["findings"] = list(findings(runs, facts))
    return facts


def _reference(runs: Sequence[RunResult]) -> RunResult:
    """The run that the others are compared with."""
    chosen = [run for run in runs if run.best_epoch in run.selection]
    if len(runs) <= 2 or len(chosen) < len(runs):
        return runs[-1]
    return max(chosen, key=lambda run: (run.selection[run.best_epoch or 0], run.kl_beta))


def _fields(results: Results) -> list[dict[str, Any]]:
    """Every field of the runs with its values and a mark: same, intended (beta), confounding or unknown (not stated)."""
    flat = [
        {**{f"rl_data.{name}": value for name, value in run.rl_data.items()}, **run.config, "kl_beta": run.kl_beta}
        for run in results.runs
    ]
    rows = []
    for name in dict.fromkeys(itertools.chain.from_iterable(flat)):
        values = [fields.get(name) for fields in flat]
        stated = values if results.complete else [value for value in values if value is not None]
        if any(value != stated[0] for value in stated):
            mark = "intended" if name in _INTENDED else "confounding"
        else:
            mark = "same" if len(stated) == len(flat) else "unknown"
        rows.append({"field": name, "values": values, "mark": mark})
    same_data = [row for row in rows if row["field"] == "rl_data.digest" and row["mark"] == "same"]
    for row in rows:
        if same_data and row["field"] == "rl_data.source":  # the same contents, wherever they were read
            row["mark"] = "same"
    return rows


def _grid(runs: Sequence[RunResult]) -> tuple[list[int], list[int]]:
    """All sizes and shot counts that any epoch was evaluated at."""
    cells = {cell for run in runs for epoch in run.epochs for cell in epoch.accuracy}
    return sorted({size for size, _ in cells}), sorted({shots for _, shots in cells})


def _curves(run: RunResult) -> dict[str, Any]:
    """Metrics by epoch, as they are shown, each with its changes in percent and its trend."""
    names = [*CURVES, *sorted({name for epoch in run.epochs for name in epoch.metrics} - set(CURVES))]
    values = {name: [_metric(run, epoch, name) for epoch in run.epochs] for name in names}
    return {
        "kl_beta": run.kl_beta,
        "epochs": [epoch.epoch for epoch in run.epochs],
        "values": values,
        "changes": {name: [change(*pair) for pair in itertools.pairwise(found)] for name, found in values.items()},
        "trends": {name: trend(found) for name, found in values.items()},
    }


def _metric(run: RunResult, epoch: EpochResult, name: str) -> float | None:
    """A metric of an epoch; beta, where it was not logged, is the run's own."""
    fixed = run.kl_beta if name == "beta" and epoch.metrics and not run.config.get("adaptive_beta") else None
    value = epoch.metrics.get(name, fixed)
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _differences(
    pairs: Sequence[_Pair], records: Mapping[float, Records], sizes: Sequence[int], shots: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Every cell of every pair: of two betas all epochs that both have, and the best ones; of more these, or the last ones."""
    rows = []
    for pair in pairs:
        common = sorted({e.epoch for e in pair.run.epochs} & {e.epoch for e in pair.reference.epochs})
        both = pair.run.best_epoch is not None and pair.reference.best_epoch is not None
        shown = common if len(pairs) == 1 else [] if both else common[-1:]
        labels: list[int | str] = [*shown, *([BEST] if both else [])]
        of_pair = [_difference(pair, records, label, size, k) for label, size, k in itertools.product(labels, sizes, shots)]
        claims = [row["size"] for row in of_pair if row["label"] == labels[-1] and row["points"] is not None]
        for row in of_pair:
            row["primary"] = row["label"] == labels[-1] and row["size"] == max(claims, default=None)
        rows += of_pair
    for family in (True, False):
        _test([row for row in rows if row["primary"] is family and row["points"] is not None], seed)
    for row in rows:
        row.pop("paired_Q", None)
    return rows


def _difference(pair: _Pair, records: Mapping[float, Records], label: int | str, size: int, shots: int) -> dict[str, Any]:
    """One cell, not tested yet: the paired differences, or where there are no records the deviation that they may have."""
    epochs = [run.best_epoch if label == BEST else label for run in pair]
    found = [_accuracies(run, epoch).get((size, shots)) for run, epoch in zip(pair, epochs, strict=True)]
    first, second = found
    row: dict[str, Any] = {
        "beta": pair.run.kl_beta,
        "reference": pair.reference.kl_beta,
        "label": label,
        "size": size,
        "shots": shots,
        "accuracies": found,
        "points": None,
        "direction": "missing",
    }
    if first is None or second is None:
        return row
    points = first - second
    direction = "tie" if abs(points) <= TIE + 1e-9 else "up" if points > 0 else "down"
    columns = [
        records[run.kl_beta].of(f"epoch {epoch}", shots, size) if run.kl_beta in records else None
        for run, epoch in zip(pair, epochs, strict=True)
    ]
    paired_Q = _paired(*columns)
    if paired_Q is not None:
        deviation = float(100.0 * paired_Q.std(ddof=1)) if size > 1 else 0.0
    else:  # the largest variance of values in [0, 1] with that mean; answers to the same questions are seldom opposed
        deviation = float(np.sqrt(first * (100.0 - first) + second * (100.0 - second)))
    return {**row, "points": points, "direction": direction, "paired_Q": paired_Q, "deviation": deviation}


def _paired(first: pd.Series | None, second: pd.Series | None) -> np.ndarray | None:
    """Differences on the same questions in the same order; None where they are not the same."""
    if first is None or second is None or not first.index.equals(second.index):
        return None
    return np.asarray(first.to_numpy() - second.to_numpy())


def _test(rows: Sequence[dict[str, Any]], seed: int) -> None:
    """Adds intervals and tests, corrected within these rows: paired where there are records, else a bound.

    The bound takes both accuracies for means of independent answers, with the largest variance that those can have.
    """
    for row in rows:
        if row["paired_Q"] is not None:
            row["kind"], row["p"] = "paired", sign_flip_p_value(row["paired_Q"])
        else:
            error = row["deviation"] / np.sqrt(row["size"])
            row["kind"], row["p"] = "bound", float(2.0 * norm.sf(abs(row["points"]) / error)) if error else 1.0
    means = dict(zip(*_resampled(rows, seed), strict=True))
    for i, (row, adjusted, level) in enumerate(zip(rows, *holm([row["p"] for row in rows]), strict=True)):
        row["interval"], row["interval_holm"] = (_interval(row, means.get(i), 1.0 - share) for share in (LEVEL, level))
        low, high = row["interval_holm"]
        row["p_holm"] = adjusted
        row["significant"] = row["direction"] != "tie" and adjusted < LEVEL and (low > 0.0 or high < 0.0)
        row["questions_needed"] = questions_needed(row["points"], row["deviation"], level)


def _resampled(rows: Sequence[Mapping[str, Any]], seed: int) -> tuple[list[int], list[np.ndarray]]:
    """Places of the rows with paired differences, and their resampled means."""
    paired = [i for i, row in enumerate(rows) if row["paired_Q"] is not None]
    return paired, resampled_means([rows[i]["paired_Q"] for i in paired], seed)


def _interval(row: Mapping[str, Any], means_R: np.ndarray | None, confidence: float) -> list[float]:
    """In points: of the resampled means, else a bound."""
    if means_R is not None:
        return [100.0 * end for end in interval(means_R, confidence)]
    reach = float(norm.isf((1.0 - confidence) / 2.0)) * row["deviation"] / float(np.sqrt(row["size"]))
    return [row["points"] - reach, row["points"] + reach]


def _statistics(pair: _Pair, differences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By label: mean, extremes and counts over all cells; means by shots and by size."""
    rows = [row for row in differences if row["beta"] == pair.run.kl_beta and row["reference"] == pair.reference.kl_beta]
    by_label = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        cells = [row for row in rows if row["label"] == label]
        known = [row for row in cells if row["points"] is not None]
        by_label[str(label)] = {
            "cells": len(cells),
            **{
                direction: sum(row["direction"] == direction for row in cells) for direction in ("up", "tie", "down", "missing")
            },
            "mean": _mean(known),
            "largest_gain": _extreme([row for row in known if row["points"] > 0], max),
            "largest_drop": _extreme([row for row in known if row["points"] < 0], min),
            "by_shots": {
                str(k): _mean([row for row in known if row["shots"] == k]) for k in {row["shots"]: 0 for row in cells}
            },
            "by_size": {str(n): _mean([row for row in known if row["size"] == n]) for n in {row["size"]: 0 for row in cells}},
        }
    return {"beta": pair.run.kl_beta, "reference": pair.reference.kl_beta, "by_label": by_label}


def _mean(rows: Sequence[Mapping[str, Any]]) -> float | None:
    return float(np.mean([row["points"] for row in rows])) if rows else None


def _extreme(rows: Sequence[Mapping[str, Any]], choose: Any) -> dict[str, Any] | None:
    if not rows:
        return None
    row = choose(rows, key=lambda row: row["points"])
    return {name: row[name] for name in ("points", "size", "shots")}


def _epochs_compared(run: RunResult) -> list[dict[str, Any]]:
    """Every two epochs of a run: how many cells both have, in how many they are equal, and what is known of their picks."""
    rows = []
    for first, second in itertools.combinations(run.epochs, 2):
        cells = first.accuracy.keys() & second.accuracy.keys()
        names = (f"epoch {first.epoch}", f"epoch {second.epoch}")
        picks = [row for row in run.overlap if (row["first"], row["second"]) == names]
        rows.append(
            {
                "kl_beta": run.kl_beta,
                "epochs": [first.epoch, second.epoch],
                "cells": len(cells),
                "equal": sum(first.accuracy[cell] == second.accuracy[cell] for cell in cells),
                "largest": max((abs(second.accuracy[cell] - first.accuracy[cell]) for cell in cells), default=None),
                "overlap": {str(row["shots"]): row["ordered"] for row in picks},
                "reason": max(picks, key=lambda row: int(row["shots"])).get("reason") if picks else None,
            }
        )
    return rows


def _overlap_of_best(pair: _Pair, records: Mapping[float, Records]) -> list[dict[str, Any]]:
    """How far the best epochs pick the same, on all report questions that both answered."""
    if any(run.best_epoch is None or run.kl_beta not in records for run in pair):
        return []
    first, second = (records[run.kl_beta].shown(f"epoch {run.best_epoch}") for run in pair)
    merged = first.merge(second, on=["question_id", "shots"], suffixes=("_first", "_second"))
    digests = {run.best_digest for run in pair}
    rows = []
    for shots in sorted(set(merged.shots.tolist())):
        of_shots = merged[merged.shots == shots]
        picks = [np.stack(of_shots[column].tolist()) for column in ("picks_first", "picks_second")]
        (overlap,) = overlaps(dict(zip((f"{run.kl_beta:g}" for run in pair), picks, strict=True)), [shots])
        row: dict[str, Any] = overlap._asdict()
        if overlap.ordered == 1.0:
            row["reason"] = {"rule": "equal_weights" if len(digests) == 1 else "too_close"}
        rows.append(row)
    return rows


def _against_baselines(
    runs: Sequence[RunResult], records: Mapping[float, Records], sizes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Each best epoch against each baseline: means over shots, paired at the largest size; without records, no tests."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.best_epoch is None or run.kl_beta not in records or not sizes:
            continue
        best = records[run.kl_beta].mean_of(f"epoch {run.best_epoch}", sizes[-1])
        for name in run.baselines:
            baseline = records[run.kl_beta].mean_of(name, sizes[-1])
            paired_Q = _paired(best, baseline)
            if paired_Q is None or best is None or baseline is None:
                continue
            points = float(100.0 * paired_Q.mean())
            rows.append(
                {
                    "beta": run.kl_beta,
                    "baseline": name,
                    "size": sizes[-1],
                    "accuracies": [100.0 * float(best.mean()), 100.0 * float(baseline.mean())],
                    "points": points,
                    "direction": "tie" if abs(points) <= TIE + 1e-9 else "up" if points > 0 else "down",
                    "paired_Q": paired_Q,
                    "deviation": float(100.0 * paired_Q.std(ddof=1)) if sizes[-1] > 1 else 0.0,
                }
            )
    _test(rows, seed)
    for row in rows:
        row.pop("paired_Q")
    return rows


def _ranking(
    runs: Sequence[RunResult], records: Mapping[float, Records], sizes: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """Best epochs, or the last ones evaluated where none is chosen: by accuracy on the selection questions where all have one,
    else by the mean of the largest size.
    """
    rows: list[dict[str, Any]] = []
    means: dict[int, np.ndarray] = {}
    for run in runs:
        evaluated = [epoch.epoch for epoch in run.epochs if epoch.accuracy]
        number = run.best_epoch or (evaluated or [run.epochs[-1].epoch])[-1]
        cells = [value for (size, _), value in _accuracies(run, number).items() if size == sizes[-1]]
        mean_Q = records[run.kl_beta].mean_of(f"epoch {number}", sizes[-1]) if run.kl_beta in records else None
        if mean_Q is not None:
            means[len(rows)] = mean_Q.to_numpy()
        (epoch,) = [epoch for epoch in run.epochs if epoch.epoch == number]
        rows.append(
            {
                "beta": run.kl_beta,
                "epoch": number,
                "selection": run.selection.get(number),
                "accuracy": float(np.mean(cells)) if cells else None,
                "interval": None,
                "kl": epoch.metrics.get("kl"),
                "size": sizes[-1] if sizes else None,
                "registered": run.registered and dict(run.registered),
            }
        )
    for place, means_R in zip(means, resampled_means(list(means.values()), seed), strict=True):
        rows[place]["interval"] = [100.0 * end for end in interval(means_R, 1.0 - LEVEL)]
    key = "selection" if all(row["selection"] is not None for row in rows) else "accuracy"
    return sorted(rows, key=lambda row: -1.0 if row[key] is None else row[key], reverse=True)


def _missing(runs: Sequence[RunResult], sizes: Sequence[int], shots: Sequence[int], project: str) -> list[dict[str, Any]]:
    """Cells and curves that a report has a place for and nothing to put there, with the command that would fill them."""
    rows = []
    grid = f"-P sizes={','.join(map(str, sizes))} -P shots={','.join(map(str, shots))}"
    for run in runs:
        evaluate = f"{project} -e evaluate -P kl_beta={run.kl_beta:g} {grid}"
        for epoch in run.epochs:
            cells = [f"{n}/{k}" for n in sizes for k in shots if (n, k) not in epoch.accuracy]
            if cells:
                rows.append({"beta": run.kl_beta, "epoch": epoch.epoch, "what": cells, "command": evaluate})
            curves = [name for name in CURVES if _metric(run, epoch, name) is None]
            if curves:
                train = f"{project} -e grpo -P kl_beta={run.kl_beta:g}"
                rows.append({"beta": run.kl_beta, "epoch": epoch.epoch, "what": curves, "command": train})
    return rows


def _examples(pair: _Pair, records: Mapping[float, Records], shots: int, questions: Mapping[int, str]) -> list[dict[str, Any]]:
    """Questions on which the best epochs differ most, of those with a text: first what the beta wins, then what it loses."""
    if any(run.best_epoch is None or run.kl_beta not in records for run in pair):
        return []
    first, second = (records[run.kl_beta].shown(f"epoch {run.best_epoch}") for run in pair)
    merged = first.merge(second, on=["question_id", "shots"], suffixes=("_first", "_second"))
    merged = merged[(merged.shots == shots) & merged.question_id.isin(questions)]
    merged = merged.assign(points=100.0 * (merged.accuracy_first - merged.accuracy_second))
    merged = merged[merged.points != 0.0].sort_values(["points", "question_id"], ascending=[False, True])
    won, lost = merged[merged.points > 0].head(_EXAMPLES), merged[merged.points < 0].tail(_EXAMPLES)
    return [
        {
            "question_id": row["question_id"],
            "question": questions[row["question_id"]],
            "shots": shots,
            "points": row["points"],
            "answers": [row["answer_first"], row["answer_second"]],
            "picks": [[int(i) for i in row[name]] for name in ("picks_first", "picks_second")],
        }
        for row in pd.concat([won, lost]).to_dict("records")
    ]


def _accuracies(run: RunResult, epoch: int | str | None) -> Accuracies:
    return next((found.accuracy for found in run.epochs if found.epoch == epoch), {})
