"""The step that merges RL data, on the embedded default."""

import json
from pathlib import Path

import mlflow
import pytest
from helpers.projects import run_step

from lever_mlflow.exceptions import GateError, ParameterError
from lever_mlflow.pipeline import rollout
from lever_mlflow.pipeline.merging import merge_step
from lever_mlflow.pipeline.rollout import read_rl_data
from lever_mlflow.settings import GateSettings
from lever_mlflow.trials.converting import convert


@pytest.fixture
def halves(good_rl_data, tmp_path):
    """The queries of good RL data in two files, in the second one with a trial that failed and an older field."""
    content = json.loads(Path(good_rl_data).read_text())
    meta, keys = content.pop("_meta", {}), list(content)
    middle = len(keys) // 2
    failed = content[keys[-1]]["pointer_candidates"][0]
    failed |= {"eval_failed": True, "vqa_correct": None, "pointer_pos": failed["pointer"]}
    for name, part in (("a", keys[:middle]), ("b", keys[middle:])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"_meta": meta, **{key: content[key] for key in part}}))
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_merged_data_are_those_of_the_parts_and_pass_the_gate(local, halves, good_rl_data):
    context = local()
    run = run_step(lambda: merge_step(context, halves))
    data, whole = read_rl_data(context, run.info.run_id), read_rl_data(context, good_rl_data)
    assert [(g.query_id, g.pool) for g in data.groups] == [(g.query_id, g.pool) for g in whole.groups]
    expected = [list(group.trials) for group in whole.groups]
    last = read_rl_data(context, halves[1]).groups[-1].query_id
    assert [list(g.trials) for g in data.groups] == [
        trials[1:] if group.query_id == last else trials for group, trials in zip(whole.groups, expected, strict=True)
    ]
    assert data.dropped == {"eval_failed": 1}
    assert [entry["source"] for entry in data.meta["merged"]] == halves
    assert run.data.tags["lever.gate"] == "pass"
    n_trials = sum(map(len, expected)) - 1
    assert run.data.tags["mlflow.note.content"] == f"2 parts: {len(data.groups)} queries, {n_trials:,} trials"


def test_many_trials_are_merged_into_parquet_whatever_form_the_parts_have(local, halves, tmp_path, monkeypatch):
    context = local()
    small = run_step(lambda: merge_step(context, halves))
    convert(halves[1], tmp_path / "b.parquet")
    monkeypatch.setattr(rollout, "_MOST_TRIALS_IN_JSON", 538)
    large = run_step(lambda: merge_step(local(item_order="file"), [halves[0], str(tmp_path / "b.parquet")]))
    names = [{item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)} for run in (small, large)]
    assert [{name for name in of_run if name.startswith("rl_data.")} for of_run in names] == [
        {"rl_data.json"},
        {"rl_data.parquet"},
    ]
    of_json, of_parquet = (read_rl_data(context, run.info.run_id) for run in (small, large))
    assert of_parquet.groups == of_json.groups
    assert of_parquet.digest == of_json.digest == large.data.tags["lever.rl_data_digest"]
    assert of_parquet.source == f"runs:/{large.info.run_id}/rl_data.parquet"
    assert read_rl_data(context, large.info.run_id, keep_all=True).dropped == {"eval_failed": 1}


def test_the_gate_judges_the_whole(local, halves):
    context = local(gate=GateSettings(thresholds={"query_count": 10_000}))
    with pytest.raises(GateError, match=r"query_count: 60 \(required: at least 1e\+04\)"):
        run_step(lambda: merge_step(context, halves))
    assert mlflow.last_active_run().info.status == "FAILED"


def test_one_part_is_none_to_merge(local, halves):
    with pytest.raises(ParameterError, match="parts: name at least two RL data to merge"):
        merge_step(local(), halves[:1])
