"""MLFLOW_RUN_ID names the run that ``mlflow run`` made for this command, or it is refused."""

import mlflow
import pytest
from mlflow import MlflowClient

from lever_mlflow.cli.commands import validate
from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.runs.steps import Step, project_run, run_here


@pytest.fixture
def make_run(mlflow_store, monkeypatch):
    """make_run(**tags) makes a run that is RUNNING, names it in the environment and returns its id."""

    def make(**tags):
        client = MlflowClient()
        experiment = client.get_experiment_by_name("test").experiment_id
        run = client.create_run(experiment, tags={name.replace("_", "."): text for name, text in tags.items()})
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        return run.info.run_id

    return make


def step():
    return Step("rce", "rce", {"epochs": 5}, {}, lambda: None)


@pytest.mark.parametrize("tags", [{"mlflow_project_entryPoint": "rce"}, {}])
def test_a_run_made_for_the_command_is_gone_on_in(make_run, tags):
    run_id = make_run(**tags)
    with project_run("rce") as run:
        run_here(step())
    assert run.info.run_id == run_id
    assert mlflow.get_run(run_id).data.params == {"epochs": "5"}


def refusal(name="rce"):
    before = {run.info.run_id: run.data for run in mlflow.search_runs(output_format="list")}
    with pytest.raises(MissingRunError, match="unset MLFLOW_RUN_ID") as error, project_run(name):
        pass
    assert {run.info.run_id: run.data for run in mlflow.search_runs(output_format="list")}.keys() == before.keys()
    return str(error.value)


def test_a_run_for_another_entry_point_is_refused(make_run):
    make_run(mlflow_project_entryPoint="grpo")
    assert "was made for the entry point grpo, and rce would write into it" in refusal()


def test_a_run_that_has_ended_or_holds_a_result_is_refused(make_run):
    run_id = make_run()
    MlflowClient().set_terminated(run_id)
    assert "has ended (FINISHED)" in refusal()
    make_run(lever_key="k")
    assert "holds the result of a step already" in refusal()


def test_a_run_that_is_gone_is_refused(make_run, monkeypatch):
    run_id = make_run()
    MlflowClient().delete_run(run_id)
    assert f"MLFLOW_RUN_ID={run_id}: run {run_id} is in MLflow's bin" in refusal()
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert "not found" in refusal()


def test_a_run_with_another_parameter_is_refused_and_one_typed_otherwise_is_not(make_run, capsys):
    """What ``mlflow run`` has recorded as typed is compared with what the command takes it for."""
    from lever_mlflow.cli.launching import launch

    for typed, refused in (("5", True), ("07", False)):
        run_id = make_run(mlflow_project_entryPoint="validate")
        MlflowClient().log_param(run_id, "seed", typed)
        with pytest.raises(SystemExit):
            launch(validate, ["--seed", "7", "--rl_data", "/nowhere.json"])
        error = capsys.readouterr().err.splitlines()[-1]
        assert ("that run has seed=5, but this command has 7" in error) is refused
        assert ("/nowhere.json: no such file" in error) is not refused


def test_a_value_that_mlflow_run_has_quoted_for_the_shell_is_the_same(make_run, capsys):
    from lever_mlflow.cli.launching import launch

    run_id = make_run(mlflow_project_entryPoint="validate")
    MlflowClient().log_param(run_id, "rl_data", "'/no where.json'")
    MlflowClient().log_param(run_id, "hf_columns", "'image_id=coco id'")
    with pytest.raises(SystemExit):
        launch(validate, ["--rl_data", "/no where.json", "--hf_columns", "image_id=coco id"])
    assert "hf_columns" in (error := capsys.readouterr().err.splitlines()[-1])  # as the embedded data set has no columns
    assert "MLFLOW_RUN_ID" not in error
