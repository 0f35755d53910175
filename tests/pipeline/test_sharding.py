"""Rollouts in shards, each recorded by a run of its own: merged, they are the rollout that one run records."""

import shutil
from dataclasses import replace

import mlflow
import pytest
from helpers.projects import run_step

from lever_mlflow.exceptions import DataError, GateError, ParameterError
from lever_mlflow.pipeline import rollout
from lever_mlflow.pipeline.merging import merge_shards_step, merge_step
from lever_mlflow.pipeline.rollout import read_rl_data, recorded_settings, rollout_step
from lever_mlflow.runs.artifacts import artifact, list_artifacts
from lever_mlflow.runs.search import find_run
from lever_mlflow.runs.tags import Tag, run_tags
from lever_mlflow.settings import GateSettings, RolloutSettings
from lever_mlflow.trials.sharding import Shard
from lever_mlflow.trials.stored import StoredGroups

SETTINGS = RolloutSettings(n_queries=52, pool_size=18, beam_width=2, samples_per_temperature=1, random_pointers=1)


def record(context, number=1, of=1, settings=SETTINGS):
    """Returns the id of the run of a rollout, or of a shard of it."""
    return run_step(lambda: rollout_step(context, settings, shard=Shard(number, of))).info.run_id


@pytest.mark.slow
def test_merged_shards_are_the_rollout_of_one_run(local, tmp_path):
    context = local()
    shards = [record(context, number, 3) for number in (1, 2, 3)]
    with mlflow.start_run():  # no step takes a shard for the rollout
        assert find_run("rollout", {**context.same_resources(), Tag.ROUND: 1}) is None
    assert all("rl_data.parquet" in list_artifacts(shard, "") for shard in shards)
    parts = [read_rl_data(context, shard) for shard in shards]
    assert [len(part.groups) for part in parts] == [17, 17, 18]  # 52 * 1 // 3 = 17, and 52 * 2 // 3 = 34
    assert [part.meta["shard"] for part in parts] == ["1/3", "2/3", "3/3"]

    for i, shard in enumerate(shards):  # on another machine they are files, in whatever order
        shutil.copy(artifact(shard, "rl_data.parquet"), tmp_path / f"{'bca'[i]}.parquet")
    whole = read_rl_data(context, record(context))
    for engine, references in (("sql", [str(tmp_path)]), ("pandas", shards[::-1])):
        line = local(gate=GateSettings(gate_engine=engine))
        run = run_step(lambda line=line, references=references: merge_shards_step(line, references))
        merged = read_rl_data(line, run.info.run_id)
        assert isinstance(merged.groups, StoredGroups) == (engine == "sql")
        assert merged.digest == whole.digest == run.data.tags["lever.rl_data_digest"]
        assert list(merged.groups) == list(whole.groups)
        assert run.data.tags["lever.gate"] == "warning"  # in half a hundred queries of so few pointers
        assert run.data.tags["mlflow.note.content"].startswith("3 shards: 52 queries, ")
        assert "shard" not in merged.meta
        assert recorded_settings(merged) == recorded_settings(whole) == SETTINGS  # of further rounds

    with pytest.raises(DataError, match=r"is shard 1/3, and of these 3 shards 2 is not named; record them with rollout"):
        merge_shards_step(context, [shards[0], shards[2]])
    with pytest.raises(ParameterError, match="parts and shards: both are given"):
        merge_shards_step(context, shards, ["a.json"])
    with pytest.raises(DataError, match=r"is shard 1/3 of a rollout; name all its shards as shards=, not as parts="):
        run_step(lambda: merge_step(context, shards[:2]))
    strict = local(gate=GateSettings(thresholds={"query_count": 53}))
    with pytest.raises(GateError, match="query_count: 52"):
        run_step(lambda: merge_shards_step(strict, shards))


def test_trials_are_written_as_they_are_recorded(local, monkeypatch):
    context = local()
    whole = run_step(lambda: rollout_step(context, SETTINGS))
    monkeypatch.setattr(rollout, "_QUERIES_AT_A_TIME", 20)
    monkeypatch.setattr(rollout, "_MOST_TRIALS_IN_JSON", 150)
    sizes, recorded = [], rollout.rollout
    monkeypatch.setattr(rollout, "rollout", lambda queries, *a, **k: sizes.append(len(queries)) or recorded(queries, *a, **k))
    in_chunks = run_step(lambda: rollout_step(context, SETTINGS))
    assert sizes == [20, 20, 12]
    assert "rl_data.parquet" in list_artifacts(in_chunks.info.run_id, "")
    assert run_tags(in_chunks.info.run_id)[Tag.RL_DATA_DIGEST] == run_tags(whole.info.run_id)[Tag.RL_DATA_DIGEST]
    assert rollout_metrics(in_chunks) == rollout_metrics(whole)


def rollout_metrics(run):
    metrics = mlflow.get_run(run.info.run_id).data.metrics
    return {name: value for name, value in metrics.items() if name.startswith(("rollout/", "pool/"))}


def test_shards_that_there_are_not_are_refused(local):
    with pytest.raises(ParameterError, match="shard=4, but n_shards=3; choose a shard from 1 to 3"):
        rollout_step(local(), SETTINGS, shard=Shard(4, 3))
    with pytest.raises(ParameterError, match="n_shards=3, but n_queries=2; choose at most one shard for each query"):
        rollout_step(local(), replace(SETTINGS, n_queries=2), shard=Shard(1, 3))
