"""Checks the values of single fields of an RL data file, and turns them into Python values.

All functions raise ``DataError`` with the field, its value and what was expected; the caller adds file, query and trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lever_mlflow.exceptions import DataError

__all__ = ["check_old_names", "check_pointer_global", "finite_number", "shown", "whole_numbers"]

_LARGEST_INDEX = 10**18 - 1  # a train index fits 64 bits


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """Returns a list of whole numbers of up to 18 digits as a tuple; ``true`` and ``1.0`` are no whole numbers."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise DataError(f"{name} is {shown(value)}, expected a list of whole numbers")
    if value and (max(value) > _LARGEST_INDEX or min(value) < -_LARGEST_INDEX):
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


def check_pointer_global(pool: tuple[int, ...], pointer: tuple[int, ...], record: Mapping[str, Any]) -> None:
    """Checks that ``pointer_global`` names the pool's items at ``pointer``.

    Positions outside the pool are let through, because the data gate reports them.
    """
    named = whole_numbers("pointer_global", record.get("pointer_global"))
    inside = all(0 <= position < len(pool) for position in pointer)
    if inside and named != tuple([pool[position] for position in pointer]):
        raise DataError(f"pointer_global {list(named)} does not match pointer {list(pointer)} in the pool")


def check_old_names(record: Mapping[str, Any]) -> None:
    """Checks that the pointer of a trial without a pool holds train indices; some fields would mean that it holds positions."""
    if "pointer_global" in record:
        raise DataError("has pointer_global, but the query has no candidate_pool_ids; add the pool")
    if "pointer_pos" in record and record.get("pointer", record["pointer_pos"]) != record["pointer_pos"]:
        raise DataError("pointer and pointer_pos differ; keep the one that holds train indices")


def shown(value: Any) -> str:
    """Returns the start of a value's JSON for a message; Python refuses to write whole numbers of thousands of digits."""
    try:
        return json.dumps(value)[:80]
    except ValueError:
        return "too long a number"
