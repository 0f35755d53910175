"""Lays out plain-text tables for a terminal: two spaces between columns, cells aligned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from tabulate import tabulate

from lever_mlflow.files.control_characters import without_controls

__all__ = ["Align", "aligned"]

Align = Literal["left", "right"]


def aligned(rows: Iterable[Sequence[str]], head: Sequence[str] = (), align: Sequence[Align] = ()) -> str:
    """Returns the rows as lines of aligned columns, without spaces at the end of a line and without a last line break.

    Args:
        rows: the cells, which are printed as they are: ``0.10`` stays ``0.10``. Control characters and line breaks are shown as
            their escapes, so that a cell takes one line.
        head: names of the columns, each underlined with dashes. Without it, the rows stand alone.
        align: alignment of the first columns, one after the other; columns that it does not reach are aligned left.
    """
    # The head goes in as the first row, because tabulate would widen the columns of a head of its own by two.
    lines = [list(head), ["-" * len(name) for name in head], *rows] if head else list(rows)
    lines = [[without_controls(cell).replace("\n", r"\n") for cell in line] for line in lines]
    table = tabulate(lines, tablefmt="plain", colalign=tuple(align) or None, disable_numparse=True)
    return "\n".join(line.rstrip() for line in table.splitlines())
