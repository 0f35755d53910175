"""An experiment whose files were moved, in part or altogether, while MLflow's database stayed: what is gone is made again."""

import shutil
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from helpers.projects import run_step
from mlflow import MlflowClient

from lever_mlflow.exceptions import CheckpointError, DataError, PromotionError
from lever_mlflow.pipeline.baselines import baselines_step
from lever_mlflow.pipeline.evaluation import ensure_evaluated, find_evaluation
from lever_mlflow.pipeline.grpo import find_grpo, grpo_step
from lever_mlflow.pipeline.promotion import promote_step
from lever_mlflow.pipeline.rollout import find_rl_data, rl_data_of_run, rollout_step
from lever_mlflow.pipeline.training import find_start, rce_step, start_of_run
from lever_mlflow.registry.versions import find_version
from lever_mlflow.runs.steps import ensure, project_run
from lever_mlflow.runs.tags import run_tags
from lever_mlflow.serving.logged_models import checkpoint_folder
from lever_mlflow.settings import (
    EvalSettings,
    GrpoSettings,
    PromotionSettings,
    RceSettings,
    RolloutSettings,
    RoundSettings,
)

pytestmark = pytest.mark.slow

ROLLOUT = RolloutSettings(n_queries=40)
EVALUATION = EvalSettings(sizes=(4,), shots=(1,), n_selection=3, n_oracle=0, random_draws=1)
GRPO, ONE_ROUND = GrpoSettings(kl_beta=0.12, epochs=1, lr=1e-3), RoundSettings(rounds=1)
STEPS = ("rollout", "rce", "baselines", "grpo", "evaluate")


def experiment(line):
    """Runs the steps of an experiment of one beta, or reuses them, and returns the ids of their runs by step."""
    with project_run("experiment"):
        rollout = ensure(rollout_step(line, ROLLOUT))
        data = rl_data_of_run(line, rollout)
        rce = ensure(rce_step(line, data, RceSettings(epochs=1)))
        grpo = ensure(grpo_step(line, data, start_of_run(rce), GRPO, ONE_ROUND))
        baselines = ensure(baselines_step(line, EVALUATION))
        return dict(zip(STEPS, (rollout, rce, baselines, grpo, ensure_evaluated(line, grpo, EVALUATION)), strict=True))


def folder_of(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def folder_of_best(run_id):
    return Path(mlflow.get_logged_model(run_tags(run_id)["best_model"]).artifact_location.removeprefix("file://"))


def version():
    return str(MlflowClient().get_model_version_by_alias("lever-selector-mini-mini", "kl-0-12").version)


@pytest.fixture
def line(local):
    return local(gate=replace(local().gate, on_bad_data="warn"), register="always")


def test_an_experiment_whose_artifact_folder_was_moved_runs_again(line, tmp_path, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    first = experiment(line)
    assert experiment(line) == first
    start = start_of_run(first["rce"])
    (tmp_path / "artifacts").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=f"run {first['grpo']}: its artifact facts.json is gone; restore the folder"):
        find_grpo(line, first["grpo"], 0.12)
    with pytest.raises(CheckpointError, match="the files of this model are gone; run the training again with rerun=true"):
        checkpoint_folder(start)
    caplog.clear()
    second = experiment(line)
    assert not set(first.values()) & set(second.values())
    for step in ("rollout", "rce", "baselines"):  # the others are steps of their own, as they start from another model
        assert f"(run {first[step]}) is not used again: its files are gone" in caplog.text
    assert version() == "2"
    assert experiment(line) == second


def test_a_lost_checkpoint_or_version_is_made_again_and_the_rest_is_reused(line, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    first = experiment(line)
    client = MlflowClient()
    model_id = find_version("lever-selector-mini-mini", 0.12).source.removeprefix("models:/")
    shutil.rmtree(Path(mlflow.get_logged_model(model_id).artifact_location.removeprefix("file://")))
    promotion = PromotionSettings(force=True)
    with pytest.raises(PromotionError, match=f"of model {model_id}, .* is gone, so it cannot be served; run the evaluate step"):
        run_step(lambda: promote_step(line, 0.12, promotion))
    second = experiment(line)  # the evaluation logged the model of the version
    assert {step for step in STEPS if first[step] != second[step]} == {"evaluate"}
    assert version() == "2"
    run_step(lambda: promote_step(line, 0.12, promotion))
    assert str(client.get_model_version_by_alias("lever-selector-mini-mini", "champion").version) == "2"
    shutil.rmtree(folder_of_best(second["rce"]))
    with project_run("later"):  # the start is gone, which the evaluation of the GRPO run needs
        data = find_rl_data(line, "auto")
        start = find_start(line, "auto", data)
        again = ensure(grpo_step(line, data, start, GRPO, ONE_ROUND))
        assert find_grpo(line, "auto", 0.12) == again != second["grpo"]
        assert find_evaluation(line, 0.12) == second["evaluate"]
    assert version() == "2"
