"""Writes the gate's answer for people: one line, a plain-text table, and a self-contained HTML page with figures."""

from __future__ import annotations

from lever_mlflow.files import rendering
from lever_mlflow.files.tables import aligned
from lever_mlflow.gate.figures import description, figures_png
from lever_mlflow.gate.result import Check, GateResult
from lever_mlflow.gate.suites import SEVERITIES
from lever_mlflow.trials.item_order import LEFT_OUT, OTHER_ITEM

__all__ = ["format_table", "report_html", "summary"]

_HEAD = ("expectation", "observed", "required", "verdict", "what to do")
_WIDEST = 60  # characters of a cell in the plain-text table; the page shows cells in full
# why trials are dropped, in words that follow a number
_REASONS = {
    "eval_failed": "with a failed evaluation",
    "error": "with an error in the evaluation",
    "fallback": "scored by the fallback only",
    "no_pool": "of queries without a pool",
    LEFT_OUT: "on items that the data set lacks",
    OTHER_ITEM: "on other items than recorded",
}
_STRUCTURAL = ("_columns", "_type", "_not_null", "_known")  # endings of names; these fail only where code and suites disagree


def summary(result: GateResult) -> str:
    """Returns the verdict, the size of the data and what their indices mean in one line."""
    failed = sum(not check.passed for check in result.checks)
    unchecked = sum(not check.checked for check in result.checks)
    reasons = ", ".join(f"{count} {_REASONS[reason]}" for reason, count in result.dropped.items())
    return (
        f"{result.source} (format {result.vintage}): {result.verdict}; {result.count('n_queries')} queries, "
        f"{result.count('n_trials')} usable trials, {result.count('dropped_trials')} dropped trials"
        f"{f' ({reasons})' if reasons else ''}; {f'{result.items}; ' if result.items else ''}"
        f"{failed} of {len(result.checks)} expectations failed{f', {unchecked} not checked' if unchecked else ''}"
    )


def format_table(result: GateResult, passed: bool = True) -> str:
    """Returns a plain-text table of the expectations, failed ones first, and below it what each failed one means.

    Expectations on columns, types and missing values that passed are counted and not listed. Without ``passed``, all that
    passed are counted only.
    """
    checks = _in_order(result)
    well = [check for check in checks if check.passed and check.checked]
    counted = [check for check in well if not passed or check.name.endswith(_STRUCTURAL)]
    listed = [check for check in checks if check not in counted]
    rows = [(c.name, _shortened(c.observed), _shortened(c.required), _outcome(c), _remedy(c)) for c in listed]
    lines = [summary(result), *([result.comparison] if result.comparison else []), "", aligned(rows, _HEAD)]
    if counted and passed:
        lines.append(f"{len(counted)} further expectations on columns, types and missing values passed.")
    elif counted:
        lines.append(f"{len(counted)} further expectations passed; verbose=true lists them.")
    notes = [f"{check.name}: {check.note}" for check in listed if not check.passed]
    return "\n".join([*lines, "", *notes]).rstrip()


def report_html(result: GateResult) -> str:
    """Returns the page about a result. It loads nothing from elsewhere, and every text in it is escaped."""
    return rendering.render(
        "gate/templates/gate.html",
        result=result,
        summary=summary(result),
        figures=figures_png(result),
        description=description(result),
        head=_HEAD,
        checks=[(check, _outcome(check), _remedy(check)) for check in _in_order(result)],
    )


def _outcome(check: Check) -> str:
    """Returns ``pass``, the severity of an expectation that failed, or that it was not checked."""
    if not check.checked:
        return "not checked"
    return "pass" if check.passed else check.severity


def _remedy(check: Check) -> str:
    """Returns what to do about an expectation that failed; nothing for one that passed."""
    return "" if check.passed else check.remedy


def _in_order(result: GateResult) -> list[Check]:
    """Returns the failed expectations first, by severity, then those that were not checked.

    Warnings about a figure that is critical already are left out.
    """
    failed = {check.name for check in result.checks if not check.passed}
    checks = [
        check
        for check in result.checks
        if not (check.name in failed and check.name.removesuffix("_warning") in failed - {check.name})
    ]
    return sorted(checks, key=lambda check: (check.passed, check.checked, SEVERITIES.index(check.severity)))


def _shortened(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
