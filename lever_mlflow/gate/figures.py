"""Draws the figures of the gate's page."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from lever_mlflow.gate.result import GateResult, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["description", "figures_png"]

_MOST_LABELS = 15  # bars that can carry a number each
_DATA, _REFERENCE, _POSITIVE, _REST = "#0969da", "#bc4c00", "#1a7f37", "#d0d7de"


def figures_png(result: GateResult) -> bytes:
    """Returns a PNG of four panels: rewards, positive trials per query, rewards by generation method, queries that teach."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels: list[Callable[[Axes, GateResult], None]] = [_draw_rewards, _draw_positives, _draw_methods, _draw_spread]
    for axes, draw in zip(figure.subplots(2, 2).flat, panels, strict=True):
        draw(axes, result)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def description(result: GateResult) -> str:
    """Returns the first two panels in words, for readers who do not see them."""
    rewards = ", ".join(f"{low:.2g} to {high:.2g}: {100 * share:.1f} %" for low, high, share in result.histogram if share)
    positives = ", ".join(f"{k}: {n} queries" for k, n in result.positives_per_query)
    return f"Rewards of the trials: {rewards or 'none'}. Positive trials per query: {positives or 'none'}."


def _draw_rewards(axes: Axes, result: GateResult) -> None:
    axes.set_title(f"Rewards of all trials ({result.reward_mode})")
    axes.set_ylabel("share of trials, %")
    for histogram, colour, label in (
        (result.histogram, _DATA, "these data"),
        (result.reference_histogram, _REFERENCE, "reference"),
    ):
        if histogram:
            edges = [low for low, _, _ in histogram] + [histogram[-1][1]]
            axes.stairs([100 * share for _, _, share in histogram], edges, fill=True, alpha=0.6, color=colour, label=label)
    if result.reference_histogram:
        axes.legend()


def _draw_positives(axes: Axes, result: GateResult) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Positive trials per query")
    axes.set_xlabel("trials with a right answer")
    axes.set_ylabel("queries")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bars = axes.bar([k for k, _ in result.positives_per_query], [n for _, n in result.positives_per_query], color=_POSITIVE)
    if len(result.positives_per_query) <= _MOST_LABELS:
        axes.bar_label(bars, fontsize=9)


def _draw_methods(axes: Axes, result: GateResult) -> None:
    axes.set_title("Mean reward by generation method")
    methods = [method for method in result.methods if method.reward_mean is not None]
    bars = axes.bar([m.name for m in methods], [m.reward_mean or 0.0 for m in methods], color=_DATA)
    axes.bar_label(bars, [f"{m.reward_mean:.3g}\n{100 * m.share:.0f} % of trials" for m in methods], padding=2, fontsize=9)
    if result.histogram:
        # the whole range of rewards, so that small ones look small
        axes.set_ylim(min(0.0, 1.25 * result.histogram[0][0]), 1.25 * result.histogram[-1][1])


def _draw_spread(axes: Axes, result: GateResult) -> None:
    axes.set_title("Queries whose trials differ in reward: only these teach")
    flat = 100 * result.metrics.get(metric_name("frac_reward_zero_std"), 0.0)
    axes.barh([""], [100 - flat], color=_POSITIVE, label=f"differ: {100 - flat:.1f} %")
    axes.barh([""], [flat], left=[100 - flat], color=_REST, label=f"all equal: {flat:.1f} %")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of queries, %")
    axes.set_ylim(-0.8, 1.2)
    axes.legend(loc="upper center", ncols=2, frameon=False)
