"""Writes accuracies, and differences between them, as text: the one rounding that tables, reports and registry share."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

__all__ = ["decimals", "interval_text"]


def decimals(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """Rounds half up to so many decimals; never writes a negative zero.

    The mean of 40, 400 or 800 accuracies often ends in exactly half a hundredth of a percent. A float holds it as a little more
    or a little less: 69.975 may be 69.97499999999999. The value is therefore rounded to nine decimals first.
    """
    rounded = Decimal(f"{value:.9f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded if rounded else abs(rounded):{'+' if signed and rounded else ''}f}"


def interval_text(ends: tuple[float, float], *, signed: bool = True) -> str:
    """Writes the ends of an interval: of a difference in points, or without signs, of an accuracy in percent."""
    return f"[{', '.join(decimals(end, signed=signed) for end in ends)}]"
