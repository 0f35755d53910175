"""Two processes under ``accelerate launch`` give the metrics and weights of one; this file is also what they run."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.projects import ROOT
from helpers.small_data import learnable_groups
from mlflow import MlflowClient

from lever_mlflow.data.candidate_pools import random_pool
from lever_mlflow.distributed import follow, join, release
from lever_mlflow.evaluation.answering import Answering
from lever_mlflow.evaluation.policies import RANDOM, ZERO_SHOT, random_picks
from lever_mlflow.evaluation.records import REPORT
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rl_data import RLData

pytestmark = pytest.mark.slow

LAUNCH = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
SMALL = {"epochs": 2, "lr": 1e-4, "batch_size": 6}
CASES = {
    "rce": RceSettings(**SMALL),
    "rce, ranks, cosine": RceSettings(**SMALL, normalize_rewards="rank", lr_scheduler="cosine", state_update=True),
    "grpo": GrpoSettings(**SMALL),
    "grpo, batch std": GrpoSettings(**{**SMALL, "batch_size": 12}, scale_rewards="batch", adaptive_beta=True, kl_beta=0.5),
    "grpo, masked, entropy": GrpoSettings(**SMALL, mask_zero_std_groups=True, entropy_coef=0.1, freeze_backbone=False),
    "grpo, one query": GrpoSettings(**{**SMALL, "batch_size": 1}),
}


def problem():
    """Makes 39 queries, 31 of them for training, so that the last step of six has one; pools and groups differ in size."""
    features_SD, groups = learnable_groups(39)
    uneven = [
        replace(group, pool=group.pool[: 12 - i % 3], trials=tuple(t for t in group.trials[i % 4 :] if max(t.pointer) < 10))
        for i, group in enumerate(groups)
    ]
    flat = [replace(g, trials=tuple(replace(t, correct=0.0, accuracy=0.0) for t in g.trials)) for g in uneven[:9]]
    return features_SD, RLData((*flat, *uneven[9:]), "digest", "pools", {}, {}, "x.json")


def train(settings):
    """Trains, and returns the metrics of each epoch and the weights after the last one."""
    features_SD, data = problem()
    if isinstance(settings, RceSettings):
        epochs = train_rce(data, features_SD, settings, seed=3)
    else:
        torch.manual_seed(1)
        epochs = train_grpo(PointerSelector(feature_dim=16), data, features_SD, settings, seed=3)
    history = []
    for epoch in epochs:
        history.append({**epoch.metrics, "train/seconds": 0.0})
    weights = {name: tensor.tolist() for name, tensor in epoch.state.weights.items()}
    return history, weights


def launch(*arguments, **environment):
    """Runs a script or module by ``accelerate launch``, and returns the finished process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, **environment}
    return subprocess.run(
        [*LAUNCH, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Runs all cases in two processes, and returns their results and the folder of their files."""
    folder = tmp_path_factory.mktemp("distributed")
    result = launch(__file__, str(folder / "results.json"), str(folder))
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "results.json").read_text()), folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_metrics_of_one(launched, case):
    history, weights = train(CASES[case])
    processes, other_history, other_weights = launched[0][case]
    assert processes == 2
    assert [sorted(metrics) for metrics in other_history] == [sorted(metrics) for metrics in history]
    for metrics, other in zip(history, other_history, strict=True):
        for name, value in metrics.items():
            assert other[name] == pytest.approx(value, abs=1e-5, rel=1e-5), name
    for name, tensor in weights.items():
        np.testing.assert_allclose(other_weights[name], tensor, atol=1e-4, err_msg=name)


def evaluation_records(cache_dir):
    """Returns the records of 41 questions without and with random demonstrations, as a table."""
    resources = Resources(device="cpu", cache_dir=cache_dir)
    questions = resources.val[:41]
    pools = np.stack([random_pool(resources.train, question, 8, 0) for question in questions])
    picks = {ZERO_SHOT: np.zeros((41, 0), int), RANDOM: random_picks(questions, pools, 2, 0)}
    answering = Answering(resources.train, partial(resources.answer, description="test"), resources.language_model.key)
    return answering.records(questions, REPORT, picks, (1, 2)).frame


def stored_answers(cache_dir):
    with closing(sqlite3.connect(cache_dir / "answers.sqlite")) as connection:
        return dict(connection.execute("SELECT key, text FROM answers"))


def test_two_processes_give_the_records_of_one(launched, tmp_path):
    _, cache_dir = launched
    records, other = evaluation_records(tmp_path), pd.read_parquet(cache_dir / "records.parquet")
    pd.testing.assert_frame_equal(other.assign(picks=other.picks.map(list)), records)
    assert stored_answers(cache_dir) == stored_answers(tmp_path)
    assert len(set(records.prompt)) > 100


@pytest.fixture
def place(mlflow_store, cache_dir):
    """Returns environment variables for runs on a fresh store."""
    return {"MLFLOW_TRACKING_URI": mlflow_store, "MLFLOW_EXPERIMENT_NAME": "test", "LEVER_MLFLOW_CACHE": str(cache_dir)}


def test_an_entry_point_in_two_processes_is_one_run(place, good_rl_data):
    result = launch("-m", "entrypoints.rce", "--rl_data", good_rl_data, "--epochs", "2", "--device", "cpu", **place)
    assert result.returncode == 0, result.stderr
    for line in ("rce: running", "validate: running"):  # the leading process alone says it
        assert result.stderr.splitlines().count(line) == 1
    runs = mlflow.search_runs(filter_string="tags.`lever.step` = 'rce'", output_format="list")
    assert [run.info.status for run in runs] == ["FINISHED"]
    history = MlflowClient().get_metric_history(runs[0].info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2]
    assert len(MlflowClient().search_logged_models([runs[0].info.experiment_id])) == 2


def test_bad_input_ends_all_processes_with_one_line_and_a_failed_run(place):
    result = launch("-m", "entrypoints.rce", "--rl_data", "/nowhere.json", "--device", "cpu", **place)
    assert result.returncode != 0
    assert re.findall("^error: .*", result.stderr, re.MULTILINE)[0].startswith("error: /nowhere.json: no such file")
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"


if __name__ == "__main__":
    results = {name: (join("cpu").num_processes, *train(settings)) for name, settings in CASES.items()}
    if join("cpu").is_main_process:
        Path(sys.argv[1]).write_text(json.dumps(results))
        evaluation_records(Path(sys.argv[2])).to_parquet(Path(sys.argv[2]) / "records.parquet")
        release(join("cpu"))
    else:
        follow(join("cpu"))
