"""The figures of a comparison, in one style that reads in grey: markers and hatches tell series apart, not colours alone."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lever_mlflow.comparison.facts import CURVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

Facts = Mapping[str, Any]
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**", "||", "OO")
_MOST_LINES, _MOST_PANELS, _MOST_ROWS = 12, 8, 48


def figures(facts: Facts) -> dict[str, bytes]:
    """File name -> PNG, of those figures for which there is anything to draw."""
    drawings: dict[str, Callable[[Facts], Figure | None]] = {
        "training_curves.png": _training_curves,
        "accuracy.png": _accuracy,
        "differences.png": _differences,
        "beta_curve.png": _beta_curve,
        "baselines.png": _baselines,
    }
    drawn = {name: draw(facts) for name, draw in drawings.items()}
    return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _training_curves(facts: Facts) -> Figure | None:
    names = [name for name in CURVES if any(_known(curves["values"][name]) for curves in facts["curves"])]
    if not names:
        return None
    figure, panels = _panels(len(names), 3)
    shown = [curves for curves in facts["curves"] if any(_known(curves["values"][name]) for name in names)][:_MOST_LINES]
    for panel, name in zip(panels, names, strict=False):
        for i, curves in enumerate(shown):
            values = [np.nan if value is None else value for value in curves["values"][name]]
            panel.plot(curves["epochs"], values, **_line(i, len(shown)), label=f"β = {curves['kl_beta']:g}")
        panel.set_title(name)
        panel.set_xlabel("epoch")
        panel.set_xticks(sorted({epoch for curves in shown for epoch in curves["epochs"]}))
    panels[0].legend(fontsize=8)
    left = len(facts["curves"]) - len(shown)
    figure.suptitle("Training curves" + (f" ({left} betas without metrics or beyond the first {_MOST_LINES})" if left else ""))
    return figure


def _accuracy(facts: Facts) -> Figure | None:
    sizes, shots = facts["sizes"], facts["shots"]
    runs = [(run, _best(run)) for run in facts["runs"]][:_MOST_PANELS]
    if not sizes or not any(epoch["accuracy"] for _, epoch in runs):
        return None
    grids = [
        np.array([[epoch["accuracy"].get(str(n), {}).get(str(k), np.nan) for k in shots] for n in sizes]) for _, epoch in runs
    ]
    figure, panels = _panels(len(runs), 4, height=3.4)
    low, high = min(np.nanmin(grid) for grid in grids if _some(grid)), max(np.nanmax(grid) for grid in grids if _some(grid))
    for panel, grid, (run, epoch) in zip(panels, grids, runs, strict=False):
        panel.imshow(grid, cmap="Greys", vmin=low - 0.15 * (high - low + 1), vmax=high + 0.6 * (high - low + 1), aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            panel.text(j, i, "missing" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", fontsize=9)
        panel.set_xticks(range(len(shots)), [str(k) for k in shots])
        panel.set_yticks(range(len(sizes)), [str(n) for n in sizes])
        panel.set_xlabel("shots")
        panel.set_ylabel("questions")
        panel.set_title(f"β = {run['kl_beta']:g}, epoch {epoch['epoch']}")
    figure.suptitle("Accuracy, %")
    return figure


def _differences(facts: Facts) -> Figure | None:
    known = [row for row in facts["differences"] if row["points"] is not None]
    several = len({row["beta"] for row in known}) > 1
    wanted = [row for row in known if row["primary"]] if several else [row for row in known if row["label"] == "best"]
    rows = (wanted or known)[:_MOST_ROWS]
    if not rows:
        return None
    left = len(wanted or known) - len(rows)
    figure, (panel,) = _panels(1, 1, width=8.0, height=1.2 + 0.28 * len(rows))
    for i, row in enumerate(rows):
        panel.plot(row["interval_holm"], [i, i], color="0.65", linewidth=1.5, solid_capstyle="butt")
        panel.plot(row["interval"], [i, i], color="0.1", linewidth=3.0, solid_capstyle="butt")
        panel.plot(row["points"], i, marker="D" if row["significant"] else "o", color="white", markeredgecolor="black")
    panel.axvline(0.0, color="0.4", linewidth=1.0, linestyle="--")
    betas = ["" if not several else f"β {row['beta']:g}, " for row in rows]
    labels = [f"{b}{_label(row)}{row['size']} questions, {_shots(row['shots'])}" for b, row in zip(betas, rows, strict=True)]
    panel.set_yticks(range(len(rows)), labels, fontsize=8)
    panel.invert_yaxis()
    beta = "each β" if several else f"β {rows[0]['beta']:g}"
    panel.set_xlabel(f"{beta} minus β {rows[0]['reference']:g}, points")
    more = f" ({left} more are in the tables)" if left else ""
    panel.set_title(f"Differences: 95 % interval (black), corrected (grey); diamond: significant{more}", fontsize=10)
    return figure


def _beta_curve(facts: Facts) -> Figure | None:
    ranking = sorted((row for row in facts["ranking"] if row["accuracy"] is not None), key=lambda row: float(row["beta"]))
    if len(ranking) < 3:
        return None
    figure, (panel, lower) = _panels(2, 2, width=5.0)
    betas = [row["beta"] for row in ranking]
    panel.plot(betas, [row["accuracy"] for row in ranking], color="0.1", marker="o", label="mean over shots")
    for row in ranking:
        if row["interval"] is not None:
            panel.plot([row["beta"]] * 2, row["interval"], color="0.5", linewidth=2.0, zorder=0)
    panel.set_ylabel(f"accuracy on {ranking[0]['size']} questions, %")
    panel.set_title("Accuracy, 95 % interval")
    lower.plot(betas, [np.nan if row["kl"] is None else row["kl"] for row in ranking], color="0.1", marker="s", linestyle="--")
    lower.set_ylabel("KL, nats")
    lower.set_title("KL from the start policy")
    for axes in (panel, lower):
        axes.set_xlabel("β (KL weight)")
        if betas[0] > 0 and betas[-1] > 10 * betas[0]:
            axes.set_xscale("log")
    return figure


def _baselines(facts: Facts) -> Figure | None:
    size = str(max(facts["sizes"], default=0))
    series: dict[str, Facts] = {}
    for run in facts["runs"]:
        for name, cells in run.get("baselines", {}).items():
            if cells.get(size):
                series.setdefault(name, cells[size])
    if not series:
        return None
    for run in facts["runs"][: _MOST_LINES - 1]:
        if _best(run)["accuracy"].get(size):
            series[f"β = {run['kl_beta']:g}, epoch {_best(run)['epoch']}"] = _best(run)["accuracy"][size]
    shots = sorted({int(k) for row in series.values() for k in row} - {0})
    figure, (panel,) = _panels(1, 1, width=11.0, height=4.5)
    bars = {name: row for name, row in series.items() if set(row) - {"0"}}
    width = 0.85 / max(len(bars), 1)
    greys = np.linspace(0.95, 0.35, max(len(bars), 1))
    for i, (name, row) in enumerate(bars.items()):
        places = np.arange(len(shots)) + (i - (len(bars) - 1) / 2) * width
        heights = [row.get(str(k), np.nan) for k in shots]
        panel.bar(
            places,
            heights,
            width,
            color=str(greys[i]),
            edgecolor="0.2",
            hatch=_HATCHES[i % len(_HATCHES)],
            label=name,
            linewidth=0.6,
        )
    for name, row in series.items():
        if "0" in row:
            panel.axhline(row["0"], color="0.2", linestyle="--", linewidth=1.2, label=f"{name} (0 shots)")
    panel.set_xticks(range(len(shots)), [_shots(k) for k in shots])
    panel.set_ylabel(f"accuracy on {size} questions, %")
    panel.set_title("Baselines and best epochs")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _panels(count: int, columns: int, *, width: float = 3.8, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, side by side in rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 5.0), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _line(i: int, count: int) -> dict[str, Any]:
    shade = 0.05 + 0.6 * i / max(count - 1, 1)
    markers = itertools.islice(itertools.cycle(_MARKERS), i, None)
    return {"color": str(shade), "marker": next(markers), "linestyle": _DASHES[i % len(_DASHES)], "markersize": 5}


def _best(run: Facts) -> Facts:
    """The best epoch, or where none was chosen the last one that was evaluated."""
    epochs: Sequence[Facts] = run["epochs"]
    evaluated = [epoch for epoch in epochs if epoch["accuracy"]] or epochs
    return next((epoch for epoch in epochs if epoch["epoch"] == run.get("best_epoch")), evaluated[-1])


def _shots(count: int) -> str:
    return f"{count} shot{'s' * (count != 1)}"


def _label(row: Facts) -> str:
    return "" if row["label"] == "best" else f"epoch {row['label']}, "


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _some(grid: np.ndarray) -> bool:
    return not bool(np.isnan(grid).all())
