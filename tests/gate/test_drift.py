"""Two data sets side by side; the expected figures are worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lever_mlflow.exceptions import GateError
from lever_mlflow.gate import check
from lever_mlflow.gate.drift import reward_partition, shared
from lever_mlflow.gate.report import format_table, report_html
from lever_mlflow.trials.rl_data import Group, RLData, Trial


def data(right, *, queries=range(100), source="a.json", pool=range(1000, 1064), accuracy=1.0):
    """Queries of 10 trials; the first ``right`` trials of each are right, except in the last tenth of the queries."""
    ids = list(queries)
    groups = [
        Group(
            query,
            tuple(pool),
            tuple(
                Trial((0, i + 1), float(good := i < right and n < 0.9 * len(ids)), accuracy * good, ("beam", "random")[i % 2])
                for i in range(10)
            ),
        )
        for n, query in enumerate(ids)
    ]
    return RLData(tuple(groups), source * 4, "pools", {}, {}, source)


def drift_checks(result):
    return {c.name: c.observed for c in result.checks if c.suite.startswith("rl_drift") and not c.passed}


def test_data_compared_with_themselves_are_comparable():
    result = check(data(5), reference=data(5, source="b.json"))
    assert drift_checks(result) == {}
    assert result.comparison == (
        "a.json and b.json can be compared: mean reward 0.9000 against 0.9000; positive trials 45.0 % against 45.0 %; "
        "positive queries 90.0 % against 90.0 %; queries without reward spread 10.0 % against 10.0 %"
    )
    assert result.metrics["data/drift_reward_mean"] == 0.0
    assert result.metrics["data/drift_shared_queries"] == 1.0


def test_data_with_other_rewards_are_not():
    result = check(data(2), reference=data(5, source="b.json"))
    # 18 % of the trials earn 2.0 here, 45 % there; of the reference's weight, 0.001 is held out for empty bins
    divergence = 0.82 * math.log(0.82 / 0.55) + 0.18 * math.log(0.18 / 0.45) - math.log(0.999)
    observed = drift_checks(result)
    assert {name: float(value) for name, value in observed.items()} == pytest.approx(
        {
            "drift_reward_mean": -0.54,
            "drift_reward_mean_warning": -0.54,
            "drift_positive_trial_rate": -0.27,
            "drift_positive_trial_rate_warning": -0.27,
            "drift_reward_distribution": divergence,
            "drift_reward_distribution_warning": divergence,
        },
        abs=1e-4,
    )
    assert result.comparison.startswith(
        "a.json and b.json cannot be compared: mean reward 0.3600 against 0.9000; positive trials 18.0 % against 45.0 %; "
        f"reward distribution {divergence:.4f} (required at most 0.05)"
    )
    with pytest.raises(
        GateError, match=r"^a.json and b.json cannot be compared: .*What to do: train both runs on the same RL data"
    ):
        result.raise_if_critical()
    assert result.comparison in format_table(result).splitlines()
    assert 'class="comparison"' in report_html(result)


def test_small_differences_ask_for_care():
    result = check(data(5, accuracy=0.9), reference=data(5, source="b.json"), thresholds={"drift_reward_distribution": 9.0})
    # 45 % of the trials at 1.9 instead of 2.0: the mean differs by 0.045, the distribution by a whole bin's worth
    assert set(drift_checks(result)) == {"drift_reward_distribution_warning"}
    assert result.comparison.startswith("a.json and b.json can be compared with care: reward distribution ")


def test_shared_queries_and_pools():
    first, second = data(5), data(5, queries=range(60, 120), source="b.json")
    # 40 of the smaller set's 60 queries are in the other
    assert shared(first, second) == {"shared_queries": 40 / 60, "same_pools": 1.0}
    assert shared(second, first) == shared(first, second)
    other_pool = [replace(group, pool=tuple(range(2000, 2064))) for group in second.groups[:10]]
    assert shared(first, replace(second, groups=(*other_pool, *second.groups[10:]))) == {
        "shared_queries": 40 / 60,
        "same_pools": 30 / 40,
    }
    apart = check(data(5), reference=data(5, queries=range(500, 600), source="b.json"))
    assert drift_checks(apart) == {"shared_queries_warning": "0.0000", "same_pools_warning": "0.0000"}


def test_an_empty_side_is_never_comparable():
    empty = replace(data(5), groups=tuple(replace(group, trials=()) for group in data(5).groups))
    for result in (check(empty, reference=data(5, source="b.json")), check(data(5), reference=replace(empty, source="b.json"))):
        assert "cannot be compared: " in result.comparison
        assert "nan" not in {check.observed for check in result.checks if check.passed}
        assert all(math.isfinite(value) for value in result.metrics.values())


def test_partition_of_rewards():
    assert [i for i, w in enumerate(reward_partition(np.array([math.nextafter(0.3, 0)]), (0.0, 2.0))["weights"]) if w] == [3]
    partition = reward_partition(np.array([0.0, 0.05, 1.3 + 0.3, 2.0, math.nan]), (0.0, 2.0))
    assert partition["bins"] == pytest.approx([i / 10 for i in range(22)])
    assert [(i, w) for i, w in enumerate(partition["weights"]) if w] == [(0, 0.5), (16, 0.25), (20, 0.25)]
