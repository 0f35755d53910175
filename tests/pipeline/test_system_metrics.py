"""System metrics of MLflow, whose steps are counted from 0, beside the metrics of epochs, whose steps are counted from 1."""

import time

import mlflow
import pytest
import torch
from helpers.projects import run_step

from lever_mlflow.pipeline.evaluation import evaluate_step, read_evaluation
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.rollout import find_rl_data
from lever_mlflow.runs.metrics import epoch_metrics, system_metrics
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, RoundSettings

CPU = "system/cpu_utilization_percentage"


@pytest.fixture
def quick_sampling(monkeypatch):
    """System metrics are sampled every 50 milliseconds, and nobody has asked for them."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    return monkeypatch


def sampled(device):
    """Returns the steps of a system metric of a run that worked on a device for half a second."""
    with mlflow.start_run() as run, system_metrics(run.info.run_id, device):
        time.sleep(0.5)
    return [metric.step for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, CPU)]


def test_system_metrics_are_logged_on_a_gpu_and_not_on_a_cpu(mlflow_store, quick_sampling):
    steps = sampled("cuda")
    assert len(steps) >= 2
    assert steps == list(range(len(steps)))
    assert sampled("cpu") == []


def test_what_the_user_has_set_decides(mlflow_store, quick_sampling):
    quick_sampling.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    assert sampled("cuda") == []
    quick_sampling.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    steps = sampled("cuda")
    assert len(steps) >= 2
    assert steps == list(range(len(steps)))  # by one monitor, not by two
    assert sampled("cpu")


@pytest.mark.slow
def test_training_and_evaluation_take_no_sample_for_an_epoch(local, quick_sampling, good_rl_data, tmp_path):
    quick_sampling.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    line = local()
    data = find_rl_data(line, good_rl_data)
    torch.manual_seed(0)
    save_selector(tmp_path / "start", PointerSelector().eval(), {})
    settings = GrpoSettings(kl_beta=0.12, epochs=2)
    grpo = run_step(lambda: grpo_step(line, data, str(tmp_path / "start"), settings, RoundSettings(rounds=1)))
    (training,) = mlflow.search_runs(filter_string="tags.`lever.step` = 'grpo-round'", output_format="list")
    for run in (grpo, training):
        assert mlflow.MlflowClient().get_metric_history(run.info.run_id, CPU)[0].step == 0
        epochs = epoch_metrics(run.info.run_id)
        assert list(epochs) == [1, 2]
        assert not [name for metrics in epochs.values() for name in metrics if name.startswith("system/")]
    small = EvalSettings(sizes=(3,), shots=(1,), n_selection=3, n_oracle=0, pool_size=4)
    evaluation = run_step(lambda: evaluate_step(line, grpo.info.run_id, small))
    assert [epoch.epoch for epoch in read_evaluation(evaluation.info.run_id).epochs] == [1, 2]
