"""Shows how far long work has come: a bar on a terminal, and elsewhere a line of the log every half a minute.

The lines are log records that carry their numbers. In this way the packages that know MLflow can record the numbers as well
(``lever_mlflow.runs.progress``), and the package that does the work need not know of it.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Any, NamedTuple

from tqdm import tqdm

__all__ = ["REACHED", "Progress", "Reached", "duration", "log"]

REACHED = "reached"  # attribute of the log records, which holds a ``Reached``
_EVERY = 30.0  # seconds between two records
_AT_ONCE = 2.0  # seconds above 0; shorter work gets no bar

log = logging.getLogger(__name__)


class Reached(NamedTuple):
    """Holds what a log record says of long work: ``done`` of ``total`` items, which ``unit`` names in the plural."""

    unit: str
    done: int
    total: int


class Progress:
    """Follows work on a number of items, from the beginning of a ``with`` block to its end.

    Args:
        description: what is going on, such as ``rollout``.
        total: the number of items.
        unit: what the items are, in the plural, such as ``answers``.
        done: the number of items that an earlier process has done already.
        note: further words for the bar.
        hidden: shows nothing, as in all processes of a training but the leading one.
    """

    def __init__(self, description: str, total: int, unit: str, *, done: int = 0, note: str = "", hidden: bool = False) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self._hidden, self._first, self._begun = hidden, done, time.monotonic()
        self._last_record, self._recorded = self._begun, False
        self._bar = _Bar(
            desc=description,
            total=total,
            initial=done,
            unit=f" {unit}",
            postfix=note or None,
            leave=False,  # the line at the end of the step says what it came to
            delay=_AT_ONCE,
            disable=True if hidden else None,  # None: shown on a terminal only
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def update(self, count: int = 1) -> None:
        """Counts further items as done."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        at_the_end = self._recorded and count > 0 and self.done == self.total
        if not self._hidden and (at_the_end or now - self._last_record >= _EVERY):
            self._last_record, self._recorded = now, True
            log.info("%s", self._line(now - self._begun), extra={REACHED: Reached(self.unit, self.done, self.total)})

    def _line(self, seconds: float) -> str:
        """Returns how far the work is, at which rate it goes on, and how long the rest takes at that rate."""
        rate = (self.done - self._first) / seconds
        left = duration((self.total - self.done) / rate)
        share = f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})".replace("%", " %")
        return f"{self.description}: {share}, {rate:.3g} per second, {left} left"


class _Bar(tqdm):
    """Is a bar that a line of the log does not bring forward before its delay is over."""

    def refresh(self, *arguments: Any, **keywords: Any) -> None:
        """Draws the bar anew, unless it is too early for it."""
        earliest = self.start_t + _AT_ONCE
        if time.time() >= earliest:
            self.last_print_t = max(self.last_print_t, earliest)  # otherwise the end would take the bar for one never drawn
            super().refresh(*arguments, **keywords)


def duration(seconds: float) -> str:
    """Returns a time in words, such as ``0.4 s``, ``17 s``, ``4 min 12 s`` or ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
