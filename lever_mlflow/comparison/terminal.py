"""A comparison as a plain table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lever_mlflow.comparison.page import policy_label, verdict

__all__ = ["summary"]

Facts = Mapping[str, Any]


def summary(facts: Facts) -> str:
    """Accuracy in percent at the largest size: a row per baseline and per epoch of each beta, a column per shot count."""
    size = str(max(facts["sizes"], default=0))
    runs: Sequence[Facts] = facts["runs"]
    shots = sorted({0, *facts["shots"]})
    rows = [["", *(f"{k} shot{'s' * (k != 1)}" for k in shots)]]
    seen: dict[str, Facts] = {}
    for run in runs:
        for name, cells in run.get("baselines", {}).items():
            if seen.get(name) != cells:
                seen[name] = cells
                rows.append([policy_label(run, name), *_cells(cells, size, shots)])
    for run in runs:
        for epoch in run["epochs"]:
            best = " *" if epoch["epoch"] == run.get("best_epoch") else ""
            rows.append([f"beta {run['kl_beta']:g} epoch {epoch['epoch']}{best}", *_cells(epoch["accuracy"], size, shots)])
    registered = [
        f"* beta {run['kl_beta']:g}: epoch {run['best_epoch']}, chosen on selection questions, is "
        f"{run['registered']['name']} version {run['registered']['version']}, alias {run['registered']['alias']}"
        for run in runs
        if "registered" in run and "best_epoch" in run
    ]
    title = f"VQA accuracy in percent on {size} questions"
    return "\n".join([title, *_aligned(rows), *_oracle(runs), *registered, verdict(facts, "en")])


def _cells(accuracy: Facts, size: str, shots: Sequence[int]) -> list[str]:
    row = accuracy.get(size, {})
    return [f"{row[str(k)]:.2f}" if str(k) in row else "-" for k in shots]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _oracle(runs: Sequence[Facts]) -> list[str]:
    """What there is to win with one demonstration, as a line; none where that was not measured. It does not depend on beta."""
    found = next((run["best_single"] for run in runs if "best_single" in run), None)
    if found is None:
        return []
    return [
        f"oracle: {100 * found['oracle']:.2f} with the best single demonstration of each pool, on the first "
        f"{found['questions']} questions ({100 * found['random']:.2f} with the mean one; it matters on "
        f"{100 * found['winnable']:.0f} % of them)"
    ]
