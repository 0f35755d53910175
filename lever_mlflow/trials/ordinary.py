"""Reads the trials of an ordinary query of RL data at once, so that only others are looked at one by one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from lever_mlflow.trials.columns import TrialValues
from lever_mlflow.trials.fields import LARGEST_INDEX

__all__ = ["EVAL_MODES", "UNKNOWN_METHOD", "ordinary_trials"]

EVAL_MODES = ("vqaEval", "fallback", "error")
UNKNOWN_METHOD = "unknown"  # gen_method of trials that name none
_DEFAULTS = {
    "pointer": None,
    "pointer_global": None,
    "gen_method": None,
    "vqa_eval_mode": EVAL_MODES[0],
    "eval_failed": False,
    "vqa_correct": None,
    "vqa_acc_score": None,
    "vqa_gt_prob": None,
    "vqa_rel_score": None,
}
_fields = itemgetter(*_DEFAULTS)


def ordinary_trials(records: Sequence[Mapping[str, Any]], pool: Any) -> TrialValues | None:
    """Returns the trials of a query with a pool, or None where anything about them is out of the ordinary.

    Ordinary trials have a pointer inside the pool whose items ``pointer_global`` names, were scored without a failure, name
    their generator and have finite scores. All others are left to the reader, which drops, converts or refuses them.

    Args:
        records: the trials as they stand in the file.
        pool: what stands in the file as the pool.
    """
    if not (records and _are_indices(pool)) or any("pointer_pos" in record for record in records):
        return None
    try:
        rows = list(map(_fields, records))
    except KeyError:
        rows = [_fields({**_DEFAULTS, **record}) for record in records]
    pointers, named, methods, modes, failed, *scores = zip(*rows, strict=True)
    scored = modes.count(EVAL_MODES[0]) == len(modes) and _are(failed, bool) and not any(failed)
    if not (scored and _are(methods, str) and all(methods) and _name_items(pointers, named, pool)):
        return None
    if None in scores[0] or None in scores[1]:
        return None
    correct, accuracy, gt_prob, rel_score = map(_numbers, scores)
    if correct is None or accuracy is None or gt_prob is None or rel_score is None:
        return None
    return TrialValues(pointers, correct, accuracy, methods, modes, failed, gt_prob, rel_score)


def _are(values: Collection[Any], *types: type) -> bool:
    return set(map(type, values)).issubset(types)


def _are_indices(pool: Any) -> bool:
    if type(pool) is not list or not _are(pool, int):
        return False
    return not pool or (min(pool) >= 0 and max(pool) <= LARGEST_INDEX)


def _name_items(pointers: Sequence[Any], named: Sequence[Any], pool: Sequence[int]) -> bool:
    """Returns whether all pointers are positions in the pool, and ``named`` holds the items at these positions."""
    if not (_are(pointers, list) and _are(named, list) and all(pointers)):
        return False
    positions, items = list(chain.from_iterable(pointers)), list(chain.from_iterable(named))
    if not (_are(positions, int) and _are(items, int)) or list(map(len, pointers)) != list(map(len, named)):
        return False
    inside = min(positions) >= 0 and max(positions) < len(pool)
    return inside and list(map(pool.__getitem__, positions)) == items


def _numbers(values: Sequence[Any]) -> Sequence[float] | None:
    """Returns scores as floats, NaN where one is null; None where one is of another type, or not finite."""
    if values.count(None) == len(values):
        return [math.nan] * len(values)
    known = values if None not in values else [value for value in values if value is not None]
    try:
        numbers = list(map(float, known)) if _are(known, int, float) else [math.inf]
    except OverflowError:
        return None
    if not math.isfinite(sum(numbers)):  # finite scores of which the sum is too large for a float are no ordinary ones either
        return None
    return numbers if known is values else [math.nan if value is None else float(value) for value in values]
