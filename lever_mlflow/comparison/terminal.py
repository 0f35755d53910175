"""Writes a comparison as a plain table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.results import Accuracies, RunResult
from lever_mlflow.comparison.wording import policy_label
from lever_mlflow.settings import format_beta

__all__ = ["summary"]
