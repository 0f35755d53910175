"""Runs whose files are gone, changed or out of reach when they are looked up again."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from lever_mlflow.exceptions import LeverError
from lever_mlflow.runs.steps import Step, ensure, project_run
from lever_mlflow.runs.whole import lack_of, lack_of_model

SCRIPT = """import mlflow
class M(mlflow.pyfunc.PythonModel):
    def predict(self, x): return x
mlflow.models.set_model(M())
"""


@pytest.fixture
def step(mlflow_store, tmp_path):
    """A step that logs files and a model; what it made is in ``made``."""
    (tmp_path / "model.py").write_text(SCRIPT)
    model_ids = []

    def execute():
        mlflow.log_text("0123456789", "result.json")
        mlflow.log_text("deep", "folder/further/deep.txt")
        model_ids.append(
            mlflow.pyfunc.log_model(name="m", python_model=str(tmp_path / "model.py"), pip_requirements=[]).model_id
        )

    return Step("s", "s", {}, {}, execute), model_ids


def folder_of(run_id):
    return Path(mlflow.get_run(run_id).info.artifact_uri.removeprefix("file://"))


def folder_of_model(model_id):
    return Path(mlflow.get_logged_model(model_id).artifact_location.removeprefix("file://"))


def ensured(step):
    with project_run("test"):
        return ensure(step)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run, model: shutil.move(run, f"{run}-moved"), "its files are gone"),
        (lambda run, model: remove(run / "result.json"), "its result.json is gone"),
        (lambda run, model: remove(run / "folder"), "its folder/further/deep.txt is gone"),
        (lambda run, model: (run / "result.json").write_text("01234"), "its result.json has 5 bytes, and had 10"),
        (lambda run, model: (run / "result.json").write_text("0123456780"), "its result.json has changed"),
        (lambda run, model: (run / "manifest.json").write_text("{}"), "its manifest.json is damaged"),
        (lambda run, model: (run / "manifest.json").write_bytes(b"\xff"), "its manifest.json is damaged"),
        (lambda run, model: remove(model), "of model MODEL, MLmodel is gone"),
        (lambda run, model: (model / "model.py").write_text(""), "of model MODEL, model.py has 0 bytes, and had 114"),
    ],
)
def test_what_has_lost_its_files_is_made_again_and_the_log_says_why(step, caplog, spoil, reason):
    caplog.set_level("INFO", logger="lever_mlflow")
    step, model_ids = step
    first = ensured(step)
    assert ensured(step) == first
    assert lack_of(mlflow.get_run(first)) == ""
    caplog.clear()
    spoil(folder_of(first), folder_of_model(model_ids[0]))
    again = ensured(step)
    assert again != first
    (line,) = [message for message in caplog.messages if "is not used again" in message]
    assert line == f"s (run {first}) is not used again: {reason.replace('MODEL', model_ids[0])}"
    assert ensured(step) == again


def test_an_older_whole_run_is_taken_instead(step):
    step, _ = step
    first, second = ensured(step), None
    moved = shutil.move(folder_of(first), f"{folder_of(first)}-moved")
    second = ensured(step)
    shutil.move(moved, folder_of(first))
    remove(folder_of(second) / "result.json")
    assert ensured(step) == first


def test_a_deleted_model_is_missed(step):
    step, model_ids = step
    run_id = ensured(step)
    MlflowClient().delete_logged_model(model_ids[0])
    assert lack_of(mlflow.get_run(run_id)) == f"the model {model_ids[0]} was deleted"


def test_files_that_others_add_do_not_matter(step):
    step, _ = step
    run_id = ensured(step)
    MlflowClient().log_text(run_id, "of somebody", "notes.txt")
    assert lack_of(mlflow.get_run(run_id)) == ""


def test_a_store_that_does_not_answer_is_an_error_and_nothing_is_run_anew(step, monkeypatch):
    step, model_ids = step
    run_id = ensured(step)

    def refuse(*arguments):
        raise RuntimeError("EndpointConnectionError: no route\nto the store")  # as of a library of its own

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "list_artifacts", refuse)
        message = (
            rf"run {run_id}: its files cannot be looked at \(EndpointConnectionError: no route\); nothing is known of them"
        )
        with pytest.raises(LeverError, match=message):
            ensured(step)
    assert ensured(step) == run_id
    assert len(model_ids) == 1


def test_what_others_need_of_a_run_is_looked_at_too(step):
    step, model_ids = step
    ensured(step)
    user = Step("user", "user", {}, {}, lambda: None, needs=(f"models:/{model_ids[0]}", "/some/path"))
    run_id = ensured(user)
    assert ensured(user) == run_id
    remove(folder_of_model(model_ids[0]))
    assert lack_of(mlflow.get_run(run_id)) == f"of model {model_ids[0]}, MLmodel is gone"


def test_runs_and_models_without_a_manifest(mlflow_store, step, tmp_path):
    """As earlier versions of this package left them, or killed steps."""
    with mlflow.start_run() as run:
        mlflow.log_text("{}", "other.json")
        model_id = mlflow.pyfunc.log_model(name="m", python_model=str(tmp_path / "model.py"), pip_requirements=[]).model_id
    assert lack_of(run) == "its facts.json is gone"
    MlflowClient().log_text(run.info.run_id, "{}", "facts.json")
    assert lack_of(run) == ""
    assert lack_of_model(model_id) == ""
    remove(folder_of_model(model_id))
    assert lack_of_model(model_id) == f"the files of model {model_id} are gone"
