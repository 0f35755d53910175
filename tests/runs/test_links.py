"""Links to the MLflow UI."""

import mlflow
import pytest

from lever_mlflow.runs.links import run_link, run_page, server_address, ui_command


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////tmp/mlflow.db", ""),
        ("/tmp/mlruns", ""),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ann:secret@mlflow.example.org/team/?a=b#c", "https://mlflow.example.org/team"),
    ],
)
def test_the_address_of_a_server_tells_no_password(uri, expected):
    assert server_address(uri) == expected


def test_links_open_the_ui_in_its_mode_for_model_training(mlflow_store):
    with mlflow.start_run(run_name="a run") as run:
        run_id, experiment = run.info.run_id, run.info.experiment_id
        page = f"#/experiments/{experiment}/runs/{run_id}"
        assert run_page(run_id) == f"{page}?workflowType=machine_learning"
        assert run_link(run_id) == f"[a run]({page}?workflowType=machine_learning)"
        assert run_link(run_id, "report.html") == f"[report.html]({page}/artifacts/report.html?workflowType=machine_learning)"
        assert ui_command() == (
            f"mlflow ui --backend-store-uri {mlflow_store}   # then open http://127.0.0.1:5000/{page}?workflowType=machine_learning"
        )
