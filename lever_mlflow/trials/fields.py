"""Checks the values of single fields of an RL data file, and turns them into Python values.

All functions raise ``DataError`` with the field, its value and what was expected; the caller adds file, query and trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lever_mlflow.exceptions import DataError

__all__ = ["LARGEST_INDEX", "finite_number", "positions_in_pool", "shown", "train_indices", "whole_numbers"]

LARGEST_INDEX = 10**18 - 1  # a train index fits 64 bits


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """Returns a list of whole numbers of up to 18 digits as a tuple; ``true`` and ``1.0`` are no whole numbers."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise DataError(f"{name} is {shown(value)}, expected a list of whole numbers")
    if value and (max(value) > LARGEST_INDEX or min(value) < -LARGEST_INDEX):
        raise DataError(f"{name} is {shown(value)}, which holds a number of more than 18 digits")
    return tuple(value)


def finite_number(name: str, value: Any) -> float:
    """Returns a number as a float; ``true`` and ``false`` are no numbers."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name} is {shown(value)}, expected a finite number")
    return number


def positions_in_pool(record: Mapping[str, Any], pool: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the pointer of a trial as positions in the recorded pool, whose items its train indices must name.

    Positions outside the pool are let through, because the data gate reports them.
    """
    positions, items = _pointer("pointer", record), "pointer_global"
    if _holds_items_and_positions(record):
        positions, items = _pointer("pointer_pos", record), "pointer"
    named = whole_numbers(items, record.get(items))
    inside = all(0 <= position < len(pool) for position in positions)
    if inside and named != tuple([pool[position] for position in positions]):
        raise DataError(f"{items} {list(named)} does not match pointer {list(positions)} in the pool")
    return positions


def train_indices(record: Mapping[str, Any], name: str, items: dict[int, int]) -> tuple[int, ...]:
    """Returns the pointer of a trial without a recorded pool as train indices.

    Args:
        record: the trial.
        name: the field that holds train indices, ``pointer`` or ``pointer_pos``.
        items: the train index at each position of the unknown pool, as the query's trials before have told them. Where
            ``pointer`` holds train indices and ``pointer_pos`` positions, both must go together; new positions are added.
    """
    if "pointer_global" in record:
        raise DataError("has pointer_global, but the query has no candidate_pool_ids; add the pool")
    indices = _pointer(name, record)
    if name == "pointer" and _holds_items_and_positions(record):
        positions = _pointer("pointer_pos", record)
        known = tuple(map(items.setdefault, positions, indices))
        if len(positions) != len(indices) or known != indices or len(set(items.values())) != len(items):
            raise DataError(
                f"pointer {list(indices)} and pointer_pos {list(positions)} do not name the same items of one pool; "
                "keep the one that holds train indices"
            )
    return indices


def _pointer(name: str, record: Mapping[str, Any]) -> tuple[int, ...]:
    pointer = whole_numbers(name, record.get(name))
    if not pointer:
        raise DataError(f"{name} is empty; take the trial out, or record it again")
    return pointer


def _holds_items_and_positions(record: Mapping[str, Any]) -> bool:
    """Returns whether a trial holds its pointer as train indices and as positions, which Lever-Plus v4 wrote."""
    return "pointer_pos" in record and record.get("pointer", record["pointer_pos"]) != record["pointer_pos"]


def shown(value: Any) -> str:
    """Returns the start of a value's JSON for a message; Python refuses to write whole numbers of thousands of digits."""
    try:
        return json.dumps(value)[:80]
    except ValueError:
        return "too long a number"
