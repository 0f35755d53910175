"""What others keep in the same MLflow experiment, on our runs, and in MLflow's bin, is never taken for ours."""

import mlflow
import pytest
import torch
from helpers.projects import run_step
from mlflow import MlflowClient

from lever_mlflow.exceptions import MissingRunError, ParameterError
from lever_mlflow.pipeline.comparison import chosen_evaluations
from lever_mlflow.pipeline.evaluation import evaluate_step, find_evaluation, read_evaluation
from lever_mlflow.pipeline.grpo import candidates_of, grpo_step
from lever_mlflow.pipeline.rollout import find_rl_data, read_rl_data, rollout_step
from lever_mlflow.runs.metrics import epoch_metrics
from lever_mlflow.runs.models import checkpoints_of, log_checkpoints
from lever_mlflow.runs.steps import finished_run, project_run
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, RolloutSettings, RoundSettings

SMALL = EvalSettings(sizes=(3,), shots=(1,), n_selection=3, n_oracle=0, pool_size=4)
NAME = "lever-selector-mini-mini"


@pytest.fixture
def trained(local, good_rl_data, tmp_path):
    """A context, and a GRPO run of two epochs in it."""
    line = local(register="always")
    data = find_rl_data(line, good_rl_data)
    torch.manual_seed(0)
    save_selector(tmp_path / "start", PointerSelector().eval(), {})
    settings = GrpoSettings(kl_beta=0.12, epochs=2)
    return line, run_step(lambda: grpo_step(line, data, str(tmp_path / "start"), settings, RoundSettings(rounds=1))).info.run_id


def spoil(run_id):
    """Logs in a run what others might: metrics of all names and steps, tags, parameters, artifacts."""
    client = MlflowClient()
    for name in ("train/loss", "val/expected_reward", "val/mine", "loss", "accuracy", "system/cpu", "epoch/accuracy", "train/"):
        for step in (0, 1, 7, -1):
            client.log_metric(run_id, name.rstrip("/") if name == "train/" else name, 99.0, step=step)
    client.log_param(run_id, "owner", "somebody")
    for name in ("lever.mine", "step", "key", "mlflow.log-model.history"):
        client.set_tag(run_id, name, "[]")
    client.log_text(run_id, "not ours", "epochs/1.json")
    client.log_text(run_id, "not ours", "chart.png")


def test_what_others_log_on_our_runs_is_not_read(trained):
    line, grpo_run = trained
    before, models = epoch_metrics(grpo_run), candidates_of(grpo_run)
    with mlflow.start_run(run_name="grpo beta 0.12"):  # a run of somebody else
        mlflow.log_params({"kl_beta": 0.12})
        mlflow.log_metrics({"train/loss": 1.0, "accuracy": 1.0}, step=0)
        mlflow.set_tag("lever", "grpo")
    spoil(grpo_run)
    assert epoch_metrics(grpo_run) == before
    assert list(before) == [1, 2]
    assert candidates_of(grpo_run) == models
    evaluation = run_step(lambda: evaluate_step(line, grpo_run, SMALL)).info.run_id
    spoil(evaluation)
    with project_run("test"):
        assert find_evaluation(line, 0.12) == evaluation
        assert chosen_evaluations([evaluation[:8]]) == [evaluation]
    assert [row.epoch for row in read_evaluation(evaluation).epochs] == [1, 2]
    assert all("mine" not in name for row in read_evaluation(evaluation).epochs for name in row.metrics)


@pytest.mark.slow
def test_a_training_in_the_bin_is_no_input_and_nothing_is_registered_from_it(trained, caplog):
    line, grpo_run = trained
    evaluation = run_step(lambda: evaluate_step(line, grpo_run, SMALL)).info.run_id
    client = MlflowClient()
    assert [str(version.version) for version in client.search_model_versions(f"name = '{NAME}'")] == ["1"]
    client.delete_registered_model(NAME)
    client.delete_run(grpo_run)
    with pytest.raises(MissingRunError, match=f"run {grpo_run} is in MLflow's bin; `mlflow runs restore --run-id {grpo_run}`"):
        evaluate_step(line, grpo_run, SMALL)
    with project_run("test"):
        assert find_evaluation(line, 0.12) == evaluation
    assert f"beta 0.12: nothing is registered, as its training is gone: run {grpo_run} is in MLflow's bin" in caplog.text
    assert client.search_registered_models() == []
    client.delete_run(evaluation)
    with project_run("test"), pytest.raises(MissingRunError, match=f"run {evaluation} is in MLflow's bin"):
        chosen_evaluations([evaluation])


def test_a_step_in_the_bin_is_not_reused(local):
    line = local()
    settings = RolloutSettings(n_queries=2, beam_width=0, samples_per_temperature=0, random_pointers=2)
    step = rollout_step(line, settings)
    run_id = run_step(lambda: step).info.run_id
    with project_run("test"):
        assert finished_run(step) == run_id
        MlflowClient().delete_run(run_id)
        assert finished_run(step) is None
    for reference in (run_id, f"runs:/{run_id}"):
        with pytest.raises(MissingRunError, match=f"run {run_id} is in MLflow's bin"):
            read_rl_data(line, reference)


@pytest.mark.slow
def test_a_registered_model_for_something_else_is_refused_before_any_work(trained):
    line, grpo_run = trained
    MlflowClient().create_registered_model(NAME, tags={"made_for": "dataset=0,vlm=0,encoder=0,profile=0"})
    with pytest.raises(
        ParameterError, match=f"model_name={NAME}: that registered model was made for another dataset and vlm and"
    ):
        evaluate_step(line, grpo_run, SMALL)


def test_190_epochs_are_listed_whole(mlflow_store):
    """The ids of so many models take more characters than a tag holds."""
    models = {epoch: f"m-{epoch:032d}" for epoch in range(1, 191)}
    assert sum(map(len, models.values())) > 6_000
    with project_run("test") as run:
        log_checkpoints(models)
    assert checkpoints_of(run.info.run_id) == models
