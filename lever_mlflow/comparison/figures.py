"""Draws the figures of a comparison, in a style that reads in grey: series differ in markers and hatches, not only colours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lever_mlflow.comparison.curves import CURVES, present
from lever_mlflow.comparison.facts import BEST, AgainstStrongest, Comparison, Difference, TestedDifference, primary
from lever_mlflow.evaluation.rounding import decimals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_FILES", "figures"]

FIGURE_FILES = (
    *("intervals.png", "training_curves.png", "accuracy.png", "differences.png"),
    *("beta_curve.png", "ranking.png", "baselines.png"),
)
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", "--", ":", "-.")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**", "||", "OO")
_LEAST_REACH = 1.0  # points that an axis of differences shows on both sides of 0
_CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Heiti SC",
)
_MOST_LINES, _MOST_PANELS, _MOST_ROWS, _MOST_AT_A_GLANCE = 12, 8, 48, 16


def figures(facts: Comparison) -> dict[str, bytes]:
    """Draws each figure for which there is anything to draw; returns PNGs by file name."""
    drawings: tuple[Callable[[Comparison], Figure | None], ...] = (
        *(_intervals, _training_curves, _accuracy, _differences),
        *(_beta_curve, _run_ranking, _baselines),
    )
    import matplotlib as mpl

    with mpl.rc_context({"font.family": _fonts()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # where no font has the characters of a label
        drawn = {name: draw(facts) for name, draw in zip(FIGURE_FILES, drawings, strict=True)}
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _fonts() -> list[str]:
    """Returns matplotlib's own font, and behind it the installed ones of ``_CJK_FONTS`` for labels that it cannot write."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)]


def _training_curves(facts: Comparison) -> Figure | None:
    names = [name for name in CURVES if name != "beta" and any(present(curves.values[name]) for curves in facts.curves)]
    if any(curves.trends["beta"] not in ("constant", "unknown") for curves in facts.curves):
        names.append("beta")  # adaptive; a fixed one is in the labels
    if not names:
        return None
    figure, panels = _panels(len(names), 3)
    shown = [curves for curves in facts.curves if any(present(curves.values[name]) for name in names)][:_MOST_LINES]
    for panel, name in zip(panels, names, strict=False):
        for i, curves in enumerate(shown):
            label = _name(curves.run, facts, equals=True)
            panel.plot(curves.epochs, _with_gaps(curves.values[name]), **_line(i, len(shown)), label=label)
        panel.set_title(name)
        panel.set_xlabel("epoch")
        panel.set_xticks(sorted({epoch for curves in shown for epoch in curves.epochs}))
    panels[0].legend(fontsize=8)
    n_left_out = len(facts.curves) - len(shown)
    more = f" ({n_left_out} {_nouns(facts)} without metrics or beyond the first {_MOST_LINES})" if n_left_out else ""
    figure.suptitle(f"Training curves{more}")
    return figure


def _accuracy(facts: Comparison) -> Figure | None:
    runs = facts.runs[:_MOST_PANELS]
    epochs = [run.best_or_last for run in runs]
    if not facts.sizes or not any(epoch.accuracy for epoch in epochs):
        return None
    grids = [np.array([_with_gaps([e.accuracy_at(n, k) for k in facts.shots]) for n in facts.sizes]) for e in epochs]
    known = np.concatenate([grid[~np.isnan(grid)] for grid in grids])
    low, high = known.min(), known.max()
    figure, panels = _panels(len(runs), 4, height=3.4)
    for panel, grid, run, epoch in zip(panels, grids, runs, epochs, strict=False):
        panel.imshow(grid, cmap="Greys", vmin=low - 0.15 * (high - low + 1), vmax=high + 0.6 * (high - low + 1), aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            panel.text(j, i, "missing" if np.isnan(value) else decimals(value), ha="center", va="center", fontsize=9)
        panel.set_xticks(range(len(facts.shots)), [str(k) for k in facts.shots])
        panel.set_yticks(range(len(facts.sizes)), [str(n) for n in facts.sizes])
        panel.set_xlabel("shots")
        panel.set_ylabel("questions")
        panel.set_title(f"{_name(run.label, facts, equals=True)}, epoch {epoch.epoch}")
    figure.suptitle("Accuracy, %")
    return figure


def _differences(facts: Comparison) -> Figure | None:
    known = facts.known_differences
    several = len({row.run for row in known}) > 1
    claims = [row for row in known if (row.primary if several else row.label == BEST)]
    rows = (claims or known)[:_MOST_ROWS]
    if not rows:
        return None
    figure, (panel,) = _panels(1, 1, width=8.0, height=1.2 + 0.28 * len(rows))
    _draw_intervals(panel, {_row_label(row, facts, with_run=several): row for row in rows})
    run = _each(facts) if several else _name(rows[0].run, facts)
    panel.set_xlabel(f"{run} minus {_name(rows[0].reference, facts)}, points")
    n_left_out = len(claims or known) - len(rows)
    more = f" ({n_left_out} more are in the tables)" if n_left_out else ""
    panel.set_title(f"Differences: 95 % interval (black), corrected (grey); diamond: significant{more}", fontsize=10)
    return figure


def _draw_intervals(panel: Axes, rows: Mapping[str, TestedDifference]) -> None:
    """Draws a row for each difference under its label: the 95 % interval, the corrected one, and the difference."""
    for i, row in enumerate(rows.values()):
        panel.plot(row.interval_holm, [i, i], color="0.65", linewidth=1.5, solid_capstyle="butt")
        panel.plot(row.interval, [i, i], color="0.1", linewidth=3.0, solid_capstyle="butt")
        panel.plot(row.points, i, marker="D" if row.significant else "o", color="white", markeredgecolor="black")
    panel.axvline(0.0, color="0.4", linewidth=1.0, linestyle="--")
    panel.set_yticks(range(len(rows)), list(rows), fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    panel.margins(y=0.5 / max(len(rows), 1))
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, -_LEAST_REACH), max(high, _LEAST_REACH))
    panel.invert_yaxis()


def _intervals(facts: Comparison) -> Figure | None:
    """Draws what is to be seen first: the gains over the strongest baselines, and the differences that claims rest on."""
    at_size = [row for row in sorted(facts.against_strongest, key=lambda row: row.shots) if row.size == facts.claimed_size]
    shown: dict[str, Sequence[AgainstStrongest | Difference]] = {
        "Gain over the strongest baseline": at_size,
        f"{_each(facts).capitalize()} minus {_name(facts.reference, facts)}": primary(facts.differences),
    }
    parts = {title: _largest(rows) for title, rows in shown.items() if rows}
    if not parts:
        return None
    counts = [len(rows) for rows in parts.values()]
    height = 0.6 + 0.16 * sum(counts) / len(parts)
    figure, panels = _panels(len(parts), 1, width=5.6, height=height, ratios=counts)
    for panel, (title, rows) in zip(panels, parts.items(), strict=True):
        _draw_intervals(panel, {f"{_name(row.run, facts)}, {_shots(row.shots)}": row for row in rows})
        n_left_out = len(shown[title]) - len(rows)
        panel.set_title(title + (f" ({n_left_out} smaller ones are in the tables)" if n_left_out else ""), fontsize=9)
    panels[-1].set_xlabel("points; black: 95 % interval, grey: corrected, diamond: significant", fontsize=8)
    return figure


def _largest(rows: Sequence[AgainstStrongest | Difference]) -> list[AgainstStrongest | Difference]:
    """Returns the largest differences that fit in, in their order."""
    largest = sorted(range(len(rows)), key=lambda i: -abs(rows[i].points))[:_MOST_AT_A_GLANCE]
    return [rows[i] for i in sorted(largest)]


def _name(label: str, facts: Comparison, *, equals: bool = False) -> str:
    """Names a run in a figure, where no text in it is taken for a formula."""
    return f"β {'= ' * equals}{label}" if facts.by_beta else label.replace("$", r"\$")


def _each(facts: Comparison) -> str:
    return "each β" if facts.by_beta else "each run"


def _nouns(facts: Comparison) -> str:
    return "betas" if facts.by_beta else "runs"


def _row_label(row: Difference, facts: Comparison, *, with_run: bool) -> str:
    run = f"{_name(row.run, facts)}, " if with_run else ""
    epoch = "" if row.label == BEST else f"epoch {row.label}, "
    return f"{run}{epoch}{row.size} questions, {_shots(row.shots)}"


def _beta_curve(facts: Comparison) -> Figure | None:
    """Draws accuracy and KL against beta."""
    places = {run.label: run.kl_beta for run in facts.runs if run.kl_beta is not None}
    if not facts.by_beta or (drawn := _ranking_at(facts, places)) is None:
        return None
    figure, panels = drawn
    betas = sorted(places.values())
    for panel in panels:
        panel.set_xlabel("β (KL weight)")
        if betas[0] > 0 and betas[-1] > 10 * betas[0]:
            panel.set_xscale("log")
    return figure


def _run_ranking(facts: Comparison) -> Figure | None:
    """Draws accuracy and KL of runs that are no betas, the best one first."""
    places = {row.run: float(place) for place, row in enumerate(facts.ranking)}
    if facts.by_beta or (drawn := _ranking_at(facts, places)) is None:
        return None
    figure, panels = drawn
    for panel in panels:
        panel.set_xticks([*places.values()], [_name(label, facts) for label in places], rotation=40, ha="right", fontsize=8)
    return figure


def _ranking_at(facts: Comparison, places: Mapping[str, float]) -> tuple[Figure, list[Axes]] | None:
    """Draws the accuracies of three runs or more at these places on the x axis, and beside them their KL where one is known."""
    ranking = sorted((row for row in facts.ranking if row.accuracy is not None), key=lambda row: places[row.run])
    if len(ranking) < 3:
        return None
    with_kl = facts.by_beta or any(row.kl is not None for row in ranking)
    figure, panels = _panels(1 + with_kl, 2, width=5.0)
    line = "-" if facts.by_beta else ""
    at = [places[row.run] for row in ranking]
    panels[0].plot(at, _with_gaps([row.accuracy for row in ranking]), color="0.1", marker="o", linestyle=line)
    for row in ranking:
        if row.interval is not None:
            panels[0].plot([places[row.run]] * 2, row.interval, color="0.5", linewidth=2.0, zorder=0)
    panels[0].set_ylabel(f"accuracy on {ranking[0].size} questions, %")
    panels[0].set_title("Accuracy, 95 % interval" if any(row.interval for row in ranking) else "Accuracy, mean over shots")
    if with_kl:
        panels[1].plot(at, _with_gaps([row.kl for row in ranking]), color="0.1", marker="s", linestyle=line and "--")
        panels[1].set_ylabel("KL, nats")
        panels[1].set_title("KL from the start policy")
    return figure, panels


def _baselines(facts: Comparison) -> Figure | None:
    size = max(facts.sizes, default=0)
    series = _series(facts, size)
    if not series:
        return None
    shots = sorted({k for row in series.values() for k in row} - {0})
    figure, (panel,) = _panels(1, 1, width=11.0, height=4.5)
    bars = {name: row for name, row in series.items() if set(row) - {0}}
    _draw_bars(panel, bars, shots)
    for name, row in series.items():
        if 0 in row:
            panel.axhline(row[0], color="0.2", linestyle="--", linewidth=1.2, label=f"{name} (0 shots)")
    panel.set_xticks(range(len(shots)), [_shots(k) for k in shots])
    panel.set_ylabel(f"accuracy on {size} questions, %")
    panel.set_title("Baselines and best epochs")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _series(facts: Comparison, size: int) -> dict[str, Mapping[int, float]]:
    """Returns the accuracies by shots of each baseline, and if there is any, of the best epochs."""
    series: dict[str, Mapping[int, float]] = {}
    for run in facts.runs:
        for name, accuracy in run.baselines.items():
            if size in accuracy:
                series.setdefault(name, accuracy[size])
    if series:
        for run in facts.runs[: _MOST_LINES - 1]:
            epoch = run.best_or_last
            if size in epoch.accuracy:
                series[f"{_name(run.label, facts, equals=True)}, epoch {epoch.epoch}"] = epoch.accuracy[size]
    return series


def _draw_bars(panel: Axes, bars: Mapping[str, Mapping[int, float]], shots: Sequence[int]) -> None:
    """Draws a group of bars per shot count, with a bar per series."""
    width = 0.85 / max(len(bars), 1)
    greys = np.linspace(0.95, 0.35, max(len(bars), 1))
    for i, (name, row) in enumerate(bars.items()):
        panel.bar(
            np.arange(len(shots)) + (i - (len(bars) - 1) / 2) * width,
            [row.get(k, np.nan) for k in shots],
            width,
            color=str(greys[i]),
            edgecolor="0.2",
            hatch=_HATCHES[i % len(_HATCHES)],
            label=name,
            linewidth=0.6,
        )


def _panels(
    count: int, columns: int, *, width: float = 3.8, height: float = 2.8, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with so many panels, side by side in rows, whose heights have these ratios or are equal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(width * columns, 5.0), height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, height_ratios=ratios).flat)
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
    """Returns the style of the i-th of so many lines."""
    shade = 0.05 + 0.6 * i / max(count - 1, 1)
    marker, dashes = _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)]
    return {"color": str(shade), "marker": marker, "linestyle": dashes, "markersize": 5}


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    """Returns the values, with NaN where one is missing, which is not drawn."""
    return [np.nan if value is None else value for value in values]


def _shots(count: int) -> str:
    return f"{count} shot{'s' * (count != 1)}"
