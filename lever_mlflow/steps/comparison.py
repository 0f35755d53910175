"""Comparison of evaluated betas."""

from __future__ import annotations

from collections.abc import Sequence

import mlflow

from lever_mlflow import compare, report, tracking
from lever_mlflow.steps.context import Context
from lever_mlflow.steps.evaluation import RECORDS_FILE, read_evaluation

__all__ = ["COMPARISON_FILE", "compare_betas"]

COMPARISON_FILE = "comparison.json"


def compare_betas(context: Context, evaluations: Sequence[str]) -> None:
    """Comparison of finished evaluations, given as run ids: logs ``report.md`` and ``comparison.json``."""
    results = []
    for run_id in evaluations:
        records = compare.read_records(tracking.artifact(run_id, RECORDS_FILE))
        results.append(compare.Evaluation(run_id, read_evaluation(run_id), records))
    comparison = compare.compare(results, seed=context.seed)
    mlflow.log_dict(comparison, COMPARISON_FILE)
    mlflow.log_text(report.markdown(comparison), "report.md")
    mlflow.set_tag("mlflow.note.content", comparison["verdict"])
