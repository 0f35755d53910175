import mlflow
import pytest

from lever_mlflow.registry import ownership
from lever_mlflow.runs.fields import LONGEST_DESCRIPTION, LONGEST_MODEL_NAME, LONGEST_VERSION_TEXT, fitted
from lever_mlflow.runs.steps import Step, project_run, run_here, run_settings
from lever_mlflow.runs.tags import Tag, record, run_tags, set_description

LONG = "x" * 20_000


def test_what_fits_stays_and_what_does_not_says_where_the_whole_is():
    assert fitted("short", 5) == "short"
    assert fitted("a" * 9, 8) == "aaaa..."
    cut = fitted(LONG, 100, "facts.json")
    assert cut.endswith("x... (cut; the whole is in facts.json)")
    assert len(cut) <= 100
    lines = fitted("\n".join(["first line", "second line", "third line"]), 30)
    assert lines == "first line\nsecond line\n..."


def test_long_values_are_cut_in_mlflow_and_whole_in_artifacts(mlflow_store):
    """A field that MLflow, or a database behind it, would cut or refuse never loses data."""
    settings = {"kl_betas": [0.1 + i / 1000 for i in range(2_000)], "vlm": f"/{LONG}"}
    name = f"betas {LONG}"

    def execute():
        record({Tag.GATE_OVERRIDE: f"round 1: {LONG}", Tag.SKIPPED_ITEMS: "train: 2"})
        set_description("\n".join([f"[step {i}](#/experiments/1/runs/{i})" for i in range(400)]))

    with project_run("test"):
        run_id = run_here(Step("main", name, settings, {}, execute, {"parts": LONG}, config={"main": {"parts": LONG}}))
    run = mlflow.get_run(run_id)
    assert {len(text) <= 6_000 for text in run.data.params.values()} == {True}
    assert run.data.params["parts"].endswith("... (cut; the whole is in config.yaml)")
    assert len(run.info.run_name) <= 250
    assert run.info.run_name.startswith("betas xxx")
    assert run_settings(run_id) == settings
    assert len(run.data.tags["lever.gate_override"]) <= 8_000
    assert run_tags(run_id)["gate_override"] == f"round 1: {LONG}"
    assert run_tags(run_id)["skipped_items"] == "train: 2"
    description = run.data.tags["mlflow.note.content"].splitlines()
    assert len("\n".join(description)) <= LONGEST_DESCRIPTION
    assert description[-1] == "... (cut; the whole is in the artifacts)"
    assert description[-2] == f"[step {len(description) - 2}](#/experiments/1/runs/{len(description) - 2})"  # a whole link


def test_a_step_without_its_facts_is_not_taken_for_an_older_one(mlflow_store, tmp_path):
    from lever_mlflow.exceptions import DataError

    with project_run("test"):
        run_id = run_here(Step("rce", "rce", {}, {Tag.SEED: 3}, lambda: None))
    assert run_tags(run_id)["seed"] == "3"
    (tmp_path / "artifacts").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"run {run_id}: its artifact facts.json is gone; restore the folder of its artifacts"):
        run_tags(run_id)


@pytest.mark.slow
def test_a_database_that_refuses_long_values_gets_none(postgres, monkeypatch, tmp_path):
    """PostgreSQL refuses what is longer than a column, where SQLite takes it."""
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(postgres)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    step = Step("main", f"betas {LONG}", {"vlm": f"/{LONG}"}, {}, lambda: set_description(LONG), {"parts": LONG})
    with project_run("test"):
        run_id = run_here(step)
    assert len(mlflow.get_run(run_id).info.run_name) == 249
    tags = {"kl_beta": "0.12", "model_digest": "m", "gate_override": fitted(LONG, LONGEST_VERSION_TEXT)}
    ownership.claim("m" * LONGEST_MODEL_NAME, "dataset=d,vlm=v,encoder=e,profile=p")
    version = mlflow.MlflowClient().create_model_version("m" * LONGEST_MODEL_NAME, "s3://nothing/there", tags=tags)
    assert len(version.tags["gate_override"]) == 4_999
