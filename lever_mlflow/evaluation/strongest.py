"""Says which baseline is the strongest: the one definition that reports, model cards and promotions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lever_mlflow.evaluation.policies import BASELINES, is_baseline

__all__ = ["Strongest", "strongest"]

_DIGITS = 9  # of an accuracy; below them, equal accuracies may differ by the order in which they were summed up


class Strongest(NamedTuple):
    """Holds the strongest of several baselines and its accuracy at a shot count; None is the mean over shots."""

    policy: str
    shots: int | None
    accuracy: float


def strongest(accuracies: Mapping[tuple[str, int | None], float], shots: int | None) -> Strongest | None:
    """Finds the baseline with the highest accuracy at a shot count; of equal ones, the first in the order of ``BASELINES``.

    A baseline without demonstrations, as zero-shot is, takes part at every shot count with its accuracy at 0.

    Args:
        accuracies: by policy and shot count, all on the same questions; None stands for the mean over shots. Policies that are
            no baselines are passed over.

    Returns:
        None where no baseline has an accuracy.
    """
    known: dict[str, Strongest] = {}
    for policy in dict.fromkeys(policy for policy, _ in accuracies if is_baseline(policy)):
        at = shots if (policy, shots) in accuracies else 0
        if (policy, at) in accuracies:
            known[policy] = Strongest(policy, at, accuracies[policy, at])
    ordered = [*(policy for policy in BASELINES if policy in known), *(policy for policy in known if policy not in BASELINES)]
    return max((known[policy] for policy in ordered), key=lambda item: round(item.accuracy, _DIGITS), default=None)
