"""Defines the option types of the command line: each turns what a user typed into a value, or fails with a clear message."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import click

from lever_mlflow.settings import AUTO, NONE, Option

__all__ = ["Names", "Number", "NumberList", "OrAuto", "Pairs", "Splits", "Text", "YesNo"]

_LARGEST = 1e6  # float32 can still multiply numbers below this without becoming infinite
_EXACT = 2**53  # float64 holds every whole number below this
Param: TypeAlias = click.Parameter | None
Context: TypeAlias = click.Context | None


class Number(click.ParamType):
    """Converts text to a number within the bounds of an ``Option``; a number with a fraction is also below a million.

    A whole number may be written as ``100``, ``100.0`` or ``1e2``, as the tools that write commands do.
    """

    name = "number"

    def __init__(self, kind: type[int] | type[float], bounds: Option) -> None:
        self.kind, self.at_least, self.above = kind, bounds.at_least, bounds.above
        self.below = bounds.below if bounds.below is not None else (math.inf if kind is int else _LARGEST)

    def convert(self, value: Any, param: Param, ctx: Context) -> float:
        """Returns ``value`` as a number; fails where it is none, or is out of bounds."""
        expected = "a whole number" if self.kind is int else "a number"
        try:
            number = _whole(value) if self.kind is int else float(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not {expected}", param, ctx)
        if not self._within(number):
            self.fail(f"{value!r} is not {expected} {self._bounds()}", param, ctx)
        return number

    def _within(self, number: float) -> bool:
        """Returns whether all bounds hold; none does for NaN."""
        lower = number > self.above if self.above is not None else self.at_least is None or number >= self.at_least
        return lower and number < self.below

    def _bounds(self) -> str:
        """Returns the bounds in words, such as ``above 0 and below 1``."""
        bounds = [f"above {self.above:g}"] if self.above is not None else []
        bounds += [f"of at least {self.at_least:g}"] if self.at_least is not None else []
        bounds += [f"below {self.below:g}"] if self.below < math.inf else []
        return " and ".join(bounds)


def _whole(value: Any) -> int:
    """Returns a whole number, however it is written; raises ValueError where the value is none, or not written exactly."""
    try:
        return int(value)
    except ValueError:
        number = float(value)
        if not (number.is_integer() and abs(number) < _EXACT):
            raise
        return int(number)


class NumberList(click.ParamType):
    """Converts numbers separated by commas to a tuple of different numbers, sorted where the ``Option`` says so."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], bounds: Option) -> None:
        self.item, self.least, self.ascending = Number(kind, bounds), bounds.least_items, bounds.ascending

    def convert(self, value: Any, param: Param, ctx: Context) -> tuple[float, ...]:
        """Returns ``value`` as a tuple; fails with the number that is wrong, occurs twice or is missing."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(self.item.convert(part.strip(), param, ctx) for part in str(value).split(","))
        if len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} names a number twice", param, ctx)
        if len(numbers) < self.least:
            self.fail(f"{value!r}: at least {self.least} numbers are needed", param, ctx)
        return tuple(sorted(numbers)) if self.ascending else numbers


class Pairs(click.ParamType):
    """Converts ``none``, or ``name=value`` pairs separated by commas, to a mapping; its user checks the names.

    Values are converted by ``item`` where there is one, and stay text otherwise.
    """

    name = "pairs"

    def __init__(self, example: str, item: click.ParamType | None = None) -> None:
        self.example, self.item = example, item

    def convert(self, value: Any, param: Param, ctx: Context) -> dict[str, Any]:
        """Returns ``value`` as a mapping; fails with the pair that is wrong."""
        if isinstance(value, dict):
            return value
        if value == NONE:
            return {}
        pairs: dict[str, Any] = {}
        for part in value.split(","):
            name, equals, item = (text.strip() for text in part.partition("="))
            if not (name and equals and item):
                self.fail(f"{part!r} is not name=value; give for example {self.example}", param, ctx)
            if name in pairs:
                self.fail(f"{value!r} names {name} twice", param, ctx)
            pairs[name] = self.item.convert(item, param, ctx) if self.item else item
        return pairs


class Names(click.ParamType):
    """Converts ``none``, or names separated by commas, to a tuple of different names; its user checks them."""

    name = "names"

    def convert(self, value: Any, param: Param, ctx: Context) -> tuple[str, ...]:
        """Returns ``value`` as a tuple; fails where a name is empty or occurs twice."""
        if isinstance(value, tuple):
            return value
        names = () if value == NONE else tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} holds an empty name; give names separated by commas, or none", param, ctx)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names the same twice", param, ctx)
        return names


class Splits(click.ParamType):
    """Converts the names of two splits separated by a comma to a tuple."""

    name = "splits"

    def convert(self, value: Any, param: Param, ctx: Context) -> tuple[str, ...]:
        """Returns ``value`` as a tuple of two names; fails where it is not."""
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if len(names) != 2 or not all(names):
            self.fail(f"{value!r} is not two names, such as train,validation", param, ctx)
        return names


class YesNo(click.types.BoolParamType):
    """Converts text to a boolean; empty text is an error."""

    def convert(self, value: Any, param: Param, ctx: Context) -> bool:
        """Returns ``value`` as a boolean; fails where there is none."""
        if value == "":
            self.fail("'' is neither true nor false", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.types.StringParamType):
    """Takes text that is not empty."""

    def convert(self, value: Any, param: Param, ctx: Context) -> Any:
        """Returns ``value`` as it is; fails where it is empty."""
        if not str(value).strip():
            self.fail("nothing is given; leave the option out for its default", param, ctx)
        return super().convert(value, param, ctx)


class OrAuto(click.ParamType):
    """Takes ``auto``, or what another type takes."""

    def __init__(self, kind: click.ParamType) -> None:
        self.kind, self.name = kind, kind.name

    def convert(self, value: Any, param: Param, ctx: Context) -> Any:
        """Returns ``auto`` as it is, and anything else as the other type converts it."""
        return AUTO if value == AUTO else self.kind.convert(value, param, ctx)
