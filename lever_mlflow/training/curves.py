"""Draws the metrics of a training run by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["training_curves"]

_PANELS = {
    "training loss": ("train/loss",),
    "policy loss": ("train/ppo_loss",),
    "validation loss": ("val/loss",),
    "reward on validation queries": ("val/expected_reward",),
    "KL from the reference policy": ("train/kl", "train/kl_exact", "val/kl_exact"),
    "share": ("val/picks_changed", "train/frac_reward_zero_std", "train/clip_ratio_low", "train/clip_ratio_high"),
    "gradient norm": ("train/grad_norm",),
    "entropy, nats": ("train/entropy",),
}
_LEGEND, _LINE_OF_LEGEND = 0.06, 0.08  # shares of a panel's height above the lines: of the legend's frame, and of a line in it


def training_curves(history: Sequence[dict[str, float]], title: str, marked: Sequence[int]) -> Figure:
    """Draws a panel for each kind of metric that the run has, with a line at each marked epoch.

    Args:
        history: the metrics of each epoch; there is at least one epoch.
        title: what was trained, and what the lines mark.
        marked: numbers of epochs, from 1.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = range(1, len(history) + 1)
    panels = {name: [key for key in keys if key in history[0]] for name, keys in _PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if keys}
    columns = 3 if len(panels) > 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, (name, keys) in zip(axes, panels.items(), strict=False):
        for key in keys:
            panel.plot(epochs, [metrics[key] for metrics in history], marker="o", label=key)
        for epoch in marked:
            panel.axvline(epoch, color="#d0d7de", zorder=0)
        panel.set_title(name)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        low, high = panel.get_ylim()
        share = _LEGEND + _LINE_OF_LEGEND * len(keys)
        panel.set_ylim(low, high + (high - low) * share / (1 - share))
        panel.legend(fontsize=8, loc="upper left")
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    for panel in axes[max(0, len(panels) - columns) : len(panels)]:
        panel.set_xlabel("epoch")
    figure.suptitle(title)
    return figure
