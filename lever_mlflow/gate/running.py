"""Runs one suite of Great Expectations over one table, in an ephemeral context, so that nothing is written to the project.

An expectation without a result, or with an exception instead of one, counts as failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.gate.result import Check
from lever_mlflow.gate.stores import TableStore
from lever_mlflow.invocation import in_present_form

__all__ = ["run_suite"]

_OF_TYPE = "expect_column_values_to_be_of_type"
_NOT_IN_SET = "expect_column_values_to_not_be_in_set"
_PLAIN_WORDS = {
    "expect_column_values_to_not_be_null": "no missing values",
    "expect_column_values_to_be_unique": "no duplicates",
    "expect_column_pair_scores_to_agree": "no contradictions",
    "expect_table_columns_to_match_set": "exactly the columns of the suite",
}


def run_suite(
    name: str, expectations: list[dict[str, Any]], store: TableStore, table: str
) -> tuple[list[Check], dict[str, Any]]:
    """Returns one check per expectation, and Great Expectations' own result as plain JSON values.

    An empty table fails every expectation. An expectation that ``may_be_unknown``, as its ``meta`` says, is not checked where
    its column holds no value at all.

    Args:
        name: the suite.
        expectations: its expectations.
        store: holds the tables.
        table: the table that the suite looks at.

    Raises:
        ParameterError: Great Expectations cannot use an expectation; the message names it.
    """
    if not store.n_rows(table):  # Great Expectations would pass most expectations on it, and divide by zero in the others
        return [replace(_check(name, expectation, None), observed="no rows") for expectation in expectations], {"results": []}
    gx_result = json.loads(json.dumps(_validate(name, expectations, store, table), default=_plain), parse_constant=str)
    by_name = {result["expectation_config"]["meta"]["name"]: result for result in gx_result["results"]}
    checks = []
    for expectation in expectations:
        try:
            check = _check(name, expectation, by_name.get(expectation["meta"]["name"]))
            checks.append(_unless_unknown(check, expectation, store, table))
        except (TypeError, ValueError, LookupError, AttributeError) as error:  # Great Expectations takes more than fits a table
            raise _unusable(name, expectation, error) from None
    return checks, gx_result


def _validate(name: str, expectations: list[dict[str, Any]], store: TableStore, table: str) -> dict[str, Any]:
    """Returns Great Expectations' result. It is made of plain JSON values but for some numbers of NumPy."""
    import great_expectations as gx
    from great_expectations.data_context.types import base

    import lever_mlflow.gate.expectations  # noqa: F401  (registers our own expectations)

    context = gx.get_context(
        mode="ephemeral",
        project_config=base.DataContextConfig(
            analytics_enabled=False,
            progress_bars=base.ProgressBarsConfig(globally=False),
            store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        ),
    )
    # The expectations are built one by one. A suite made of plain dicts only logs those that it cannot use, and adding a
    # configuration to a suite replaces an earlier one of the same type and column: a warning would displace a critical one.
    translated = [_in_types_of(store, item) for item in expectations]
    suite = gx.ExpectationSuite(name=name, expectations=[_expectation(name, item) for item in translated])
    result = store.batch(context, table).validate(suite).to_json_dict()
    names = {of_engine: np.dtype(kind).type.__name__ for kind, of_engine in store.types.items()}  # as pandas has them
    for item in result["results"]:
        if item["expectation_config"]["type"] == _OF_TYPE and "observed_value" in item["result"]:
            item["result"]["observed_value"] = names.get(item["result"]["observed_value"], item["result"]["observed_value"])
    return result


def _in_types_of(store: TableStore, expectation: dict[str, Any]) -> dict[str, Any]:
    """Returns an expectation with the name that the store's engine has for the type that a column must have."""
    if expectation["type"] != _OF_TYPE:
        return expectation
    kwargs = expectation["kwargs"]
    return {**expectation, "kwargs": {**kwargs, "type_": store.types.get(kwargs["type_"], kwargs["type_"])}}


def _plain(value: Any) -> Any:
    """Returns a NumPy number or truth value as Python's, and anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _expectation(suite: str, item: Mapping[str, Any]) -> Any:
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        return ExpectationConfiguration(**item).to_domain_obj()
    except Exception as error:  # Great Expectations and pydantic raise many kinds for a bad threshold
        raise _unusable(suite, item, error) from None


def _unusable(suite: str, item: Mapping[str, Any], error: Exception) -> ParameterError:
    """Returns the error that names an expectation whose values cannot be used."""
    return ParameterError(
        f"{suite}.json: expectation {item['meta']['name']}: {' '.join(str(error).split())}; correct the suite, or restore all "
        f"of them with `git checkout -- data_checks`"
    )


def _check(suite: str, expectation: Mapping[str, Any], result: Mapping[str, Any] | None) -> Check:
    kwargs, meta = expectation["kwargs"], expectation["meta"]
    error = "no result" if result is None else _exception(result)
    return Check(
        suite=suite,
        name=meta["name"],
        column=kwargs.get("column", kwargs.get("column_A", "")),
        severity=expectation["severity"],
        passed=result is not None and result["success"] is True and error is None,
        observed=error or _observed(expectation["type"], kwargs, result["result"] if result else {}),
        required=_required(expectation["type"], kwargs),
        note=meta.get("note", ""),
        remedy=in_present_form(meta.get("remedy", "")),
    )


def _unless_unknown(check: Check, expectation: Mapping[str, Any], store: TableStore, table: str) -> Check:
    """Returns the check, which says how many rows could not be checked, or that none could."""
    unknown = store.n_missing(table, check.column) if expectation["meta"].get("may_be_unknown") else 0
    if not unknown:
        return check
    if unknown == store.n_rows(table):
        return replace(check, passed=True, checked=False, observed="not checked")
    return replace(check, observed=f"{check.observed}, {unknown} of them not checked")


def _exception(result: Mapping[str, Any]) -> str | None:
    """Returns the message of the first exception, or None. Great Expectations keeps one flat record or one per metric."""
    info = result.get("exception_info") or {}
    records = [info] if "raised_exception" in info else list(info.values())
    raised = [record for record in records if record["raised_exception"]]
    return " ".join(str(raised[0]["exception_message"]).split())[:120] if raised else None


def _observed(kind: str, kwargs: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    if "unexpected_count" in result:
        count, total = result["unexpected_count"], result["element_count"]
        if kind == _NOT_IN_SET:
            return f"{count / max(total, 1):.1%} of rows"
        values = result.get("partial_unexpected_list", [])[:3]
        if all(isinstance(value, bool) for value in kwargs.get("value_set", [None])):
            values = map(bool, values)  # SQLite has 1 and 0 for them
        examples = ", ".join(dict.fromkeys(map(str, values)))
        return f"{count} of {total} rows failed" + (f" ({examples})" if examples else "")
    value = result.get("observed_value")
    if isinstance(value, Mapping) and "quantiles" in value:
        return "; ".join(f"{q:g}: {_number(number)}" for q, number in zip(value["quantiles"], value["values"], strict=True))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _required(kind: str, kwargs: Mapping[str, Any]) -> str:
    mostly = kwargs.get("mostly", 1)
    rows = f" in at least {mostly:.0%} of rows" if mostly != 1 else ""
    if "value_set" in kwargs:
        values = " or ".join(map(str, kwargs["value_set"]))
        return f"{values} in at most {1 - mostly:.0%} of rows" if kind == _NOT_IN_SET else f"{values}{rows}"
    if "quantile_ranges" in kwargs:
        ranges = kwargs["quantile_ranges"]
        return "; ".join(f"{q:g}: {_range(*pair)}" for q, pair in zip(ranges["quantiles"], ranges["value_ranges"], strict=True))
    if kind == "expect_column_pair_values_to_be_equal":
        return f"{kwargs['column_A']} = {kwargs['column_B']}{rows}"
    if "type_" in kwargs:
        return str(kwargs["type_"])
    bounds = _range(kwargs.get("min_value"), kwargs.get("max_value", kwargs.get("threshold")))
    return (bounds or _PLAIN_WORDS.get(kind, kind)) + rows


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"exactly {_number(low)}" if low == high else f"{_number(low)} to {_number(high)}"
    if low is not None:
        return f"at least {_number(low)}"
    return f"at most {_number(high)}" if high is not None else ""
