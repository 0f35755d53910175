"""Progress of long work as metrics of the active run."""

import mlflow
import pytest

from lever_mlflow import progress
from lever_mlflow.progress import Progress
from lever_mlflow.runs.metrics import epoch_metrics
from lever_mlflow.runs.progress import recorded_progress
from lever_mlflow.runs.steps import project_run


@pytest.fixture(autouse=True)
def always(monkeypatch):
    """Every update is recorded."""
    monkeypatch.setattr(progress, "_EVERY", 0.0)


def work(unit, total, updates):
    with Progress("work", total, unit) as progress:
        for _ in range(updates):
            progress.update()


def history(run, name):
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient().get_metric_history(run.info.run_id, name)]


def test_work_is_a_metric_of_whichever_run_is_active(mlflow_store):
    with project_run("test") as outer:
        work("answers", 4, 3)
        with mlflow.start_run(nested=True) as inner:
            work("steps", 2, 2)
    assert history(outer, "progress/answers") == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert history(inner, "progress/steps") == [(1, 0.5), (2, 1.0)]
    assert set(mlflow.get_run(outer.info.run_id).data.metrics) == {"progress/answers"}
    assert progress.log.handlers == []


def test_progress_is_no_figure_of_an_epoch(mlflow_store):
    with project_run("test") as run:
        mlflow.log_metrics({"val/loss": 0.5}, step=1)
        work("steps", 3, 2)
    assert epoch_metrics(run.info.run_id) == {1: {"val/loss": 0.5}}


def test_a_server_that_refuses_is_asked_once_and_the_work_goes_on(mlflow_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with mlflow.start_run() as run, recorded_progress():
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        work("answers", 3, 1)
        mlflow.set_tracking_uri(mlflow_store)
        work("answers", 3, 2)
    assert history(run, "progress/answers") == []
