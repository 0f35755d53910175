"""Artifacts of runs: why one cannot be read is told by what failed."""

import mlflow
import pytest
from helpers.limits import no_more_open_files

from lever_mlflow.exceptions import DataError
from lever_mlflow.runs import artifacts
from lever_mlflow.runs.artifacts import artifact, read_json


@pytest.fixture
def run_id(mlflow_store):
    """A run with one artifact."""
    with mlflow.start_run() as run:
        mlflow.log_text("content", "folder/file.txt")
    return run.info.run_id


def test_an_artifact_is_read_where_it_lies_and_downloaded_from_elsewhere(run_id, monkeypatch):
    path = artifact(run_id, "folder/file.txt")
    assert path.read_text() == "content"
    assert path.as_uri().startswith(mlflow.get_run(run_id).info.artifact_uri)
    monkeypatch.setattr(artifacts, "LocalArtifactRepository", type(None))  # as if the store were on another machine
    copy = artifact(run_id, "folder/file.txt")
    assert copy.read_text() == "content"
    assert copy != path


def test_an_artifact_that_is_not_there_is_one_line(run_id, monkeypatch):
    line = rf"run {run_id}: artifact folder/other\.txt cannot be read \(No such .*other\.txt'\); run that step again"
    with pytest.raises(DataError, match=line):
        artifact(run_id, "folder/other.txt")
    monkeypatch.setattr(artifacts, "LocalArtifactRepository", type(None))
    with pytest.raises(DataError, match=line):
        artifact(run_id, "folder/other.txt")
    with pytest.raises(DataError, match=r"run 0123: artifact a cannot be read \(Run with id=0123 not found\)"):
        artifact("0123", "a")


def test_an_artifact_is_not_called_damaged_where_no_file_can_be_opened(run_id):
    with no_more_open_files(), pytest.raises(OSError, match="Too many open files"):
        read_json(run_id, "folder/file.txt")
