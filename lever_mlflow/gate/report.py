"""The data gate's answer for people: a plain-text table and one self-contained HTML page with figures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from lever_mlflow.files.html_page import figure, page, table, text
from lever_mlflow.gate.result import Check, GateResult
from lever_mlflow.gate.suites import SEVERITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["figures_png", "format_table", "report_html", "summary"]

_HEADER = ("expectation", "observed", "required", "verdict", "what to do")
_LABELLED_BARS = 15
_WIDEST = 60  # characters of an observed value in the table; the page has all
_STRUCTURE = ("_columns", "_type", "_not_null", "_known")  # what passes unless code and suites disagree
_COLOURS = {"pass": "#1a7f37", "info": "#0969da", "warning": "#9a6700", "critical": "#cf222e"}
_DATA, _REFERENCE, _POSITIVE, _REST = "#0969da", "#bc4c00", "#1a7f37", "#d0d7de"
_STYLE = """
table { width: 100% } td:nth-child(4) { overflow-wrap: normal }
.verdict { color: #fff; border-radius: .3rem; padding: .1rem .5rem } .source { overflow-wrap: anywhere; color: #59636e }
.comparison { font-size: 1.1rem; border-left: .3rem solid #bc4c00; padding-left: .8rem; overflow-wrap: anywhere }
"""


def format_table(result: GateResult) -> str:
    """An aligned table, failed expectations first, and below it what each failed one means."""
    checks = _listed(result)
    structural = [check for check in checks if check.passed and check.name.endswith(_STRUCTURE)]
    shown = [check for check in checks if check not in structural]
    rows = [_HEADER, *((c.name, _short(c.observed), _short(c.required), _word(c), _remedy(c)) for c in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER) - 1)]
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in (*widths, len(_HEADER[-1]))))
    if structural:
        lines.append(f"and {len(structural)} more on columns, types and missing values: all pass")
    notes = [f"{check.name}: {check.note}" for check in shown if not check.passed]
    return "\n".join([summary(result), *([result.comparison] if result.comparison else []), "", *lines, "", *notes]).rstrip()


def report_html(result: GateResult) -> str:
    """A page that loads nothing from anywhere; every text from the data or the suites is escaped."""
    metrics = [(text(name), f"{value:.4f}") for name, value in result.metrics.items()]
    comparison = f'<p class="comparison">{text(result.comparison)}</p>' if result.comparison else ""
    methods = ("method", "trials", "share", "positive", f"mean reward ({result.reward_mode})")
    body = f"""<h1>Data gate: {_badge(result.verdict, result.verdict)}</h1>
<p class="source">{text(summary(result))}<br>data {text(result.digest)}, suites {text(result.suite_digest)}</p>
{comparison}
{figure(figures_png(result), _description(result))}
<h2>Expectations</h2>
{table(_HEADER, map(_html_row, _listed(result)))}
<h2>Rewards by generation method</h2>
{table(methods, _method_rows(result))}
<details><summary>All figures</summary>{table((), metrics)}</details>"""
    return page(f"Data gate: {result.verdict}", body, style=_STYLE)


def figures_png(result: GateResult) -> bytes:
    """Four panels as a PNG: rewards, positive trials per query, rewards by generation method, reward spread of the groups."""
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
    if len(result.positives_per_query) <= _LABELLED_BARS:
        axes.bar_label(bars, fontsize=9)


def _draw_methods(axes: Axes, result: GateResult) -> None:
    axes.set_title("Mean reward by generation method")
    methods = [method for method in result.methods if method.reward_mean is not None]
    bars = axes.bar([m.name for m in methods], [m.reward_mean or 0.0 for m in methods], color=_DATA)
    axes.bar_label(bars, [f"{m.reward_mean:.3g}\n{100 * m.share:.0f} % of trials" for m in methods], padding=2, fontsize=9)
    if result.histogram:
        axes.set_ylim(0, 1.25 * result.histogram[-1][1])  # the whole range of rewards, so that small ones look small


def _draw_spread(axes: Axes, result: GateResult) -> None:
    axes.set_title("Queries whose trials differ in reward: only these teach")
    flat = 100 * result.metrics.get("data/frac_reward_zero_std", 0.0)
    axes.barh([""], [100 - flat], color=_POSITIVE, label=f"differ: {100 - flat:.1f} %")
    axes.barh([""], [flat], left=[100 - flat], color=_REST, label=f"all equal: {flat:.1f} %")
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of queries, %")
    axes.set_ylim(-0.8, 1.2)
    axes.legend(loc="upper center", ncols=2, frameon=False)


def _listed(result: GateResult) -> list[Check]:
    """Failed first, by severity; without the warning about a figure that is critical already."""
    failed = {check.name for check in result.checks if not check.passed}
    kept = [
        check
        for check in result.checks
        if not (check.name in failed and check.name.removesuffix("_warning") in failed - {check.name})
    ]
    return sorted(kept, key=lambda check: (check.passed, SEVERITIES.index(check.severity)))


def _word(check: Check) -> str:
    return "pass" if check.passed else check.severity


def _remedy(check: Check) -> str:
    return "" if check.passed else check.remedy


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def summary(result: GateResult) -> str:
    """The verdict in one line."""
    failed = sum(not check.passed for check in result.checks)
    return (
        f"{result.source} ({result.vintage}): {result.verdict}; {result.metrics['data/n_queries']:.0f} queries, "
        f"{result.metrics['data/n_trials']:.0f} trials, {result.metrics['data/dropped_trials']:.0f} dropped; "
        f"{failed} of {len(result.checks)} expectations failed"
    )


def _description(result: GateResult) -> str:
    """The figures in words, for those who do not see them."""
    rewards = ", ".join(f"{low:.2g} to {high:.2g}: {100 * share:.1f} %" for low, high, share in result.histogram if share)
    positives = ", ".join(f"{k}: {n} queries" for k, n in result.positives_per_query)
    return f"Rewards of the trials: {rewards or 'none'}. Positive trials per query: {positives or 'none'}."


def _html_row(check: Check) -> list[str]:
    note = "" if check.passed else f"<br><small>{text(check.note)}</small>"
    badge = _badge(_word(check), _word(check))
    return [text(check.name) + note, text(check.observed), text(check.required), badge, text(_remedy(check))]


def _method_rows(result: GateResult) -> list[list[str]]:
    return [
        [
            text(method.name),
            str(method.n_trials),
            f"{100 * method.share:.1f} %",
            "-" if method.positive_rate is None else f"{100 * method.positive_rate:.1f} %",
            "-" if method.reward_mean is None else f"{method.reward_mean:.4f}",
        ]
        for method in result.methods
    ]


def _badge(word: str, colour: str) -> str:
    return f'<span class="verdict" style="background: {_COLOURS.get(colour, "#59636e")}">{word}</span>'
