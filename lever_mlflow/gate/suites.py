"""Reads the gate's suites from the Great Expectations project and applies the thresholds that a user overrides.

An expectation is Great Expectations' own JSON. Its ``meta`` holds ``name`` (unique over all suites), ``note``, ``remedy`` and
optionally ``scales_with_reward_mode``. ``{"$PARAMETER": name}`` stands for a value that is only known when data are checked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.text import read_text

__all__ = [
    "DATA_SUITES",
    "DEFAULT_PROJECT_DIR",
    "DRIFT_SUITES",
    "FULL_RANGE",
    "SEVERITIES",
    "Severity",
    "Suites",
    "read_suites",
    "resolved",
    "suite_digest",
]

_CHECKOUT, _PACKAGED = Path(__file__).parents[2], Path(__file__).parent / "default_checks"
DEFAULT_PROJECT_DIR = _CHECKOUT / "data_checks" if (_CHECKOUT / "MLproject").is_file() else _PACKAGED  # setup.py ships the copy
Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # from the worst to the mildest
DATA_SUITES = ("rl_trials", "rl_queries", "rl_evaluations")
DRIFT_SUITES = ("rl_drift", "rl_drift_rewards")
FULL_RANGE = 2.0  # of hard_plus_soft, the mode that the reward thresholds are written for
_BOUNDS = ("min_value", "max_value", "threshold")
_DIGEST_CHARS = 32

Suites = dict[str, list[dict[str, Any]]]


def read_suites(project_dir: Path = DEFAULT_PROJECT_DIR, thresholds: Mapping[str, float | str] | None = None) -> Suites:
    """Reads all suites and returns the expectations of each by the suite's name.

    Args:
        project_dir: folder of the Great Expectations project.
        thresholds: values that replace those of the files. A key is the name of an expectation that has one bound, such as
            ``positive_query_rate``, or the name and the field, such as ``reward_mean.min_value``, ``pool_size.mostly`` or
            ``reward_mean.severity``.

    Raises:
        ParameterError: a suite is missing or cannot be used, or a threshold names no expectation or no field of it. The
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
    """Returns the digest of all suites with the overrides applied, 32 hex characters.

    It takes the arguments of ``read_suites`` and raises its errors.
    """
    content = json.dumps(read_suites(project_dir, thresholds), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]


def resolved(
    expectation: Mapping[str, Any], parameters: Mapping[str, Any], bounds: tuple[float, float] = (0.0, FULL_RANGE)
) -> dict[str, Any]:
    """Returns an expectation with its parameters filled in and its reward bounds scaled.

    Args:
        expectation: an expectation as ``read_suites`` returns it.
        parameters: the values of all ``$PARAMETER`` entries, by name.
        bounds: the smallest and the largest reward, to which thresholds on rewards in [0, 2] are scaled.

    Raises:
        ParameterError: the expectation names an unknown parameter.
    """
    kwargs = {}
    for key, value in expectation["kwargs"].items():
        if isinstance(value, dict) and "$PARAMETER" in value:
            if value["$PARAMETER"] not in parameters:
                known = ", ".join(sorted(parameters))
                raise ParameterError(
                    f"expectation {expectation['meta']['name']}: unknown parameter {value['$PARAMETER']!r}; use one of {known}"
                )
            kwargs[key] = parameters[value["$PARAMETER"]]
        else:
            kwargs[key] = value
    if expectation["meta"].get("scales_with_reward_mode"):
        kwargs = {key: _scaled(key, value, bounds) for key, value in kwargs.items()}
    return {**expectation, "kwargs": kwargs}


def _read(path: Path) -> list[dict[str, Any]]:
    """Reads the expectations of one suite, and raises ParameterError where they cannot be used."""
    try:
        suite = json.loads(read_text(path))
    except FileNotFoundError:
        raise ParameterError(
            f"{path}: this suite of the data gate does not exist; restore the suites with `git checkout -- data_checks`, or "
            f"install the package again"
        ) from None
    except (OSError, ValueError) as error:
        raise ParameterError(f"{path}: the suite cannot be read: {error}; {_restore(path)}") from None
    expectations = suite.get("expectations") if isinstance(suite, dict) else None
    if not isinstance(expectations, list) or not expectations:
        raise ParameterError(f"{path}: the suite holds no expectations, so all data would pass; {_restore(path)}")
    for i, expectation in enumerate(expectations):
        problem = _problem(expectation)
        if problem:
            raise ParameterError(f"{path}: expectation {i}: {problem}; {_restore(path)}")
    return expectations


def _restore(path: Path) -> str:
    """Returns the remedy for a damaged suite, with the command that restores it."""
    folder, name = shlex.quote(str(path.parent)), shlex.quote(path.name)
    return f"correct the file, or restore it with `git -C {folder} checkout -- {name}`"


def _problem(expectation: Any) -> str | None:
    """Returns why an expectation cannot be handed to Great Expectations, or None where it can."""
    if not isinstance(expectation, dict) or not isinstance(expectation.get("type"), str):
        return "it has no type"
    if not isinstance(expectation.get("kwargs"), dict):
        return "it has no kwargs"
    if expectation.get("severity") not in SEVERITIES:
        return f"its severity is {expectation.get('severity')!r}, expected one of {', '.join(SEVERITIES)}"
    meta = expectation.get("meta")
    if not isinstance(meta, dict) or not isinstance(meta.get("name"), str):
        return "it has no meta.name"
    return None


def _override(by_name: Mapping[str, dict[str, Any]], target: str, value: float | str) -> None:
    """Replaces one threshold or severity in place; ``target`` is the name of an expectation, or ``name.field``."""
    name, _, field = target.partition(".")
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else f"the names are: {', '.join(sorted(by_name))}"
        raise ParameterError(f"thresholds: there is no expectation {name!r}; {remedy}")
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
        raise ParameterError(
            f"thresholds: {target}={value}: name one of the fields {', '.join(f'{name}.{field}' for field in fields)}"
        )
    try:
        kwargs[field] = float(value)
    except ValueError:
        kwargs[field] = math.nan
    if not math.isfinite(kwargs[field]):
        raise ParameterError(f"thresholds: {target}={value}: the value is not a finite number")


def _scaled(key: str, value: Any, bounds: tuple[float, float]) -> Any:
    """Returns a keyword argument of an expectation with its thresholds scaled to ``bounds``; other values stay as they are."""
    if isinstance(value, int | float):
        return _within(value, bounds) if key in _BOUNDS else value
    if key == "quantile_ranges":
        ranges = [[None if bound is None else _within(bound, bounds) for bound in pair] for pair in value["value_ranges"]]
        return {**value, "value_ranges": ranges}
    return value


def _within(value: float, bounds: tuple[float, float]) -> float:
    """Returns what a reward in [0, 2] is between these bounds; 0 and 2 become exactly the bounds, which rewards may reach."""
    low, high = bounds
    share = value / FULL_RANGE
    return low * (1.0 - share) + high * share
