"""Comparisons of evaluations in MLflow that differ in something else than beta; the evaluations are made up, not run."""

import json

import mlflow
import numpy as np
import pytest
from helpers.evaluation_samples import evaluation_of, records_of
from helpers.projects import run_step

from lever_mlflow.evaluation.result import EpochMetrics
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.pipeline.baselines import log_records
from lever_mlflow.pipeline.comparison import compare_results_step, compare_step, comparison_summary
from lever_mlflow.runs import artifacts, steps
from lever_mlflow.runs.steps import run_settings
from lever_mlflow.settings import GrpoSettings

QUESTIONS = 10


def evaluated(lr, pool_sampler, right):
    """Logs an evaluation of beta 0.12 that is right on so many questions at both shot counts; returns its run id."""
    records = records_of({"epoch 1": [np.arange(QUESTIONS) < right] * 2, "zero-shot": [np.zeros(QUESTIONS)]})
    with steps.project_run("test") as run:
        run_id = run.info.run_id
        mlflow.log_metric("train/loss", 0.5, step=1)
        training = GrpoSettings(kl_beta=0.12, lr=lr, epochs=1)
        evaluation = evaluation_of(
            QUESTIONS, run_id=run_id, grpo_run=run_id, training=training, settings={"pool_sampler": pool_sampler}
        ).with_registration(version="1")
        results = {
            "epochs": (EpochMetrics(epoch=1, metrics={}),),
            "accuracy": tuple(records.table(evaluation.settings.sizes)),
        }
        mlflow.log_text(evaluation.model_copy(update=results).model_dump_json(), "evaluation.json")
        log_records(records)
    return run_id


def comparison_of(run):
    """Returns ``comparison.json`` and the Markdown report of a run."""
    return (
        json.loads(artifacts.artifact(run.info.run_id, "comparison.json").read_text()),
        artifacts.artifact(run.info.run_id, "report.md").read_text(),
    )


def test_evaluations_of_one_beta_are_compared_by_what_differs(local):
    line = local()
    runs = ((0.01, "fused-similarity", 9), (0.001, "fused-similarity", 2), (0.01, "text-similarity", 5))
    first, second, other = (evaluated(*run) for run in runs)
    of_one_difference(line, first, second)
    of_another_sampler(line, first, other)
    of_several_differences(line, second, other)


def of_one_difference(line, first, second):
    run = run_step(lambda: compare_step(line, [first, second], "en"))
    comparison, page = comparison_of(run)
    assert [result["label"] for result in comparison["runs"]] == ["lr 0.01", "lr 0.001"]
    assert (comparison["varied"], comparison["by_beta"], comparison["comparable"]) == (["lr"], False, True)
    assert comparison["reference"] == "lr 0.01"
    assert {field["field"] for field in comparison["fields"] if field["mark"] == "intended"} == {"training.lr"}
    differences = [
        (row["run"], row["reference"], row["kind"], row["points"]) for row in comparison["differences"] if row["primary"]
    ]
    assert differences == [("lr 0.001", "lr 0.01", "paired", pytest.approx(-70.0))] * 2
    assert [linked["name"] for linked in comparison["mlflow_runs"]] == [
        "training run of lr 0.01", "evaluation run of lr 0.01", "training run of lr 0.001", "evaluation run of lr 0.001",
    ]  # fmt: skip
    assert comparison["command"] == f"mlflow run . --env-manager local -e compare -P evaluations={first},{second}"
    assert page.startswith("# Accuracy comparison: lr 0.01 vs lr 0.001\n")
    assert "**Choice of lr:**" in page
    assert "KL_BETA" not in page
    with steps.project_run("test"):
        table = comparison_summary(run.info.run_id)
    assert "\nlr 0.001 epoch 1 *" in table
    assert "alias" not in table  # one beta has one alias, which is not the first run's any more


def of_another_sampler(line, first, other):
    run = run_step(lambda: compare_step(line, [first, other], "zh", "pool_sampler"))
    comparison, page = comparison_of(run)
    assert [result["label"] for result in comparison["runs"]] == ["fused-similarity", "text-similarity"]
    assert run_settings(run.info.run_id)["vary"] == "pool_sampler"
    assert (comparison["dataset"], comparison["sampler"]) == ("mini", "")  # what is not the same for all has no name
    assert page.startswith("# 正确率对比报告：fused-similarity vs text-similarity\n")


def of_several_differences(line, second, other):
    comparison, page = comparison_of(run_step(lambda: compare_step(line, [second, other], "en")))
    assert (comparison["varied"], comparison["comparable"], comparison["choice"]["rule"]) == ([], False, "undecided")
    assert "differ in lr and pool_sampler, and it was not said which of these is meant to differ" in page
    comparison, page = comparison_of(run_step(lambda: compare_step(line, [second, other], "en", "lr")))
    assert [result["label"] for result in comparison["runs"]] == ["lr 0.001", "lr 0.01"]
    assert "cannot be compared, because they do not only differ in lr but also in evaluation.pool_sampler." in page
    with steps.project_run("test"):
        runs = mlflow.search_runs(output_format="list", search_all_experiments=True)
        with pytest.raises(ParameterError, match="vary=rounds: it is the same in all runs, so there is nothing to compare; "):
            compare_step(line, [second, other], "en", "rounds")
        with pytest.raises(
            ParameterError, match="vary=sampler: no run has such a field; the runs differ in: lr, pool_sampler; "
        ):
            compare_step(line, [second, other], "en", "sampler")
        assert len(mlflow.search_runs(output_format="list", search_all_experiments=True)) == len(runs)


def test_runs_of_a_results_file_are_named_and_the_command_says_how(local, tmp_path):
    runs = [
        {"config": {"selector": name, "lr": lr}, "epochs": [{"epoch": 1, "accuracy": {"100": {"1": 50.0}}}]}
        for name, lr in (("v1", 1), ("v2", 2))
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"unit": "percent", "runs": runs}), encoding="utf-8")
    comparison, _ = comparison_of(run_step(lambda: compare_results_step(local(), path, "en", "selector")))
    assert comparison["command"] == f"mlflow run . --env-manager local -e compare -P results={path} -P vary=selector"
    assert comparison["verdict"] == "v1 and v2 cannot be compared, because they do not only differ in selector but also in lr."
    runs[0]["label"] = runs[1]["label"] = "one"
    path.write_text(json.dumps({"unit": "percent", "runs": runs}), encoding="utf-8")
    with (
        steps.project_run("test"),
        pytest.raises(DataError, match=r"results.json: runs: should hold each label once, holds 'one'"),
    ):
        compare_results_step(local(), path, "en")
