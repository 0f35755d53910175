"""The gate by SQL: the same verdict, checks and figures as by pandas, and nothing of the data in memory."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from lever_mlflow.gate import check
from lever_mlflow.gate.stores import opened_store
from lever_mlflow.gate.totals import Moments
from lever_mlflow.trials import parquet
from lever_mlflow.trials.converting import convert
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import Group, RLData, Trial, save_rl_data

METHODS = ("beam", "sample", "retrieval", "someone's")


def group(query_id, n_right, *, accuracy=1.0, pool=range(1000, 1064), n=10, first=0, image_id=None):
    trials = [Trial((first, i + 1), float(i < n_right), accuracy * (i < n_right), METHODS[i % 4], record={}) for i in range(n)]
    return Group(query_id, tuple(pool), tuple(trials), {} if image_id is None else {"image_id": image_id})


def data(*groups, **dropped):
    return RLData(tuple(groups), "d" * 32, "pools", dropped, {}, "rl.json")


GOOD = data(*(group(i, 4 * (i % 2)) for i in range(60)))
CASES = {
    "good": GOOD,
    "dropped": replace(GOOD, dropped={"eval_failed": 500, "left_out": 30, "other_item": 9}),
    "bad": data(
        *(group(i, 4 * (i % 2), accuracy=0.0, pool=[i, i + 1, *range(1000, 1012)], image_id=3) for i in range(50)),
        *(group(i, 0, first=70, accuracy=7.5) for i in range(60, 70)),
        *(group(i, 8, first=1, accuracy=7.5) for i in range(48, 50)),
        group(99, 0, n=0),
    ),
    "no trials": data(group(1, 0, n=0)),
}
FAILED = {
    "good": {"gen_method_known"},
    "dropped": {"items_as_recorded", "items_left_out_warning", "evaluations_used_warning"},
    "bad": {"scores_agree", "pointer_in_pool", "pointer_distinct", "reward_range", "query_not_in_pool", "image_not_in_pool"}
    | {"query_id_unique", "pool_size_warning", "trials_per_query", "query_reward_mean_not_null", "drift_reward_distribution"},
    "no trials": {"trial_count", "reward_mean", "evaluation_count", "positive_query_rate"},
}


def without_examples(result):
    """The result without the values that failed: where several rows repeat an id, SQL has them in another order."""
    checks = (replace(c, observed=c.observed.split(" (")[0]) if c.name == "query_id_unique" else c for c in result.checks)
    return replace(result, checks=tuple(checks))


@pytest.mark.parametrize("case", CASES)
def test_sql_says_of_every_expectation_what_pandas_says(case):
    reference = None if case == "no trials" else GOOD
    by_pandas, by_sql = (check(CASES[case], engine=engine, reference=reference) for engine in ("pandas", "sql"))
    assert without_examples(by_sql) == without_examples(by_pandas)  # checks with their texts, figures and verdict
    assert [*by_sql.gx_results] == [*by_pandas.gx_results]
    json.dumps(by_sql.to_json(), allow_nan=False)
    failed = {check.name for check in by_sql.checks if not check.passed}
    assert failed >= FAILED[case]
    assert by_sql.verdict == ("pass" if case == "good" else "critical")


def test_blocks_of_a_file_add_up_to_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_TABLE_ROWS", 70)
    save_rl_data(tmp_path / "rl.json", GOOD.groups, {})
    convert(tmp_path / "rl.json", tmp_path / "rl.parquet")
    whole = check(load_rl_data(tmp_path / "rl.json", source="x"))
    stored = load_rl_data(tmp_path / "rl.parquet", held=False, source="x")
    assert len(list(stored.groups.blocks())) > 5
    for engine in ("pandas", "sql"):
        by_block = check(stored, engine=engine)
        assert by_block.checks == whole.checks
        assert by_block.metrics == pytest.approx(whole.metrics, rel=1e-12)
        assert by_block.methods[0].reward_mean == pytest.approx(whole.methods[0].reward_mean, rel=1e-12)
        assert (by_block.histogram, by_block.positives_per_query) == (whole.histogram, whole.positives_per_query)
    assert whole.metrics["data/reward_mean"] == pytest.approx(0.4)  # half of the queries have 4 of 10 trials at 2.0
    assert whole.positives_per_query == ((0, 30), (4, 30))


def test_moments_of_parts_are_those_of_the_whole():
    moments = Moments()
    for part in ([1.0, 2.0], [], [4.0], [9.0, 9.0]):
        moments.add(pd.Series(part, dtype=float))
    # the mean is 25 / 5; the squared distances are 16 + 9 + 1 + 16 + 16 = 58
    assert (moments.count, moments.mean) == (5, 5.0)
    assert moments.std == pytest.approx(math.sqrt(58 / 4))
    assert math.isnan(Moments().mean)


def test_sql_keeps_missing_values_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.template", "of-this-process-")
    with opened_store("sql") as store:
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith("of-this-process-")  # by which a later command removes it where this one is killed
        store.add("t", pd.DataFrame({"a": [1.0, math.nan], "b": pd.Series(["x", None], dtype=object)}))
        store.add("t", pd.DataFrame({"a": [math.nan], "b": pd.Series(["y"], dtype=object)}))
        assert (store.n_rows("t"), store.n_missing("t", "a"), store.n_missing("t", "b")) == (3, 2, 1)
    assert list(tmp_path.iterdir()) == []
