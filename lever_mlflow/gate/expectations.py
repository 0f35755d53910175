"""Defines the expectations that Great Expectations lacks.

Importing this module registers them with Great Expectations; that must happen before the suites are opened.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.execution_engine.sqlalchemy_execution_engine import SqlAlchemyExecutionEngine
from great_expectations.expectations.expectation import ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider.column_pair_condition_partial import (
    column_pair_condition_partial,
)
from great_expectations.expectations.metrics.map_metric_provider.column_pair_map_metric_provider import (
    ColumnPairMapMetricProvider,
)

__all__ = ["ColumnPairScoresAgree", "ExpectColumnPairScoresToAgree"]


class ColumnPairScoresAgree(ColumnPairMapMetricProvider):
    """Marks the rows whose hard score (0 or 1) agrees with their soft score (0 to 1)."""

    condition_metric_name = "column_pair_values.scores_agree"
    condition_domain_keys = (
        "batch_id",
        "table",
        "column_A",
        "column_B",
        "row_condition",
        "condition_parser",
        "ignore_row_if",
    )
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column_A: Any, column_B: Any, **kwargs: object) -> Any:
        return _agree(column_A, column_B)

    @column_pair_condition_partial(engine=SqlAlchemyExecutionEngine)
    def _sql(cls, column_A: Any, column_B: Any, **kwargs: object) -> Any:
        return _agree(column_A, column_B)


def _agree(column_A: Any, column_B: Any) -> Any:
    """Returns which rows agree; the columns are those of pandas or of SQLAlchemy, which have the same operators."""
    return ~(((column_A == 1) & (column_B <= 0)) | ((column_A == 0) & (column_B >= 1)))


class ExpectColumnPairScoresToAgree(ColumnPairMapExpectation):
    """Expects that a right answer (``column_A`` is 1) does not score 0 in ``column_B``, and a wrong one (0) does not score 1.

    Tables of pandas and of SQL are supported.
    """

    ignore_row_if: Literal["both_values_are_missing", "either_value_is_missing", "neither"] = "either_value_is_missing"
    map_metric: ClassVar[str] = "column_pair_values.scores_agree"
    # The base class leaves out ignore_row_if, without which the metric cannot be computed.
    domain_keys: ClassVar = ColumnPairScoresAgree.condition_domain_keys  # type: ignore[assignment]
