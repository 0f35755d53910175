"""Provides the data gate: Great Expectations suites over RL data, a verdict, a comparison with other data, and a page."""

from lever_mlflow.gate.checks import check
from lever_mlflow.gate.result import Check, GateResult, Method, Verdict
from lever_mlflow.gate.suites import DEFAULT_PROJECT_DIR, SEVERITIES, Severity, suite_digest

__all__ = [
    "DEFAULT_PROJECT_DIR",
    "SEVERITIES",
    "Check",
    "GateResult",
    "Method",
    "Severity",
    "Verdict",
    "check",
    "suite_digest",
]
