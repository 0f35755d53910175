"""Comparison of evaluated betas, and promotion of one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import mlflow

from lever_mlflow import compare, registry, report, tracking
from lever_mlflow.steps.context import Context
from lever_mlflow.steps.evaluation import RECORDS_FILE, read_evaluation
from lever_mlflow.tracking import TAG

__all__ = ["COMPARISON_FILE", "compare_betas", "promote_beta"]

COMPARISON_FILE = "comparison.json"

log = logging.getLogger(__name__)


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


def promote_beta(context: Context, kl_beta: float) -> None:
    """Promotion of a beta's version to champion."""
    version, former = registry.promote(context.registered_name, kl_beta)
    log.info("%s: version %s (beta %g) is champion", context.registered_name, version, kl_beta)
    if former is not None:
        log.info("%s: version %s is previous-champion", context.registered_name, former)
    mlflow.set_tag(f"{TAG}champion", version)
