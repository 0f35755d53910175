"""The records of an evaluation, a row per policy, draw, shot count and question, and the accuracies that they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

__all__ = ["accuracy_table", "choose_epoch"]


def accuracy_table(records: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """Mean accuracy on the report questions: columns ``policy``, ``size``, ``shots``, ``accuracy`` (in [0, 1]), ``spread``.

    ``spread``: unbiased standard deviation of that mean between the policy's draws, 0 where there is one.
    """
    report = records[records.part == "report"]
    parts = []
    for size in sizes:
        of_draws = report[report.position < size].groupby(["policy", "shots", "draw"], sort=False).accuracy.mean()
        means = of_draws.groupby(["policy", "shots"], sort=False)
        parts.append(
            pd.DataFrame({"accuracy": means.mean(), "spread": means.std().fillna(0.0)}).reset_index().assign(size=size)
        )
    return pd.concat(parts, ignore_index=True)[["policy", "size", "shots", "accuracy", "spread"]]


def choose_epoch(records: pd.DataFrame, epochs: Mapping[int, str]) -> tuple[int, dict[int, float]]:
    """The epoch with the best mean accuracy over shots on the selection questions, the earliest among equals; and all means.

    Args:
        epochs: epoch number -> policy name in ``records``.
    """
    selection = records[records.part == "selection"]
    means = {epoch: float(selection[selection.policy == name].accuracy.mean()) for epoch, name in epochs.items()}
    best = max(means, key=lambda epoch: (round(means[epoch], 12), -epoch))
    return best, means
