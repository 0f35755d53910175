"""The whole experiment through ``mlflow run`` on the embedded default, in a small form, and what a user does with it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from helpers.projects import ROOT, error_lines, facts

from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.pipeline import rollout, training
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.rollout import find_rl_data
from lever_mlflow.pipeline.training import find_start
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.steps import project_run, run_here
from lever_mlflow.selector.checkpoint import load_selector, selector_digest
from lever_mlflow.selector.checkpoint_folder import read_meta
from lever_mlflow.serving import retriever_model
from lever_mlflow.settings import GrpoSettings, RceSettings, RolloutSettings, RoundSettings, as_text

ONE_ROUND = RoundSettings(rounds=1)

NAME = "lever-selector-mini-mini"
OF_A_BETA = (
    "grpo beta {}",
    "grpo beta {} round 1",
    "rollout round 2",
    "validate",
    "grpo beta {} round 2",
    "evaluate beta {}",
)
ROUNDED = 0.005 + 1e-9  # a figure of two decimals, of which the third may have been a 5
SMALL = {
    "n_queries": 60,
    "sizes": "20,40",
    "n_selection": 20,
    "shots": "1,2",
    "rce_epochs": 2,
    "rounds": 2,
    "grpo_epochs": 2,
}


@pytest.fixture(scope="module")
def experiment(project):
    result = project.run("main", **SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def steps(project, parent_id):
    children = project.runs(mlflow_parentRunId=parent_id)
    return {run.info.run_name: run for run in children}


def parent(project):
    """The first whole experiment, whose children did the work."""
    return next(run for run in reversed(project.runs(lever_step="main")) if run.info.status == "FINISHED")


def test_every_step_is_a_finished_child_run(project, experiment):
    children = steps(project, parent(project).info.run_id)
    assert sorted(children) == [
        "baselines",
        "compare",
        "evaluate beta 0.12",
        "evaluate beta 0.15",
        "grpo beta 0.12",
        "grpo beta 0.15",
        "rce",
        "rollout",
        "validate",
    ]
    assert {run.info.status for run in children.values()} == {"FINISHED"}


def test_runs_carry_the_digests_that_decide_their_result(project, experiment):
    children = steps(project, parent(project).info.run_id)
    data = children["rollout"].data.tags["lever.rl_data_digest"]
    for beta in ("0.12", "0.15"):
        recorded = facts(children[f"grpo beta {beta}"])
        assert recorded["rl_data_digest"] == data
        assert recorded["start_digest"] == facts(children["grpo beta 0.12"])["start_digest"]
        assert recorded["gate"] in ("pass", "warning")
        assert recorded["start"] == f"rce epoch {children['rce'].data.tags['lever.best_epoch']}"
    (dataset,) = children["rce"].inputs.dataset_inputs
    assert dataset.dataset.digest == data


def test_metrics_per_epoch_under_the_predecessors_names(project, experiment):
    run = steps(project, parent(project).info.run_id)["grpo beta 0.12"]
    for name in (
        "train/loss",
        "val/loss",
        "train/ppo_loss",
        "train/kl",
        "train/advantage_std",
        "train/advantage_max",
        "train/beta",
        "train/frac_reward_zero_std",
    ):
        assert [metric.step for metric in project.client.get_metric_history(run.info.run_id, name)] == [1, 2, 3, 4], name
    assert run.data.metrics["train/beta"] == 0.12


def test_rounds_are_child_runs_with_their_own_trials_verdict_and_epochs(project, experiment):
    rollout_run = steps(project, parent(project).info.run_id)["rollout"]
    for beta in ("0.12", "0.15"):
        run = steps(project, parent(project).info.run_id)[f"grpo beta {beta}"]
        rounds = steps(project, run.info.run_id)
        names = ["rollout round 2", "validate", *(f"grpo beta {beta} round {number}" for number in (1, 2))]
        assert sorted(rounds) == sorted(names)
        first, second = (rounds[f"grpo beta {beta} round {number}"] for number in (1, 2))
        fresh = rounds["rollout round 2"]
        assert first.data.tags["lever.rl_data_digest"] == rollout_run.data.tags["lever.rl_data_digest"]
        assert second.data.tags["lever.rl_data_digest"] == fresh.data.tags["lever.rl_data_digest"]
        assert rounds["validate"].data.tags["lever.rl_data_digest"] == fresh.data.tags["lever.rl_data_digest"]
        reached = json.loads(Path(artifact(first.info.run_id, "checkpoints.json")).read_text())["2"]
        assert facts(second)["start_uri"] == f"models:/{reached}"
        assert facts(fresh)["start_digest"] == facts(second)["start_digest"]
        assert facts(second)["reference_policy"] == facts(second)["start_digest"]
        assert queries_of(rollout_run).isdisjoint(queries_of(fresh))
        for name in ("expected_reward", "kl_exact", "picks_changed", "positive_query_rate", "first_choice_reward"):
            assert list(history(project, run, f"rounds/{name}")) == [1, 2]
        assert history(project, run, "rounds/kl_exact")[2] == history(project, run, "val/kl_exact")[4]
        fresh_rate = fresh.data.metrics["rollout/positive_query_rate"]
        assert history(project, run, "rounds/positive_query_rate")[2] == fresh_rate


def history(project, run, name):
    """Values of a metric by step."""
    return {metric.step: metric.value for metric in project.client.get_metric_history(run.info.run_id, name)}


def queries_of(run):
    return {key for key in json.loads(Path(artifact(run.info.run_id, "rl_data.json")).read_text()) if key != "_meta"}


def test_each_epoch_is_a_logged_model_with_metrics_on_its_data(project, experiment):
    rounds = steps(project, steps(project, parent(project).info.run_id)["grpo beta 0.15"].info.run_id)
    run = rounds["grpo beta 0.15 round 2"]
    models = project.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert sorted(model.params["epoch"] for model in models) == ["3", "4"]
    for model in models:
        losses = [metric for metric in model.metrics if metric.key == "val/loss"]
        assert losses[0].dataset_digest == run.data.tags["lever.rl_data_digest"]
        assert {name: model.params[name] for name in GrpoSettings.__dataclass_fields__} == {
            name: run.data.params[name] for name in GrpoSettings.__dataclass_fields__
        }
        for name in ("start_digest", "start_uri", "rl_data_digest", "seed", "reward_mode"):
            assert model.params[name] == facts(run)[name], name
        meta = read_meta(checkpoint_of(project, model.model_id))
        assert meta.pop("step") == "grpo"
        for name, value in meta.items():
            assert model.params[name] == as_text(value), name
        start = load_selector(checkpoint_of(project, model.params["start_uri"].removeprefix("models:/")))
        assert selector_digest(start) == model.params["start_digest"]


def checkpoint_of(project, model_id):
    """Folder of a logged model's checkpoint in the store."""
    uri = project.client.get_logged_model(model_id).artifact_location
    return next(Path(uri.removeprefix("file://")).glob("artifacts/*/selector.json")).parent


def test_best_epoch_of_each_beta_is_registered(project, experiment):
    aliases = {alias: str(v) for alias, v in project.client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"kl-0-12": "1", "kl-0-15": "2"}
    version = project.client.get_model_version(NAME, "1")
    run = steps(project, parent(project).info.run_id)["evaluate beta 0.12"]
    assert version.tags["kl_beta"] == "0.12"
    assert version.tags["epoch"] == run.data.tags["lever.best_epoch"]
    assert run.data.params["kl_beta"] == "0.12"
    assert run.data.params["dataset"] == "mini"
    epoch = int(version.tags["epoch"])
    metrics = run.data.metrics
    assert next(iter(metrics)) == "accuracy"  # which the UI's page of a comparison opens on
    assert metrics["accuracy"] == pytest.approx((metrics["accuracy/shots1"] + metrics["accuracy/shots2"]) / 2)
    assert history(project, run, "epoch/accuracy")[epoch] == pytest.approx(metrics["accuracy"])
    assert version.tags["accuracy"].startswith(f"{decimals(100 * metrics['accuracy'])} [")
    assert len(version.tags) <= 10


def test_comparison_has_every_cell(project, experiment):
    run = steps(project, parent(project).info.run_id)["compare"]
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=project.uri))
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["comparable"]
    assert comparison["missing"] == []
    grid = {(size, shots) for size in ("20", "40") for shots in ("1", "2")}
    for result in comparison["runs"]:
        similar = {f"{kind}-similarity{of}" for kind in ("image", "text", "fused") for of in ("", " (full training set)")}
        assert result["baselines"].keys() == similar | {"zero-shot", "random", "start"}
        assert cells_of(result["baselines"].pop("zero-shot")) == {("20", "0"), ("40", "0")}
        assert all(cells_of(accuracy) == grid for accuracy in result["baselines"].values())
        evaluated = [epoch for epoch in result["epochs"] if epoch.get("accuracy")]
        assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4]
        assert [epoch["epoch"] for epoch in evaluated] == [2, 4]  # the last of each round
        assert all(cells_of(epoch["accuracy"]) == grid for epoch in evaluated)
        assert result["rl_data"]["n_queries"] == 60
        evaluation = project.client.get_run(result["run_id"]).data.metrics
        (best,) = [epoch for epoch in result["epochs"] if epoch["epoch"] == result["best_epoch"]]
        assert best["accuracy"]["40"]["2"] == pytest.approx(100 * evaluation["accuracy/shots2"])
    assert [row["kind"] for row in comparison["differences"]] == ["paired"] * 12
    page = (folder / "report.md").read_text()
    assert "Trained but not evaluated, so of unknown accuracy: epochs 1 and 3 of KL_BETA=0.12 and 0.15." in page
    for run_of_beta in comparison["mlflow_runs"]:
        assert f"{run_of_beta['name']}: {run_of_beta['run_id'][:10]}" in page
        assert run_of_beta["url"] == ""  # no tracking server
    assert not re.search(r"\| (\?|missing|nan) \|", page)
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 5
    assert run.data.tags["mlflow.note.content"] == comparison["verdict"]


def cells_of(accuracy):
    return {(size, shots) for size, row in accuracy.items() for shots in row}


@pytest.mark.slow
def test_comparison_in_chinese_of_given_evaluations(project, experiment):
    evaluations = project.runs(lever_step="evaluate")
    run_ids = [run.info.run_id for run in evaluations]
    result = project.run("compare", evaluations=f"{run_ids[0][:12]},{run_ids[1]}", lang="zh")
    assert result.returncode == 0, result.stderr
    run = project.newest()
    assert "KL_BETA=0.12、0.15：可比较" in run.data.tags["mlflow.note.content"]
    assert "40 道题目上的 VQA 正确率（%）" in result.stdout
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=project.uri))
    page = (folder / "report.md").read_text()
    assert "## 关键发现" in page
    assert f" --experiment-name small -e evaluate -P kl_beta=0.12 -P grpo_run={grpo_run(evaluations, '0.12')}" in page


def grpo_run(evaluations, beta):
    return next(facts(run)["grpo_run"] for run in evaluations if run.data.tags["lever.kl_beta"] == beta)


@pytest.mark.slow
def test_comparison_of_a_results_file(project):
    path = ROOT / "tests" / "data" / "predecessor_results.json"
    result = project.run("compare", results=path, lang="zh")
    assert result.returncode == 0, result.stderr
    run = project.newest()
    assert run.data.tags["mlflow.note.content"].startswith("KL_BETA=0.12、0.15 不可比较")
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=project.uri))
    assert sorted(item.name for item in folder.iterdir()) == [
        "accuracy.png", "comparison.json", "config.yaml", "differences.png", "facts.json", "intervals.png", "manifest.json",
        "report.html", "report.md", "settings.json", "training_curves.png",
    ]  # fmt: skip
    assert "| 200 | 1 | 58.80% | 57.00% | -1.80 | 不显著 |" in (folder / "report.md").read_text()


def test_the_terminal_says_what_the_ui_says_of_each_step_and_nothing_else(project, experiment):
    top = parent(project)
    runs = [top]
    for run in runs:  # which grows by the runs inside each, as those of the rounds
        runs += project.runs(mlflow_parentRunId=run.info.run_id)
    lines = [line for line in experiment.stderr.splitlines() if not re.search(" INFO mlflow.(projects|store)[.:]", line)]
    steps_lines, summary = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert [line.removesuffix(": running") for line in steps_lines if line.endswith(": running")] == [
        "betas 0.12, 0.15, seed 0",
        "rollout",
        "validate",
        "rce",
        "baselines",
        *(step.format(beta) for beta in ("0.12", "0.15") for step in OF_A_BETA),
        "compare",
    ]
    ends = [line.rpartition(" (")[0] for line in steps_lines if re.search(r" \((\d+\.\d s|\d+ s|\d+ min \d+ s)\)$", line)]
    findings = {run.info.run_id: run.data.tags["mlflow.note.content"].splitlines()[0].replace("**", "") for run in runs}
    described = [f"{run.info.run_name}: {findings[run.info.run_id]}".removesuffix(".") for run in runs[1:]]
    assert sorted(ends) == sorted(described)
    others = [line for line in steps_lines if not line.endswith((": running", " s)"))]
    (baselines,) = (run.info.run_id for run in runs if run.info.run_name == "baselines")
    assert others == [f"baselines: reused from baselines (run {baselines})"] * 2
    assert summary[0] == "VQA accuracy in percent on 40 questions"
    assert summary[-1].startswith(f"betas 0.12, 0.15, seed 0: {findings[top.info.run_id].removesuffix('.')} (")
    assert experiment.stdout == ""


def test_descriptions_state_the_figures(project, experiment):
    children = steps(project, parent(project).info.run_id)
    described = {name: run.data.tags["mlflow.note.content"] for name, run in children.items()}
    figures = children["rollout"].data.metrics
    positive = f"{100 * figures['rollout/positive_query_rate']:.0f} % of queries positive"
    assert described["rollout"] == f"60 queries, {figures['rollout/n_trials']:.0f} trials, {positive}"
    run = children["evaluate beta 0.15"]
    first, *card = described["evaluate beta 0.15"].splitlines()
    accuracy = decimals(100 * run.data.metrics["accuracy"], 1)
    assert first.startswith(f"Beta 0.15, epoch {run.data.tags['lever.best_epoch']}: VQA accuracy {accuracy} % [")
    assert first.endswith(f" It is {NAME} version 2.")
    assert "## Accuracy" in card
    records = pd.read_parquet(artifact(children["baselines"].info.run_id, "records.parquet"))
    means = records.groupby(["policy", "shots", "draw"])["accuracy"].mean().groupby(["policy", "shots"]).mean()
    by_policy = means.groupby("policy").mean()
    strongest = f"{by_policy.idxmax()} is the strongest of 8 baselines, with {decimals(100 * by_policy.max())} %"
    assert described["baselines"] == f"{strongest} as a mean over shots on 40 questions"
    for policy, accuracy in by_policy.items():
        name = policy.replace("-", "_").replace(" (full training set)", "_full_training_set")
        assert children["baselines"].data.metrics[f"baseline/{name}"] == pytest.approx(accuracy)


def test_the_run_of_the_experiment_leads_to_everything(project, experiment):
    top = parent(project)
    assert top.info.run_name == "betas 0.12, 0.15, seed 0"
    text, children = top.data.tags["mlflow.note.content"], steps(project, top.info.run_id)
    page = f"#/experiments/{top.info.experiment_id}/runs/{{}}?workflowType=machine_learning"
    for name, run in children.items():
        assert f"- [{name}]({page.format(run.info.run_id)})" in text
    assert f"[report.html]({page.format(f'{top.info.run_id}/artifacts/report.html')})" in text
    assert text.startswith("**Verdict:** **Betas 0.12 and 0.15 can be compared.")
    files = {item.path for item in project.client.list_artifacts(top.info.run_id)}
    assert {"report.html", "intervals.png", "accuracy.png", "config.yaml"} <= files
    accuracies = {beta: children[f"evaluate beta {beta}"].data.metrics["accuracy"] for beta in ("0.12", "0.15")}
    for beta, accuracy in accuracies.items():
        assert top.data.metrics[f"accuracy/beta {beta}"] == pytest.approx(accuracy, abs=1e-6)
    assert top.data.metrics["accuracy"] in [top.data.metrics[f"accuracy/beta {beta}"] for beta in accuracies]
    described = project.client.get_experiment(top.info.experiment_id).tags["mlflow.note.content"]
    assert "Sort the `evaluate` runs by the metric `accuracy`" in described


def test_runs_have_few_metrics_and_tags(project, experiment):
    children = steps(project, parent(project).info.run_id)
    assert set(children["evaluate beta 0.12"].data.metrics) <= {
        *("accuracy", "accuracy/shots1", "accuracy/shots2", "epoch/accuracy", "epoch/selection_accuracy"),
        *("vlm/answers", "vlm/answers_per_second", "pool/answer_rate"),
    }
    for run in children.values():
        assert len([name for name in run.data.tags if not name.startswith("mlflow.")]) <= 10
        assert not [name for name in run.data.metrics if name.startswith("data/") and run.info.run_name != "validate"]
    for name in ("rce", "grpo beta 0.12"):  # a finished training needs no states
        assert not project.client.list_artifacts(children[name].info.run_id, "training_states")


def test_summary_and_the_line_that_opens_the_ui(experiment, project):
    output = experiment.stdout + experiment.stderr
    assert "VQA accuracy in percent on 40 questions" in output
    assert re.search(rf"mlflow ui --backend-store-uri {re.escape(project.uri)}.*/runs/{parent(project).info.run_id}", output)


@pytest.mark.slow
def test_grpo_alone_takes_the_upstream_runs_and_says_which(project, experiment):
    children = steps(project, parent(project).info.run_id)
    result = project.run("grpo", kl_beta=0.5, epochs=1, preset="predecessor", batch_size=4)
    assert result.returncode == 0, result.stderr
    assert f"rl_data=auto: taken from rollout (run {children['rollout'].info.run_id})" in result.stderr
    assert f"init=auto: taken from rce (run {children['rce'].info.run_id})" in result.stderr
    newest = project.runs(lever_step="grpo")[0]
    assert newest.info.run_name == "grpo beta 0.5"
    used = {name: newest.data.params[name] for name in ("lr", "batch_size", "preset")}
    assert used == {"lr": "5e-06", "batch_size": "4", "preset": "predecessor"}
    assert facts(newest)["start_digest"] == facts(children["grpo beta 0.12"])["start_digest"]


@pytest.mark.slow
def test_the_same_again_reuses_every_step_and_moves_the_alias_back(project, experiment):
    def version():
        return str(project.client.get_model_version_by_alias(NAME, "kl-0-12").version)

    first = version()
    other = project.run("main", **SMALL, grpo_lr=0.01, kl_betas=0.12)
    assert other.returncode == 0, other.stderr
    assert version() != first
    again = project.run("main", **SMALL)
    assert again.returncode == 0, again.stderr
    assert len(re.findall(r"^(.+): reused from", again.stderr, flags=re.MULTILINE)) == 9
    assert not steps(project, project.newest().info.run_id)
    assert version() == first


@pytest.mark.slow
def test_evaluation_of_another_beta_or_run_is_refused(project, experiment):
    children = steps(project, parent(project).info.run_id)
    grpo_run = children["grpo beta 0.12"].info.run_id
    assert error_lines(project.run("evaluate", "errors", kl_beta=0.7, grpo_run=grpo_run)) == [
        f"error: kl_beta=0.7, but run {grpo_run} was trained with 0.12"
    ]


@pytest.mark.slow
def test_promotion_status_and_what_the_champion_picks(project, experiment):
    for kl_beta in (0.12, 0.15):
        result = project.run("promote", kl_beta=kl_beta, force="true")
        assert result.returncode == 0, result.stderr
    assert f"{NAME} version 2 (beta 0.15) is champion, version 1 previous-champion" in result.stderr
    assert "over the champion: " in result.stderr
    version = project.client.get_model_version_by_alias(NAME, "champion")
    records = project.client.download_artifacts(version.tags["evaluation_run"], "records.parquet")
    frame = pd.read_parquet(records)
    of_epoch = frame[(frame.part == "report") & (frame.policy == f"epoch {version.tags['epoch']}")]
    accuracy, _, rest = version.tags["accuracy"].partition(" ")
    assert float(accuracy) == pytest.approx(100 * of_epoch.accuracy.mean(), abs=ROUNDED)
    assert rest.endswith("] on 40 questions")
    assert len(version.tags) == 12
    assert "| random | | " in version.description
    described = project.client.get_registered_model(NAME).description
    assert described.startswith("Selectors of demonstrations for data set mini and VLM mini.\n")
    listed = project.run("status")
    rows = [line.split() for line in listed.stdout.splitlines() if "kl-0-" in line]
    assert [row[:4] for row in rows] == [["0.12", "1", "kl-0-12,", "previous-champion"], ["0.15", "2", "champion,", "kl-0-15"]]
    mlflow.set_tracking_uri(project.uri)
    (picks,) = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(*retriever_model.input_example())
    assert len(set(picks.question_ids)) == 2


@pytest.mark.slow
def test_grpo_on_a_fresh_store_runs_what_it_needs_first(local, experiment, monkeypatch, caplog):
    """In this process, with small defaults: the upstream steps run as children, in order, and the log says so."""
    monkeypatch.setattr(rollout, "RolloutSettings", partial(RolloutSettings, n_queries=40, beam_width=2))
    monkeypatch.setattr(training, "RceSettings", partial(RceSettings, epochs=1))
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    with project_run("test") as run:
        data = find_rl_data(line, "auto")
        start = find_start(line, "auto", data)
        run_here(grpo_step(line, data, start, GrpoSettings(kl_beta=0.12, epochs=1), ONE_ROUND))
    assert [message.split(",")[0] for message in caplog.messages if message.endswith((": running", "runs first"))] == [
        "this experiment has no finished rollout on the same data",
        "rollout: running",
        "this experiment has no finished rce run on these RL data",
        "rce: running",
        "validate: running",
        "grpo beta 0.12: running",
        "grpo beta 0.12 round 1: running",
    ]
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    names = ["grpo beta 0.12 round 1", "validate", "rce", "rollout", "grpo beta 0.12"]
    assert [child.info.run_name for child in runs] == names
    top, rce = run.info.run_id, runs[2].info.run_id
    assert [child.data.tags.get("mlflow.parentRunId") for child in runs] == [top, rce, top, top, None]
    assert {child.info.status for child in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    "name", ["main", "rollout", "merge", "validate", "rce", "grpo", "evaluate", "compare", "promote", "rollback", "status"]
)
def test_help_answers_at_once(name):
    command = [sys.executable, "-X", "importtime", "-m", f"entrypoints.{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "--" in result.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "mlflow", "transformers", "great_expectations", "numpy", "pandas"}
