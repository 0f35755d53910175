"""The gate's suites: read from the Great Expectations project, with the thresholds that a user overrides.

An entry is Great Expectations' own JSON. Its ``meta`` holds ``name`` (unique over all suites), ``note``, ``remedy`` and
perhaps ``scales_with_reward_mode``. ``{"$PARAMETER": name}`` stands for what is only known when checking.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import ParameterError

__all__ = ["DATA_SUITES", "DEFAULT_PROJECT_DIR", "DRIFT_SUITES", "SEVERITIES", "read_suites", "resolved", "suite_digest"]

_CHECKOUT, _PACKAGED = Path(__file__).parents[2], Path(__file__).parent / "default_checks"
DEFAULT_PROJECT_DIR = _CHECKOUT / "data_checks" if (_CHECKOUT / "MLproject").is_file() else _PACKAGED  # setup.py ships the copy
SEVERITIES = ("critical", "warning", "info")
DATA_SUITES = ("rl_trials", "rl_queries", "rl_evaluations")
DRIFT_SUITES = ("rl_drift", "rl_drift_rewards")
_BOUNDS = ("min_value", "max_value", "threshold")
_DIGEST_CHARS = 32

Suites = dict[str, list[dict[str, Any]]]


def read_suites(project_dir: Path = DEFAULT_PROJECT_DIR, thresholds: Mapping[str, float | str] | None = None) -> Suites:
    """All suites by name, each a list of expectations.

    Args:
        thresholds: values to use instead of the files': ``{"positive_query_rate": 0.05}`` where the expectation has one bound,
            else with the field, as ``reward_mean.min_value``, ``pool_size.mostly`` or ``reward_mean.severity``.

    Raises:
        ParameterError: a suite is missing or cannot be used, or a threshold names nothing that it could change; the
            message names the file and the expectation.
    """
    suites = {name: _read(project_dir / "gx" / "expectations" / f"{name}.json") for name in (*DATA_SUITES, *DRIFT_SUITES)}
    by_name: dict[str, dict[str, Any]] = {}
    for suite, expectations in suites.items():
        for expectation in expectations:
            name = expectation["meta"]["name"]
            if name in by_name:
                raise ParameterError(f"{suite}.json: another expectation has the meta.name {name} too; rename one of them")
            by_name[name] = expectation
    for target, value in (thresholds or {}).items():
        _override(by_name, target, value)
    return suites


def suite_digest(project_dir: Path = DEFAULT_PROJECT_DIR, thresholds: Mapping[str, float | str] | None = None) -> str:
    """Content digest of all suites as they would be used, 32 hex characters; arguments and errors as ``read_suites``."""
    content = json.dumps(read_suites(project_dir, thresholds), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]


def resolved(expectation: Mapping[str, Any], parameters: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The expectation with values for its parameters, and bounds on rewards in [0, 2] scaled by ``factor`` to another range.

    Raises:
        ParameterError: it asks for a parameter that there is not.
    """
    kwargs = {}
    for key, value in expectation["kwargs"].items():
        if isinstance(value, dict) and "$PARAMETER" in value:
            if value["$PARAMETER"] not in parameters:
                known = ", ".join(sorted(parameters))
                raise ParameterError(
                    f"expectation {expectation['meta']['name']}: no parameter {value['$PARAMETER']!r}; there are: {known}"
                )
            kwargs[key] = parameters[value["$PARAMETER"]]
        else:
            kwargs[key] = value
    if expectation["meta"].get("scales_with_reward_mode"):
        kwargs = {key: _scaled(key, value, factor) for key, value in kwargs.items()}
    return {**expectation, "kwargs": kwargs}


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(
            f"{path}: no such suite of the data gate; restore it with git checkout data_checks, or install the package again"
        ) from None
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path}: not a readable suite: {error}; mend the file or restore it with git") from None
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list) or not expectations:
        raise ParameterError(f"{path}: holds no expectations, so it would let everything pass; restore it with git")
    for i, expectation in enumerate(expectations):
        problem = _problem(expectation)
        if problem:
            raise ParameterError(f"{path}: expectation {i}: {problem}; mend the file or restore it with git")
    return expectations


def _problem(expectation: Any) -> str | None:
    """What keeps an entry of a suite from being used, before Great Expectations sees it."""
    if not isinstance(expectation, dict) or not isinstance(expectation.get("type"), str):
        return "has no type"
    if not isinstance(expectation.get("kwargs"), dict):
        return "has no kwargs"
    if expectation.get("severity") not in SEVERITIES:
        return f"severity is {expectation.get('severity')!r}, expected one of {', '.join(SEVERITIES)}"
    meta = expectation.get("meta")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        return "has no meta.name"
    return None


def _override(by_name: Mapping[str, dict[str, Any]], target: str, value: float | str) -> None:
    name, _, field = target.partition(".")
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, n=3) or sorted(by_name)
        raise ParameterError(f"thresholds: no expectation {name!r}; did you mean {' or '.join(close)}?")
    expectation = by_name[name]
    if field == "severity":
        if value not in SEVERITIES:
            raise ParameterError(f"thresholds: {target}={value}: a severity is one of {', '.join(SEVERITIES)}")
        expectation["severity"] = value
        return
    kwargs = expectation["kwargs"]
    bounds = [bound for bound in _BOUNDS if bound in kwargs]
    fields = [*bounds, *(["mostly"] if "mostly" in kwargs else []), "severity"]
    if not field and len(bounds) == 1:
        field = bounds[0]
    if field not in fields:
        raise ParameterError(f"thresholds: {target}={value}: give one of {', '.join(f'{name}.{field}' for field in fields)}")
    try:
        kwargs[field] = float(value)
    except ValueError:
        kwargs[field] = math.nan
    if not math.isfinite(kwargs[field]):
        raise ParameterError(f"thresholds: {target}={value}: not a finite number")


def _scaled(key: str, value: Any, factor: float) -> Any:
    if isinstance(value, int | float):
        return value * factor if key in _BOUNDS else value
    if key == "quantile_ranges":
        ranges = [[None if bound is None else bound * factor for bound in pair] for pair in value["value_ranges"]]
        return {**value, "value_ranges": ranges}
    return value
