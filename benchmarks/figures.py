"""Holds measured values beside their targets, runs the parts of a benchmark that yield them, and prints them as one table."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import click

from lever_mlflow.exceptions import first_line

__all__ = ["Figure", "at_least", "at_most", "chosen_parts", "failed", "figures_or_failure", "print_table"]

FAILED = "failed"
HEAD = "| part | what | value | target | reached |\n|---|---|---|---|---|"


class Figure(NamedTuple):
    """Holds a measured value in words, its target and whether it is reached; a value without a target has none of the two."""

    part: str
    what: str
    value: str
    target: str = ""
    reached: bool | None = None

    def row(self) -> str:
        """Returns the figure as a row of the Markdown table whose head is ``HEAD``."""
        reached = {True: "yes", False: "no", None: ""}[self.reached]
        return f"| {self.part} | {self.what} | {self.value} | {self.target} | {reached} |"


def at_least(part: str, what: str, value: float, target: float, form: str) -> Figure:
    """Returns a figure that must reach a target."""
    return Figure(part, what, format(value, form), f"at least {format(target, form)}", value >= target)


def at_most(part: str, what: str, value: float, target: float, form: str) -> Figure:
    """Returns a figure that must not be above a target."""
    return Figure(part, what, format(value, form), f"at most {format(target, form)}", value <= target)


def chosen_parts(text: str, parts: Iterable[str]) -> list[str]:
    """Returns the names of the parts that an option lists, separated by commas.

    Raises:
        click.BadParameter: there is no such part.
    """
    chosen, known = text.split(","), list(parts)
    if unknown := sorted(set(chosen) - set(known)):
        raise click.BadParameter(f"{', '.join(unknown)}; the parts are {', '.join(known)}", param_hint="--parts")
    return chosen


def figures_or_failure(part: str, measure: Callable[[], Iterable[Figure]]) -> Iterator[Figure]:
    """Yields the figures of a part, and its error as the last one where it fails; the traceback goes to the error stream."""
    try:
        yield from measure()
    except Exception as error:  # a part that fails must not cost the others
        traceback.print_exc()
        yield Figure(part, FAILED, f"{type(error).__name__}: {first_line(error)}", "", False)


def print_table(figures: Iterable[Figure]) -> list[Figure]:
    """Prints each figure as soon as it is there, and returns them all."""
    print(HEAD, flush=True)
    printed = []
    for figure in figures:
        print(figure.row(), flush=True)
        printed.append(figure)
    return printed


def failed(figures: Iterable[Figure]) -> bool:
    """Returns whether a part failed; a target that is missed is no failure."""
    return any(figure.what == FAILED for figure in figures)
