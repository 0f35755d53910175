"""What is removed once an interrupted training has been gone on from: only what that training left in the cache folder."""

import mlflow
import pytest
from mlflow import MlflowClient

from lever_mlflow import process_identity
from lever_mlflow.pipeline.resume import UnsentEpochs
from lever_mlflow.runs.steps import Step

FORMER, OTHER, OWN = "a" * 32, "b" * 32, "c" * 32


@pytest.fixture
def unsent(tmp_path):
    for name in (FORMER, OTHER, OWN):
        (tmp_path / "cache" / "unsent" / name / "state-0001").mkdir(parents=True)
    return UnsentEpochs(tmp_path / "cache" / "unsent" / OWN, "key")


def folders_beside(unsent):
    return sorted(path.name for path in unsent.folder.parent.iterdir())


@pytest.mark.parametrize("by_folder", [False, True])
def test_a_former_run_is_removed_by_id_or_folder(unsent, by_folder):
    unsent.remove_former(str(unsent.folder.parent / FORMER) if by_folder else FORMER)
    assert folders_beside(unsent) == [OTHER, OWN]


@pytest.mark.parametrize("source", [".", "..", "unsent", "my-epochs", "../.."])
def test_no_other_folder_is_removed(unsent, tmp_path, monkeypatch, source):
    """``resume`` may be a relative path, which was once taken for the folder of all runs or for the cache, and removed."""
    monkeypatch.chdir(unsent.folder.parent)
    unsent.remove_former(source)
    assert folders_beside(unsent) == [FORMER, OTHER, OWN]


def test_a_folder_that_the_user_copied_elsewhere_stays(unsent, tmp_path):
    copy = tmp_path / "elsewhere" / FORMER
    copy.mkdir(parents=True)
    unsent.remove_former(str(copy))
    assert copy.is_dir()
    assert folders_beside(unsent) == [FORMER, OTHER, OWN]


def test_what_killed_runs_of_a_step_left_is_removed_and_nothing_else(mlflow_store, unsent):
    """A run that was killed in its first epoch has nothing to go on from, and nobody would look at its folder again."""
    step, client = Step("rce", "rce", {}, {}, lambda: None), MlflowClient()
    gone = process_identity.this_process().rpartition(" ")[0] + " 1"  # the number is another process' by now
    run_ids = {}
    for name, key, process in (
        ("killed", step.key, gone),
        ("living", step.key, process_identity.this_process()),
        ("of another step", "x", gone),
    ):
        tags = {"lever.step": "rce", "lever.key": key, "lever.process": process}
        run_ids[name] = client.create_run(client.get_experiment_by_name("test").experiment_id, tags=tags).info.run_id
        (unsent.folder.parent / run_ids[name] / "state-0001").mkdir(parents=True)
    with mlflow.start_run():
        unsent.remove_interrupted(step)
    assert folders_beside(unsent) == sorted([FORMER, OTHER, OWN, run_ids["living"], run_ids["of another step"]])
