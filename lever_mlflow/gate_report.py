"""The data gate's answer for people: a plain-text table and one self-contained HTML page."""

from __future__ import annotations

from html import escape

from lever_mlflow.gate import SEVERITIES, Check, GateResult

__all__ = ["format_table", "report_html"]

_HEADER = ("expectation", "severity", "observed", "required", "verdict")
_COLOURS = {"pass": "#1a7f37", "warning": "#9a6700", "critical": "#cf222e"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
border-bottom: 1px solid #d1d9e0 } .verdict { color: #fff; border-radius: .3rem; padding: .1rem .5rem }
.scroll { overflow-x: auto }
.source { overflow-wrap: anywhere; color: #59636e } svg { max-width: 100%; height: auto }
"""


def format_table(result: GateResult) -> str:
    """An aligned table, failed expectations first, and below it what each failed one means and what to do about them."""
    checks = _failed_first(result)
    rows = [_HEADER, *((c.name, c.severity, c.observed, c.required, _word(c)) for c in checks)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    failed = [check for check in checks if not check.passed]
    if failed:
        lines += ["", *(f"{check.name}: {check.note}" for check in failed), ""]
        lines += [f"What to do: {remedy}." for remedy in dict.fromkeys(check.remedy for check in failed)]
    return "\n".join([_summary(result), "", *lines])


def report_html(result: GateResult) -> str:
    """A page that loads nothing from anywhere; every text from the data or the suites is escaped."""
    metrics = "".join(f"<tr><td>{_text(name)}</td><td>{value:.4f}</td></tr>" for name, value in result.metrics.items())
    head = "".join(f"<th>{title}</th>" for title in _HEADER)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data gate: {result.verdict}</title><style>{_STYLE}</style></head><body>
<h1>Data gate: {_badge(result.verdict, result.verdict)}</h1>
<p class="source">{_text(_summary(result))}<br>data {_text(result.digest)}, suites {_text(result.suite_digest)}</p>
<h2>Rewards of all trials ({_text(result.reward_mode)})</h2>
{_histogram_svg(result)}
<h2>Figures</h2>
<table>{metrics}</table>
<h2>Expectations</h2>
<div class="scroll"><table><tr>{head}</tr>{"".join(map(_html_row, _failed_first(result)))}</table></div>
</body></html>
"""


def _failed_first(result: GateResult) -> list[Check]:
    return sorted(result.checks, key=lambda check: (check.passed, SEVERITIES.index(check.severity)))


def _word(check: Check) -> str:
    return "pass" if check.passed else "FAIL"


def _summary(result: GateResult) -> str:
    failed = sum(not check.passed for check in result.checks)
    return (
        f"{result.source} ({result.vintage}): {result.verdict}; {result.metrics['data/n_queries']:.0f} queries, "
        f"{result.metrics['data/n_trials']:.0f} trials, {result.metrics['data/dropped_trials']:.0f} dropped; "
        f"{failed} of {len(result.checks)} expectations failed"
    )


def _html_row(check: Check) -> str:
    colour = "pass" if check.passed else check.severity
    advice = "" if check.passed else f"<br><small>{_text(check.note)} What to do: {_text(check.remedy)}.</small>"
    cells = [_text(check.name) + advice, check.severity, _text(check.observed), _text(check.required)]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in [*cells, _badge(_word(check), colour)]) + "</tr>"


def _badge(word: str, colour: str) -> str:
    return f'<span class="verdict" style="background: {_COLOURS.get(colour, "#59636e")}">{word}</span>'


def _histogram_svg(result: GateResult) -> str:
    """One bar per bin, its reward range and count as tooltip; heights relative to the largest bin."""
    largest = max((count for _, _, count in result.histogram), default=0)
    if not largest:
        return "<p>No rewards.</p>"
    bars = "".join(
        f'<rect x="{i * 30 + 2}" y="{150 - 140 * count / largest:.1f}" width="26" height="{140 * count / largest:.1f}" '
        f'fill="#0969da"><title>{low:g} to {high:g}: {count}</title></rect>'
        f'<text x="{i * 30 + 15}" y="166" font-size="10" text-anchor="middle">{low:g}</text>'
        for i, (low, high, count) in enumerate(result.histogram)
    )
    width = 30 * len(result.histogram)
    return (
        f'<svg viewBox="0 0 {width} 172" width="{width}" role="img" aria-label="Histogram of rewards, largest bin '
        f'{largest} trials">{bars}<line x1="0" y1="150" x2="{width}" y2="150" stroke="#59636e"/></svg>'
    )


def _text(value: str) -> str:
    """Escaped, and without lone surrogates, which no file could be written with."""
    return escape(value.encode("utf-8", "replace").decode("utf-8"))
