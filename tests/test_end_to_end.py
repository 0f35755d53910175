"""The whole experiment through ``mlflow run`` on the embedded default, in a small form, and what a user does with it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lever_mlflow import pipeline, tracking
from lever_mlflow.checkpoint import load_selector
from lever_mlflow.exceptions import CheckpointError, DataError, GateError, LeverError, MissingRunError, ParameterError
from lever_mlflow.resources import Resources
from lever_mlflow.rl_data import Group, Trial, save_rl_data
from lever_mlflow.training_state import load_state
from lever_mlflow.types import EvalSettings, GateSettings, GrpoSettings, RceSettings, RolloutSettings

ROOT = Path(__file__).parents[1]
NAME = "lever-selector-mini-mini"
SMALL = {"n_queries": 60, "sizes": "20,40", "n_selection": 20, "shots": "1,2", "rce_epochs": 2, "grpo_epochs": 2}
CACHE = "LEVER_MLFLOW_CACHE"


class Project:
    """``mlflow run`` as a user types it, on a store of its own."""

    def __init__(self, folder):
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, CACHE: str(folder / "cache"), "PATH": path}
        mlflow.set_tracking_uri(self.uri)
        mlflow.create_experiment("small", artifact_location=(folder / "artifacts").as_uri())
        self.client = MlflowClient(self.uri)

    def run(self, entry_point, experiment="small", **parameters):
        arguments = [part for name, value in parameters.items() for part in ("-P", f"{name}={value}")]
        command = ["mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local", "--experiment-name", experiment]
        return subprocess.run(
            [*command, *arguments], env=self.environment, capture_output=True, text=True, timeout=280, check=False
        )

    def runs(self, experiment="small", **tags):
        return self.client.search_runs(
            [self.client.get_experiment_by_name(experiment).experiment_id],
            " and ".join(f"tags.`{name.replace('_', '.', 1)}` = '{value}'" for name, value in tags.items()),
        )

    def newest(self, experiment="small"):
        return self.runs(experiment)[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"))


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
        tags = children[f"grpo beta {beta}"].data.tags
        assert tags["lever.rl_data_digest"] == data
        assert tags["lever.start_digest"] == children["grpo beta 0.12"].data.tags["lever.start_digest"]
        assert tags["lever.gate"] in ("pass", "warning")
        assert tags["lever.start"] == f"rce epoch {children['rce'].data.tags['lever.best_epoch']}"
    (dataset,) = children["rce"].inputs.dataset_inputs
    assert dataset.dataset.digest == data


def test_metrics_per_epoch_under_the_predecessors_names(project, experiment):
    run = steps(project, parent(project).info.run_id)["grpo beta 0.12"]
    for name in ("train_loss", "val_loss", "ppo_loss", "kl", "adv_std", "adv_max", "beta", "frac_reward_zero_std"):
        assert [metric.step for metric in project.client.get_metric_history(run.info.run_id, name)] == [1, 2], name
    assert run.data.metrics["beta"] == 0.12


def test_each_epoch_is_a_logged_model_with_metrics_on_its_data(project, experiment):
    run = steps(project, parent(project).info.run_id)["grpo beta 0.15"]
    models = project.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert sorted(model.params["epoch"] for model in models) == ["1", "2"]
    for model in models:
        losses = [metric for metric in model.metrics if metric.key == "val_loss"]
        assert losses[0].dataset_digest == run.data.tags["lever.rl_data_digest"]


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
    history = project.client.get_metric_history(run.info.run_id, "acc/n40/shots2")
    accuracy = next(metric.value for metric in history if metric.step == epoch)
    assert float(version.tags["acc_n40_shots2"]) == pytest.approx(100 * accuracy, abs=0.005)
    assert version.tags["rl_data_digest"] == run.data.tags["lever.rl_data_digest"]


def test_comparison_has_every_cell(project, experiment):
    run = steps(project, parent(project).info.run_id)["compare"]
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=project.uri))
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["comparable"]
    for evaluation in comparison["evaluations"]:
        cells = {(row["policy"], row["size"], row["shots"]) for row in evaluation["accuracy"]}
        policies = ["random", "fused-similarity", "start", "epoch 1", "epoch 2"]
        expected = {(policy, size, shots) for policy in policies for size in (20, 40) for shots in (1, 2)}
        assert cells == expected | {("zero-shot", 20, 0), ("zero-shot", 40, 0)}
    page = (folder / "report.md").read_text()
    assert "?" not in page
    assert "nan" not in page


def test_summary_and_the_line_that_opens_the_ui(experiment, project):
    output = experiment.stdout + experiment.stderr
    assert "VQA accuracy in percent on 40 questions" in output
    assert re.search(rf"mlflow ui --backend-store-uri {re.escape(project.uri)}.*/runs/{parent(project).info.run_id}", output)


def test_grpo_alone_takes_the_upstream_runs_and_says_which(project, experiment):
    children = steps(project, parent(project).info.run_id)
    result = project.run("grpo", kl_beta=0.5, epochs=1)
    assert result.returncode == 0, result.stderr
    assert f"rl_data=auto: taken from rollout (run {children['rollout'].info.run_id})" in result.stderr
    assert f"init=auto: taken from rce (run {children['rce'].info.run_id})" in result.stderr
    newest = project.runs(lever_step="grpo")[0]
    assert newest.info.run_name == "grpo beta 0.5"
    assert newest.data.tags["lever.start_digest"] == children["grpo beta 0.12"].data.tags["lever.start_digest"]


def test_the_same_again_reuses_every_step_and_moves_the_alias_back(project, experiment):
    def version():
        return str(project.client.get_model_version_by_alias(NAME, "kl-0-12").version)

    first = version()
    other = project.run("main", **SMALL, grpo_lr=0.01, kl_betas=0.12)
    assert other.returncode == 0, other.stderr
    assert version() != first
    started = time.monotonic()
    again = project.run("main", **SMALL)
    seconds = time.monotonic() - started
    assert again.returncode == 0, again.stderr
    assert len(re.findall(r"^(.+): reused from", again.stderr, flags=re.MULTILINE)) == 8
    assert not steps(project, project.newest().info.run_id)
    assert seconds < 60
    assert version() == first


def test_evaluation_of_another_beta_or_run_is_refused(project, experiment):
    children = steps(project, parent(project).info.run_id)
    grpo_run = children["grpo beta 0.12"].info.run_id
    assert error_lines(project.run("evaluate", "errors", kl_beta=0.7, grpo_run=grpo_run)) == [
        f"error: kl_beta=0.7, but run {grpo_run} was trained with 0.12"
    ]


def test_promotion_and_an_unknown_beta(project, experiment):
    result = project.run("promote", kl_beta=0.12)
    assert result.returncode == 0, result.stderr
    assert str(project.client.get_model_version_by_alias(NAME, "champion").version) == "1"
    unknown = project.run("promote", kl_beta=0.33)
    assert unknown.returncode != 0
    assert error_lines(unknown) == [
        f"error: kl_beta=0.33: {NAME} has no version with alias kl-0-33 (it has: kl-0-12, kl-0-15); "
        "run `mlflow run . -e evaluate -P kl_beta=0.33` first"
    ]
    assert project.newest().info.status == "FAILED"


def error_lines(result):
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kl_beta", "abc", "error: Invalid value for '--kl_beta': 'abc' is not a number"),
        ("kl_beta", "-1", "error: Invalid value for '--kl_beta': '-1' is not a number of at least 0"),
        ("kl_bta", "0.12", "error: No such option '--kl_bta'. (Did you mean one of: '--kl_beta', '--rl_data'?)"),
        ("rl_data", "/nowhere.json", "error: /nowhere.json: no such file; give rl_data=FILE or run the rollout step"),
    ],
)
def test_bad_parameters_end_in_one_line_and_a_failed_run(project, name, value, message):
    result = project.run("grpo", "errors", **{name: value})
    assert result.returncode != 0
    assert error_lines(result) == [message]
    assert project.newest("errors").info.status == "FAILED"


@pytest.fixture
def bad_rl_data(tmp_path):
    """60 queries without a single right trial."""
    trials = tuple(Trial((i, i + 1), 0.0, 0.0, "beam") for i in range(9))
    save_rl_data(tmp_path / "bad.json", [Group(query, tuple(range(400, 464)), trials) for query in range(60)], {})
    return str(tmp_path / "bad.json")


def test_data_that_fails_the_gate_fails_the_run(project, bad_rl_data):
    result = project.run("validate", "gate", rl_data=bad_rl_data)
    assert result.returncode != 0
    (line,) = error_lines(result)
    assert "positive_query_rate is 0" in line
    run = project.newest("gate")
    assert run.info.status == "FAILED"
    assert run.data.metrics["data/positive_query_rate"] == 0.0


@pytest.fixture
def local(mlflow_store, project):
    """local(**choices) is a pipeline in this process, on a fresh store, with the data and answers of the project's cache."""

    def make(**choices):
        return pipeline.Pipeline(Resources(cache_dir=Path(project.environment[CACHE])), **choices)

    return make


def run_step(make_step):
    with tracking.project_run("test") as run:
        tracking.run_here(make_step())
    return mlflow.get_run(run.info.run_id)


def test_training_runs_the_same_gate_and_takes_a_recorded_verdict(local, bad_rl_data, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    data = line.find_rl_data(bad_rl_data)
    for expected in ("validate: running", "data gate: verdict taken from validate (run "):
        caplog.clear()
        with pytest.raises(GateError, match="positive_query_rate is 0"), tracking.project_run("rce") as run:
            tracking.run_here(line.rce(data, RceSettings()))
        assert any(message.startswith(expected) for message in caplog.messages)
        logged = mlflow.get_run(run.info.run_id)
        assert logged.info.status == "FAILED"
        assert logged.data.tags["lever.gate"] == "critical"
        assert logged.data.metrics["data/positive_query_rate"] == 0.0
        assert "train_loss" not in logged.data.metrics
    validations = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`lever.step` = 'validate'", output_format="list"
    )
    assert [run.info.status for run in validations] == ["FAILED"]


def test_other_data_thresholds_or_shots_need_a_verdict_of_their_own(local, bad_rl_data):
    data = local().find_rl_data(bad_rl_data)
    keys = {
        local(gate=settings).validate(data).key
        for settings in (
            GateSettings(),
            GateSettings(thresholds={"positive_query_rate": "0.05"}),
            GateSettings(max_shots=8),
            GateSettings(on_bad_data="warn"),  # the same verdict: what follows from it is another matter
        )
    }
    assert len(keys) == 3
    assert local().validate(replace(data, digest="0" * 32)).key not in keys
    assert local(reward_mode="hard_only").validate(data).key not in keys


def test_a_damaged_record_of_a_verdict_is_named(local, bad_rl_data):
    line = local()
    data = line.find_rl_data(bad_rl_data)
    with tracking.project_run("validate") as run, pytest.raises(GateError):
        tracking.run_here(line.validate(data))
    path = Path(mlflow.get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"), "gate.json")
    path.write_text(path.read_text()[:-50])
    with tracking.project_run("rce"), pytest.raises(DataError, match=f"run {run.info.run_id}: gate.json cannot be read"):
        tracking.run_here(line.rce(data, RceSettings()))


def test_an_override_is_a_tag_on_runs_checkpoints_and_versions(local, bad_rl_data):
    line = local(gate=GateSettings(on_bad_data="warn"))
    data = line.find_rl_data(bad_rl_data)
    rce = run_step(lambda: line.rce(data, RceSettings(epochs=1)))
    start = rce.data.tags["lever.best_model"]
    grpo = run_step(lambda: line.grpo(data, f"models:/{start}", GrpoSettings(kl_beta=0.12, epochs=1)))
    small = EvalSettings(sizes=(5,), shots=(1,), n_selection=3)
    evaluation = run_step(lambda: line.evaluate(grpo.info.run_id, small))
    model = mlflow.get_logged_model(grpo.data.tags["lever.best_model"])
    version = MlflowClient().get_model_version_by_alias(NAME, "kl-0-12")
    told = rce.data.tags["lever.gate_override"]
    assert told.startswith("on_bad_data=warn: ")
    assert "positive_query_rate" in told
    for run in (rce, grpo, evaluation):
        assert (run.info.status, run.data.tags["lever.gate"]) == ("FINISHED", "critical")
        assert run.data.tags["lever.gate_override"] == told
    assert mlflow.get_logged_model(start).tags["lever.gate_override"] == told
    assert (model.tags["lever.gate_override"], model.tags["lever.start_gate_override"]) == (told, told)
    assert (version.tags["gate_override"], version.tags["start_gate_override"]) == (told, told)


@pytest.fixture(scope="module")
def good_rl_data(tmp_path_factory):
    """60 queries of the embedded data set's indices, half of them with 4 of 9 trials right."""
    path = tmp_path_factory.mktemp("good") / "good.json"
    scores = {query: [1.0 * (query % 2 and i < 4) for i in range(9)] for query in range(60)}
    groups = [
        Group(
            query,
            tuple(range(400, 464)),
            tuple(Trial((i, i + 1), score, score, "beam") for i, score in enumerate(scores[query])),
        )
        for query in range(60)
    ]
    save_rl_data(path, groups, {})
    return str(path)


def test_two_data_sets_are_compared_by_file_or_run(local, bad_rl_data, good_rl_data):
    line = local()
    good = run_step(lambda: line.validate(line.rl_data(good_rl_data)))
    assert good.data.tags["lever.gate"] == "pass"
    for reference in (good_rl_data, good.info.run_id, f"runs:/{good.info.run_id}"):
        with pytest.raises(GateError, match=r"are not comparable: mean reward 0.0000 against 0.4444"):
            run_step(lambda reference=reference: line.validate(line.rl_data(bad_rl_data), line.rl_data(reference)))
        run = mlflow.last_active_run()
        assert run.data.tags["lever.comparison"].startswith(f"{bad_rl_data} and {good_rl_data} are not comparable")
        assert run.data.metrics["data/drift_reward_mean"] == pytest.approx(-4 / 9)
        names = {dataset_input.dataset.digest for dataset_input in run.inputs.dataset_inputs}
        assert names == {line.rl_data(path).digest for path in (bad_rl_data, good_rl_data)}
    assert run_step(lambda: line.validate(line.rl_data(good_rl_data), line.rl_data(good_rl_data))).info.status == "FINISHED"


def test_a_file_that_changed_since_its_run_is_no_reference(local, good_rl_data, tmp_path):
    path = tmp_path / "moving.json"
    path.write_text(Path(good_rl_data).read_text())
    line = local()
    run = run_step(lambda: line.validate(line.rl_data(str(path))))
    path.write_text(path.read_text().replace('"gen_method": "beam"', '"gen_method": "random"', 1))
    with pytest.raises(DataError, match=f"but run {run.info.run_id} worked on .*; the file has changed since"):
        line.rl_data(run.info.run_id)
    with pytest.raises(MissingRunError, match=r"run 0{32}: Run .* not found"):
        line.rl_data("0" * 32)


def test_the_runs_of_the_gate_hold_what_people_look_at(local, good_rl_data):
    line = local(gate=GateSettings(thresholds={"query_count_warning": "60", "positive_query_rate_warning.severity": "info"}))
    run = run_step(lambda: line.validate(line.rl_data(good_rl_data)))
    artifacts = {item.path for item in MlflowClient().list_artifacts(run.info.run_id)}
    assert artifacts == {"gate.html", "gate.json", "great_expectations.json"}
    assert run.data.metrics["data/positive_query_rate"] == 0.5
    assert run.data.params["thresholds"] == "query_count_warning=60,positive_query_rate_warning.severity=info"
    assert run.inputs.dataset_inputs[0].dataset.digest == line.rl_data(good_rl_data).digest


def test_grpo_on_a_fresh_store_runs_what_it_needs_first(local, experiment, monkeypatch, caplog):
    """In this process, with small defaults: the upstream steps run as children, in order, and the log says so."""
    monkeypatch.setattr(pipeline, "RolloutSettings", partial(RolloutSettings, n_queries=40, beam_width=2))
    monkeypatch.setattr(pipeline, "RceSettings", partial(RceSettings, epochs=1))
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    with tracking.project_run("test") as run:
        data = line.find_rl_data("auto")
        start = line.find_start("auto", data)
        tracking.run_here(line.grpo(data, start, GrpoSettings(kl_beta=0.12, epochs=1)))
    assert [message.split(",")[0] for message in caplog.messages if "running" in message] == [
        "rl_data=auto: no finished rollout with these settings in this experiment",
        "rollout: running",
        "init=auto: no finished rce run on this data in this experiment",
        "rce: running",
        "validate: running",
    ]
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [child.info.run_name for child in found] == ["validate", "rce", "rollout", "grpo beta 0.12"]
    rce = found[1].info.run_id
    assert [child.data.tags.get("mlflow.parentRunId") for child in found] == [rce, run.info.run_id, run.info.run_id, None]
    assert {child.info.status for child in found} == {"FINISHED"}


def epochs_of(project, run):
    """Metrics of each epoch but the seconds, and the digests of the checkpoints."""
    client = project.client
    names = [name for name in run.data.metrics if not name.startswith("data/") and name != "seconds"]
    histories = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}
    models = json.loads(run.data.tags["lever.models"])
    return histories, {epoch: client.get_logged_model(model).tags["lever.checkpoint_digest"] for epoch, model in models.items()}


def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(project, experiment):
    choices = ["--kl_beta", "0.3", "--epochs", "12", "--lr", "1e-3"]
    command = [sys.executable, "-m", "entrypoints.grpo", *choices]
    environment = {**project.environment, "MLFLOW_EXPERIMENT_NAME": "small"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (states := project.runs(lever_step="grpo", lever_kl_beta="0.3", lever_state_epoch="3")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    (killed,) = states
    killed = project.client.get_run(killed.info.run_id)
    done = int(killed.data.tags["lever.state_epoch"])
    assert killed.info.status == "RUNNING"
    assert done < 12
    gone_on = project.run("grpo", kl_beta=0.3, epochs=12, lr=0.001, resume=killed.info.run_id)
    assert gone_on.returncode == 0, gone_on.stderr
    assert f"goes on after epoch {done} of {killed.info.run_id}" in gone_on.stderr
    resumed = project.runs(lever_step="grpo", lever_kl_beta="0.3")[0]
    assert resumed.data.tags["lever.resumed_from"] == killed.info.run_id
    assert project.run("grpo", kl_beta=0.3, epochs=12, lr=0.001, resume="none").returncode == 0
    undisturbed = project.runs(lever_step="grpo", lever_kl_beta="0.3")[0]
    assert "lever.resumed_from" not in undisturbed.data.tags
    assert epochs_of(project, resumed) == epochs_of(project, undisturbed)
    artifacts = {item.path for item in project.client.list_artifacts(resumed.info.run_id)}
    assert {"training_curves.png", "training_states"} <= artifacts
    assert resumed.data.tags["mlflow.note.content"] == resumed.data.tags["lever.diagnosis"]


def failing_from(monkeypatch, name, call):
    """Makes an MLflow function fail from its n-th call with an epoch on, as when the server has gone."""
    function, calls = getattr(mlflow, name), []

    def failing(*arguments, **keywords):
        if keywords.get("step") is not None:
            calls.append(keywords["step"])
            if len(calls) >= call:
                raise MlflowException("API request failed with connection error")
        return function(*arguments, **keywords)

    monkeypatch.setattr(mlflow, name, failing)
    return calls


def lose_connection(monkeypatch, make_step, *, epoch):
    """Runs a step that MLflow leaves alone when it logs this epoch's metrics."""
    with monkeypatch.context() as patch:
        failing_from(patch, "log_metrics", epoch)
        with pytest.raises(LeverError, match="connection error"):
            run_step(make_step)


def test_when_mlflow_is_gone_the_epochs_are_safe_and_sent_later(local, good_rl_data, monkeypatch):
    line = local()
    data = line.rl_data(good_rl_data)
    settings = RceSettings(epochs=4, batch_size=16)
    with monkeypatch.context() as patch:
        failing_from(patch, "log_metrics", 3)
        with pytest.raises(LeverError, match=r"connection error; the epochs until then are safe in .*: once this is") as error:
            run_step(lambda: line.rce(data, settings))
    folder = re.search(r"-P resume=(\S+) logs them", str(error.value)).group(1)
    unsent = Path(folder)
    assert sorted(path.name for path in unsent.iterdir()) == [*(f"checkpoint-000{i}" for i in (1, 2, 3)), "state-0003"]
    with pytest.raises(ParameterError, match="that training was of another step, or of other settings, data or code"):
        run_step(lambda: line.rce(data, RceSettings(epochs=5, batch_size=16), folder))
    run = run_step(lambda: line.rce(data, settings, folder))
    assert not unsent.exists()
    models = json.loads(run.data.tags["lever.models"])
    undisturbed = run_step(lambda: line.rce(data, settings, "none"))
    again = json.loads(undisturbed.data.tags["lever.models"])
    digests = [
        [mlflow.get_logged_model(m).tags["lever.checkpoint_digest"] for m in found.values()] for found in (models, again)
    ]
    assert digests[0] == digests[1]
    assert list(models) == ["1", "2", "3", "4"]
    history = MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_an_interrupted_training_is_found_by_itself(local, good_rl_data, monkeypatch):
    line = local()
    data = line.rl_data(good_rl_data)
    settings = RceSettings(epochs=4, batch_size=16)
    lose_connection(monkeypatch, lambda: line.rce(data, settings), epoch=3)
    interrupted = mlflow.last_active_run().info.run_id
    told = "that run differs: lr was 0.0001, now 0.002; give the same parameters, or resume=none"
    with pytest.raises(ParameterError, match=f"resume={interrupted}: {told}"):
        run_step(lambda: line.rce(data, replace(settings, lr=0.002), interrupted))
    run = run_step(lambda: line.rce(data, settings))
    assert run.data.tags["lever.resumed_from"] == interrupted
    assert [m.step for m in MlflowClient().get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3, 4]
    assert run_step(lambda: line.rce(data, settings, "none")).data.metrics["train_loss"] == run.data.metrics["train_loss"]
    assert not list((line.resources.cache_dir / "unsent").iterdir())


def test_a_run_whose_states_are_gone_is_no_obstacle(local, good_rl_data, monkeypatch, caplog):
    line = local()
    data = line.rl_data(good_rl_data)
    settings = RceSettings(epochs=2, batch_size=16)
    lose_connection(monkeypatch, lambda: line.rce(data, settings), epoch=2)
    interrupted = mlflow.last_active_run()
    shutil.rmtree(Path(interrupted.info.artifact_uri.removeprefix("file://"), "training_states"))
    with pytest.raises(CheckpointError, match="no whole training state to go on from"):
        run_step(lambda: line.rce(data, settings, interrupted.info.run_id))
    run = run_step(lambda: line.rce(data, settings))
    assert "no whole training state to go on from; starting over" in caplog.text
    assert "lever.resumed_from" not in run.data.tags


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which takes root")
def test_a_full_disk_is_said_and_leaves_earlier_epochs_whole(local, good_rl_data, tmp_path):
    line = local()
    data = line.rl_data(good_rl_data)
    unsent = line.resources.cache_dir / "unsent"
    unsent.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", unsent], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(LeverError, match=r"No space left on device.*; the epochs until then are safe in (\S+):") as error:
            run_step(lambda: line.rce(data, RceSettings(epochs=9, batch_size=16)))
        folder = Path(re.search(r"safe in (\S+):", str(error.value)).group(1))
        state, _ = load_state(max(folder.glob("state-*")))
        for epoch in range(1, len(state.history) + 1):
            load_selector(folder / f"checkpoint-{epoch:04d}")
        assert state.history
    finally:
        subprocess.run(["umount", "--lazy", unsent], check=True)


@pytest.mark.parametrize("name", ["main", "rollout", "validate", "rce", "grpo", "evaluate", "compare", "promote"])
def test_help_answers_at_once(name):
    command = [sys.executable, "-X", "importtime", "-m", f"entrypoints.{name}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "--" in result.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "mlflow", "transformers", "great_expectations", "numpy", "pandas"}
