"""Compares what policies picked and how the VLM answered: epochs of a run with each other, and best epochs of two runs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lever_mlflow.comparison.differences import Pair, Records
from lever_mlflow.comparison.facts import EpochPair, Example, ExampleSide, ShownItem
from lever_mlflow.comparison.results import EpochResult, RunResult
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.overlap import IdenticalPicks, PickOverlap, overlaps
from lever_mlflow.evaluation.policies import epoch_policy

__all__ = ["Items", "best_overlaps", "epoch_pairs", "examples"]

_EXAMPLES = 5  # questions lost, and as many won


class Items(NamedTuple):
    """Holds items of a data set by question id: those that are asked, and those that are demonstrations."""

    queries: Mapping[int, Sample]
    demonstrations: Mapping[int, Sample]


def epoch_pairs(run: RunResult) -> list[EpochPair]:
    """Compares every two evaluated epochs of a run: accuracies in the cells that both have, and their picks where known."""
    return [_epoch_pair(run, first, second) for first, second in itertools.combinations(run.evaluated, 2)]


def _epoch_pair(run: RunResult, first: EpochResult, second: EpochResult) -> EpochPair:
    policies = (epoch_policy(first.epoch), epoch_policy(second.epoch))
    picks = [row for row in run.overlap if (row.first, row.second) == policies]
    accuracies = [(value, second.cells[cell]) for cell, value in first.cells.items() if cell in second.cells]
    return EpochPair(
        run=run.label,
        epochs=(first.epoch, second.epoch),
        cells=len(accuracies),
        equal=sum(one == other for one, other in accuracies),
        largest=max((abs(other - one) for one, other in accuracies), default=None),
        overlap={row.shots: row.ordered for row in picks},
        reason=max(picks, key=lambda row: row.shots).reason if picks else None,
    )


def best_overlaps(pair: Pair, records: Records) -> list[PickOverlap]:
    """Returns how far two best epochs pick the same on all report questions that both answered, by shot count."""
    both = _best_picks(pair, records)
    same_weights = pair.run.best_digest == pair.reference.best_digest
    reason = IdenticalPicks(rule="equal_weights" if same_weights else "too_close")
    labels = [run.label for run in pair]
    rows = []
    for shots in sorted(set(both["shots"].tolist())):
        of_shots = both[both["shots"] == shots]
        picks = [np.stack(of_shots[column].tolist()) for column in ("picks_run", "picks_reference")]
        (overlap,) = overlaps(dict(zip(labels, picks, strict=True)), [shots])
        rows.append(overlap.model_copy(update={"reason": reason}) if overlap.ordered == 1.0 else overlap)
    return rows


def examples(pair: Pair, records: Records, shots: int, items: Items) -> list[Example]:
    """Returns the questions on which two best epochs differ most: first those that the run wins, then those that it loses.

    Only questions that are among the items become examples.
    """
    both = _best_picks(pair, records)
    both = both[(both["shots"] == shots) & both["question_id"].isin(items.queries)]
    both = both.assign(points=100.0 * (both["accuracy_run"] - both["accuracy_reference"]))
    both = both[both["points"] != 0.0].sort_values(["points", "question_id"], ascending=[False, True])
    won, lost = both[both["points"] > 0].head(_EXAMPLES), both[both["points"] < 0].tail(_EXAMPLES)
    return [
        Example(
            query=_shown(row["question_id"], items.queries),
            shots=shots,
            points=row["points"],
            sides=(
                _side(pair.run.label, row, "run", items.demonstrations),
                _side(pair.reference.label, row, "reference", items.demonstrations),
            ),
        )
        for row in pd.concat([won, lost]).to_dict("records")
    ]


def _side(label: str, row: Mapping[Any, Any], name: str, demonstrations: Mapping[int, Sample]) -> ExampleSide:
    return ExampleSide(
        run=label,
        answer=row[f"answer_{name}"],
        accuracy=100.0 * row[f"accuracy_{name}"],
        demonstrations=tuple(_shown(int(number), demonstrations) for number in row[f"picks_{name}"]),
    )


def _shown(question_id: int, items: Mapping[int, Sample]) -> ShownItem:
    """Returns what is shown of an item; its id alone where it is not among the items."""
    sample = items.get(question_id)
    if sample is None:
        return ShownItem(question_id=question_id)
    return ShownItem(question_id=question_id, question=sample.question, answers=dict(Counter(sample.answers).most_common()))


def _best_picks(pair: Pair, records: Records) -> pd.DataFrame:
    """Returns picks and answers of two best epochs side by side, by question and shot count; no row where any is unknown."""
    sides = [
        records[run.label].picks_and_answers(epoch_policy(run.best_epoch))
        for run in pair
        if run.best_epoch is not None and run.label in records and pair.same_questions
    ]
    if len(sides) < len(pair):
        return pd.DataFrame(columns=["question_id", "shots", "accuracy_run", "accuracy_reference"])
    return sides[0].merge(sides[1], on=["question_id", "shots"], suffixes=("_run", "_reference"))
