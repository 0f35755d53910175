"""Lays out plain-text tables for a terminal: two spaces between columns, cells aligned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from tabulate import SEPARATING_LINE, tabulate

__all__ = ["Align", "aligned"]

Align = Literal["left", "right"]


def aligned(rows: Iterable[Sequence[str]], head: Sequence[str] = (), align: Sequence[Align] = ()) -> str:
    """Returns the rows as lines of aligned columns, without spaces at the end of a line and without a last line break.

    Args:
        rows: the cells, which are printed as they are: ``0.10`` stays ``0.10``.
        head: names of the columns, set off from the rows by a line of dashes. Without it, the rows stand alone.
        align: alignment of the first columns, one after the other; columns that it does not reach are aligned left.
    """
    # A head passed to tabulate as such would widen its columns by two, so it goes in as the first row.
    lines = tabulate(
        [head, SEPARATING_LINE, *rows] if head else list(rows),
        tablefmt="simple" if head else "plain",
        colalign=tuple(align) or None,
        disable_numparse=True,
    ).splitlines()
    if head:
        lines = lines[1:-1]  # the format "simple" draws a line above and one below
    return "\n".join(line.rstrip() for line in lines)
