from dataclasses import replace

import mlflow
import pytest
import torch

from lever_mlflow.exceptions import DataError, LeverError, MissingRunError
from lever_mlflow.runs.artifacts import artifact, as_recorded, read_json
from lever_mlflow.runs.metrics import epoch_metrics, finite
from lever_mlflow.runs.search import find_run
from lever_mlflow.runs.steps import Step, anew, ensure, project_run, run_here, run_settings
from lever_mlflow.runs.tags import finished_run_tags, run_tags
from lever_mlflow.settings import as_text


def step(log, *, beta=0.12, data="d1", fails=False):
    def execute():
        log.append(beta)
        mlflow.log_metrics({"train/loss": 0.5, "train/kl": beta, "system/cpu": 3.0}, step=1)
        if fails:
            raise LeverError("broken")

    return Step("grpo", f"grpo beta {beta:g}", {"kl_beta": beta, "sizes": (1, 2)}, {"rl_data_digest": data}, execute)


def test_a_step_logs_settings_inputs_and_versions(mlflow_store):
    with project_run("test"):
        run_id = run_here(step([]))
    data = mlflow.get_run(run_id).data
    assert data.params == {"kl_beta": "0.12", "sizes": "1,2"}
    assert data.tags["lever.step"] == "grpo"
    assert {name: text for name, text in data.tags.items() if name.startswith("lever.")} == {
        "lever.step": "grpo",
        "lever.key": step([]).key,
        "lever.rl_data_digest": "d1",
    }
    assert data.tags["mlflow.runName"] == "grpo beta 0.12"
    assert run_tags(run_id)["lib.torch"] == torch.__version__.split("+")[0]
    assert finished_run_tags(run_id, "grpo")["rl_data_digest"] == "d1"
    assert run_settings(run_id) == {"kl_beta": 0.12, "sizes": [1, 2]}
    assert epoch_metrics(run_id) == {1: {"train/loss": 0.5, "train/kl": 0.12}}


def test_labels_are_parameters_but_do_not_change_what_a_step_is(mlflow_store):
    labelled = replace(step([]), labels={"dataset": "/data/okvqa"})
    assert labelled.key == step([]).key
    with project_run("test"):
        run_id = run_here(labelled)
    assert mlflow.get_run(run_id).data.params["dataset"] == "/data/okvqa"
    assert "dataset" not in run_settings(run_id)


def test_parameters_that_mlflow_run_has_logged_stay_as_typed(mlflow_store):
    with mlflow.start_run():
        mlflow.log_param("kl_beta", "0.120")
        run_id = run_here(step([]))
    assert mlflow.get_run(run_id).data.params["kl_beta"] == "0.120"


def test_anew_every_step_runs_once(mlflow_store):
    log = []
    with project_run("test"):
        first = ensure(step(log))
        with anew():
            second = ensure(step(log))
            assert ensure(step(log)) == second != first
        assert ensure(step(log)) == second  # the newest
        with anew():
            run_here(step(log))
    assert log == [0.12] * 3


def test_the_same_step_is_reused_and_another_is_not(mlflow_store):
    log = []
    with project_run("test") as parent:
        first = ensure(step(log))
        assert ensure(step(log)) == first
        assert ensure(step(log, beta=0.15)) != first
        assert ensure(step(log, data="d2")) != first
    assert log == [0.12, 0.15, 0.12]
    assert mlflow.get_run(first).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_failed_step_is_marked_and_never_reused(mlflow_store):
    log = []
    with pytest.raises(LeverError), project_run("test") as parent:
        ensure(step(log, fails=True))
    children = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.status for run in children} == {"FAILED"}
    assert len(children) == 2
    with project_run("test"):
        ensure(step(log))
    assert len(log) == 2
    assert mlflow.get_run(parent.info.run_id).info.status == "FAILED"


def test_newest_run_of_these_tags_is_found_in_this_experiment_only(mlflow_store):
    with project_run("test"):
        older = ensure(step([]))
        newer = ensure(step([], beta=0.15))
        assert find_run("grpo", {"rl_data_digest": "d1"}).info.run_id == newer
        assert find_run("grpo", {"rl_data_digest": "d1", "key": step([]).key}).info.run_id == older
        assert find_run("rce", {"rl_data_digest": "d1"}) is None
    mlflow.set_experiment("another")
    with project_run("test"):
        assert find_run("grpo", {"rl_data_digest": "d1"}) is None


def test_wrong_runs_and_artifacts_are_named(mlflow_store):
    with project_run("test"):
        run_id = run_here(step([]))
    with pytest.raises(MissingRunError, match=f"run {run_id} is not a rce run but 'grpo'"):
        finished_run_tags(run_id, "rce")
    with pytest.raises(MissingRunError, match=r"run 0123: .*not found"):
        finished_run_tags("0123", "grpo")
    with pytest.raises(DataError, match=f"run {run_id}: artifact rl_data.json cannot be read"):
        artifact(run_id, "rl_data.json")
    with pytest.raises(MissingRunError, match=r"run 0123: .*look its id up in the MLflow UI"):
        run_tags("0123")


def test_an_artifact_that_is_no_json_object_is_one_line(mlflow_store):
    with mlflow.start_run() as run:
        mlflow.log_text("[1, 2", "list.json")
    with pytest.raises(DataError, match=r"artifact list.json is no JSON object .*run that step again with rerun=true"):
        read_json(run.info.run_id, "list.json")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12, "0.12"),
        (5e-06, "5e-06"),
        (0.1234567, "0.1234567"),
        (1.0, "1"),
        (3, "3"),
        (True, "true"),
        ((1, 2.5), "1,2.5"),
        ([0.1], "0.1"),
        ({"a": 0.5, "b": "x"}, "a=0.5,b=x"),
        ({}, "none"),
        (None, "None"),
    ],
)
def test_values_as_texts(value, text):
    assert as_text(value) == text


def test_metrics_that_are_not_finite_are_refused():
    assert finite({"a": 1.0}) == {"a": 1.0}
    with pytest.raises(DataError, match="'b': nan"):
        finite({"a": 1.0, "b": float("nan")})


@pytest.mark.parametrize("raised", [KeyError("last_epochs"), ValueError("bad int"), TypeError("no list"), AttributeError("x")])
def test_what_an_edit_by_hand_leaves_is_one_line(raised):
    message = r"^run 1: artifact rounds\.json is not what this package recorded .*rerun=true$"
    with pytest.raises(DataError, match=message), as_recorded("run 1", "artifact rounds.json"):
        raise raised
