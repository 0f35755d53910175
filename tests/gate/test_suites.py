"""Thresholds: how they are overridden, and what is refused."""

import json
import shutil

import pytest

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.gate.suites import (
    DATA_SUITES,
    DEFAULT_PROJECT_DIR,
    DRIFT_SUITES,
    SEVERITIES,
    read_suites,
    resolved,
    suite_digest,
)


def expectation_of(thresholds, name):
    suites = read_suites(thresholds=thresholds)
    return next(e for suite in suites.values() for e in suite if e["meta"]["name"] == name)


def test_every_expectation_has_a_severity_a_note_and_a_remedy():
    suites = read_suites()
    assert tuple(suites) == DATA_SUITES + DRIFT_SUITES
    for expectation in (e for suite in suites.values() for e in suite):
        assert expectation["severity"] in SEVERITIES
        assert expectation["meta"]["note"].endswith("."), expectation["meta"]["name"]
        assert not expectation["meta"]["remedy"].endswith("."), expectation["meta"]["name"]


@pytest.mark.parametrize(
    ("target", "value", "field", "expected"),
    [
        ("positive_query_rate", "0.05", "min_value", 0.05),
        ("zero_spread_share", 0.95, "max_value", 0.95),
        ("reward_mean.max_value", "1.9", "max_value", 1.9),
        ("pool_size.mostly", "1", "mostly", 1.0),
        ("drift_reward_distribution", "0.1", "threshold", 0.1),
    ],
)
def test_a_threshold_is_replaced(target, value, field, expected):
    name = target.split(".")[0]
    before, after = expectation_of({}, name), expectation_of({target: value}, name)
    assert after["kwargs"] == {**before["kwargs"], field: expected}
    assert suite_digest(thresholds={target: value}) != suite_digest()


def test_a_severity_is_replaced():
    assert expectation_of({"zero_spread_share.severity": "info"}, "zero_spread_share")["severity"] == "info"


@pytest.mark.parametrize(
    ("target", "value", "message"),
    [
        ("positive_query", "0.1", "there is no expectation 'positive_query'; did you mean positive_query_rate"),
        ("nope", "0.1", "there is no expectation 'nope'; the names are: drift_columns, drift_positive_query_rate, "),
        ("reward_mean", "0.1", "name one of the fields reward_mean.min_value, reward_mean.max_value, reward_mean.severity"),
        ("reward_mean.min", "0.1", "name one of the fields reward_mean.min_value"),
        ("vqa_correct_values", "0.1", "name one of the fields vqa_correct_values.severity"),
        ("positive_query_rate", "low", "positive_query_rate=low: the value is not a finite number"),
        ("positive_query_rate", "nan", "positive_query_rate=nan: the value is not a finite number"),
        ("positive_query_rate.severity", "fatal", "a severity is one of critical, warning, info"),
    ],
)
def test_a_threshold_that_changes_nothing_is_refused(target, value, message):
    with pytest.raises(ParameterError, match=message):
        read_suites(thresholds={target: value})


def test_parameters_get_their_values_and_reward_bounds_their_scale():
    pool_size = expectation_of({}, "pool_size")
    assert resolved(pool_size, {"min_pool_size": 9}, (0.0, 1.0))["kwargs"]["min_value"] == 9
    with pytest.raises(ParameterError, match="pool_size: unknown parameter 'min_pool_size'; use one of shots"):
        resolved(pool_size, {"shots": 1})
    quantiles = resolved(expectation_of({}, "reward_quantiles_warning"), {}, (-1.0, 2.0))["kwargs"]["quantile_ranges"]
    assert quantiles == {"quantiles": [0.1, 0.9], "value_ranges": [[-1.0, 0.5], [0.5, 2.0]]}
    ends = resolved(expectation_of({}, "reward_range"), {}, (-0.3, 2.1))["kwargs"]
    assert (ends["min_value"], ends["max_value"]) == (-0.3, 2.1)  # exactly, so that a trial with this reward is inside
    assert (
        resolved(expectation_of({}, "reward_stdev"), {}, (0.0, 1.0))["kwargs"]["min_value"] == 0.1
    )  # the same floor in every mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": {"name": "a", "remedy": 1}}, r"expectation 0: its meta\.remedy is 1, expected text"),
        ({"kwargs": {"quantile_ranges": {"quantiles": [0.5], "value_ranges": []}}}, "expected a pair of bounds for each"),
        ({"kwargs": {"min_value": float("nan")}}, r"rl_trials\.json: the suite cannot be read: holds NaN"),
    ],
)
def test_a_suite_is_checked_to_its_last_field(tmp_path, change, message):
    project = shutil.copytree(DEFAULT_PROJECT_DIR, tmp_path / "checks")
    path = project / "gx" / "expectations" / "rl_trials.json"
    content = json.loads(path.read_text())
    content["expectations"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ParameterError, match=message):
        read_suites(project)
    path.write_text("[" * 100_000)
    with pytest.raises(ParameterError, match="nested too deeply"):
        read_suites(project)
