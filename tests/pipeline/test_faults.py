"""When things go wrong: bad input, killed processes, a store that fails."""

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import pytest
import torch
from helpers.failures import failing_from, lose_connection
from helpers.projects import ROOT, error_lines, facts, run_step
from mlflow import MlflowClient

import entrypoints.grpo
from lever_mlflow import process_identity
from lever_mlflow.exceptions import CheckpointError, DataError, LeverError, ParameterError
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.resume import interrupted_training
from lever_mlflow.pipeline.rollout import read_rl_data, rollout_step
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.runs.models import checkpoints_of
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GateSettings, GrpoSettings, RceSettings, RolloutSettings, RoundSettings

ONE_ROUND = RoundSettings(rounds=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kl_beta", "abc", "error: Invalid value for '--kl_beta': 'abc' is not a number"),
        ("kl_bta", "0.12", "error: No such option '--kl_bta'. (Did you mean one of: '--kl_beta', '--rl_data'?)"),
        ("rl_data", "/nowhere.json", "error: /nowhere.json: no such file; give rl_data=FILE or run the rollout step"),
    ],
)
def test_bad_parameters_end_in_one_line_and_a_failed_run(project, name, value, message):
    result = project.run("grpo", "errors", **{name: value})
    assert result.returncode != 0
    assert error_lines(result) == [message]
    assert project.newest("errors").info.status == "FAILED"


@pytest.mark.parametrize(("value", "message"), [("-1", "'-1' is not a number of at least 0"), ("nan", "'nan' is not a number")])
def test_a_number_that_is_none_or_out_of_range(value, message):
    with pytest.raises(click.UsageError, match=message):
        entrypoints.grpo.main.main(["--kl_beta", value], standalone_mode=False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr=1e300", "is not a number above 0 and below 1e\\+06"),
        ("--epsilon_high=1e308", "is not a number of at least 0 and below 1e\\+06"),
        ("--mask_zero_std_groups=", "'' is neither true nor false"),
        ("--freeze_backbone=", "'' is neither true nor false"),
        ("--init=", "nothing is given; leave the option out for its default"),
        ("--resume=", "nothing is given; leave the option out for its default"),
    ],
)
def test_values_that_nothing_can_be_done_with(argument, message):
    with pytest.raises(click.UsageError, match=message):
        entrypoints.grpo.main.main([argument], standalone_mode=False)


def test_pointers_that_cannot_be_trained_on_are_named(local, good_rl_data, tmp_path):
    line = local(gate=GateSettings(on_bad_data="warn"))
    content = json.loads(Path(good_rl_data).read_text())
    first = next(name for name in content if name != "_meta")
    trial = content[first]["pointer_candidates"][0]
    for pointer, message in (
        ([], rf"query '{first}': trial 0: pointer is empty; take the trial out"),
        ([0, 99], rf"outside.json: query {first}: a pointer names position 99, but its pool has 64 candidates; take"),
    ):
        trial["pointer"] = pointer
        trial.pop("pointer_global") if not pointer else trial.update(pointer_global=[0, 0])
        if not pointer:
            trial["pointer_global"] = []
        (tmp_path / "outside.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            run_step(lambda: rce_step(line, read_rl_data(line, str(tmp_path / "outside.json")), RceSettings(epochs=1)))
    assert mlflow.last_active_run().info.status == "FAILED"
    description = mlflow.get_run(mlflow.last_active_run().info.run_id).data.tags["mlflow.note.content"]
    assert description.startswith("failed: ")
    assert "outside.json: query" in description


@pytest.mark.slow
def test_data_that_fails_the_gate_fails_the_run(project, bad_rl_data):
    result = project.run("validate", "gate", rl_data=bad_rl_data)
    assert result.returncode != 0
    (line,) = error_lines(result)
    assert "positive_query_rate: 0" in line
    run = project.newest("gate")
    assert run.info.status == "FAILED"
    assert run.data.metrics["data/positive_query_rate"] == 0.0


def epochs_of(project, run):
    """Metrics of each epoch but the seconds, and the digests of the checkpoints."""
    client = project.client
    names = [name for name in run.data.metrics if not name.startswith("data/") and name != "train/seconds"]
    histories = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}
    models = checkpoints_of(run.info.run_id)
    return histories, {epoch: client.get_logged_model(model).tags["lever.checkpoint_digest"] for epoch, model in models.items()}


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_if_it_had_not_been(project, good_rl_data, tmp_path):
    mlflow.set_tracking_uri(project.uri)  # other tests of this module have stores of their own
    save_selector(tmp_path / "start", PointerSelector(), {})
    choices = {"kl_beta": 0.3, "rounds": 1, "epochs": 9, "lr": 0.001, "batch_size": 1}
    choices |= {"rl_data": good_rl_data, "init": tmp_path / "start"}
    command = [sys.executable, "-m", "entrypoints.grpo", *(f"--{name}={value}" for name, value in choices.items())]
    environment = {**project.environment, "MLFLOW_EXPERIMENT_NAME": "small"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (states := project.runs(lever_step="grpo-round", lever_state_epoch="3")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    (killed,) = states
    killed = project.client.get_run(killed.info.run_id)
    last_epoch = int(killed.data.tags["lever.state_epoch"])
    assert killed.info.status == "RUNNING"
    assert last_epoch < 9
    resumption = project.run("grpo", **choices, resume=killed.info.run_id)
    assert resumption.returncode == 0, resumption.stderr
    assert f"resuming after epoch {last_epoch} of {killed.info.run_id}" in resumption.stderr
    resumed = project.runs(lever_step="grpo-round")[0]
    assert resumed.data.tags["lever.resumed_from"] == killed.info.run_id
    subprocess.run([*command, "--resume=none"], cwd=ROOT, env=environment, check=True, capture_output=True)
    undisturbed = project.runs(lever_step="grpo-round")[0]
    assert "lever.resumed_from" not in undisturbed.data.tags
    assert project.client.get_run(killed.info.run_id).info.status == "KILLED"  # and no longer RUNNING
    assert epochs_of(project, resumed) == epochs_of(project, undisturbed)
    artifacts = {item.path for item in project.client.list_artifacts(resumed.info.run_id)}
    assert "training_curves.png" in artifacts
    assert "training_states" not in artifacts  # which only an interrupted training needs
    assert resumed.data.tags["mlflow.note.content"] == facts(resumed)["diagnosis"]


@pytest.mark.parametrize(("choices", "width"), [({"feature_dim": 24}, 512), ({"fusion": "concat"}, 1024)])
def test_a_checkpoint_for_other_features_is_named(local, good_rl_data, tmp_path, choices, width):
    line = local()
    data = read_rl_data(line, good_rl_data)
    save_selector(tmp_path / "other", PointerSelector(**choices), {})
    message = rf"other: its selector takes features of \d+ numbers, but encoder=mini gives {width}; give the encoder that it"
    for make in (
        lambda: grpo_step(line, data, str(tmp_path / "other"), GrpoSettings(), ONE_ROUND),
        lambda: rollout_step(line, RolloutSettings(), str(tmp_path / "other")),
    ):
        with pytest.raises(CheckpointError, match=message):
            run_step(make)
        assert mlflow.last_active_run().info.status == "FAILED"


@pytest.mark.slow
def test_a_terminated_training_is_a_failed_run(project, good_rl_data):
    command = [sys.executable, "-m", "entrypoints.rce", "--rl_data", good_rl_data, "--epochs", "40", "--lr", "2e-3"]
    environment = {**project.environment, "MLFLOW_EXPERIMENT_NAME": "small"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (states := project.runs(lever_step="rce", lever_state_epoch="2")):
        assert process.poll() is None, "it ended before it could be terminated"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "error: terminated"
    (run,) = states
    assert project.client.get_run(run.info.run_id).info.status == "FAILED"
    assert int(project.client.get_run(run.info.run_id).data.tags["lever.state_epoch"]) >= 2


@pytest.mark.slow
def test_when_mlflow_is_gone_the_epochs_are_safe_and_sent_later(local, good_rl_data, monkeypatch):
    line = local()
    data = read_rl_data(line, good_rl_data)
    settings = RceSettings(epochs=4, batch_size=16)
    with monkeypatch.context() as patch:
        failing_from(patch, "log_metrics", 3)
        with pytest.raises(LeverError, match=r"connection error; the epochs until then are safe in .*: once this is") as error:
            run_step(lambda: rce_step(line, data, settings))
    folder = re.search(r"-P resume=(\S+) logs them", str(error.value)).group(1)
    unsent = Path(folder)
    assert sorted(path.name for path in unsent.iterdir()) == [*(f"checkpoint-000{i}" for i in (1, 2, 3)), "state-0003"]
    with pytest.raises(ParameterError, match="that training was of another step, or of other settings, data or code"):
        run_step(lambda: rce_step(line, data, RceSettings(epochs=5, batch_size=16), folder))
    run = run_step(lambda: rce_step(line, data, settings, folder))
    assert not unsent.exists()
    models = checkpoints_of(run.info.run_id)
    undisturbed = run_step(lambda: rce_step(line, data, settings, "none"))
    again = checkpoints_of(undisturbed.info.run_id)
    digests = [
        [mlflow.get_logged_model(m).tags["lever.checkpoint_digest"] for m in of_run.values()] for of_run in (models, again)
    ]
    assert digests[0] == digests[1]
    assert list(models) == [1, 2, 3, 4]
    history = MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_interrupted_training_is_found_by_itself(local, good_rl_data, monkeypatch, caplog):
    line = local()
    data = read_rl_data(line, good_rl_data)
    settings = RceSettings(epochs=4, batch_size=16)
    lose_connection(monkeypatch, lambda: rce_step(line, data, settings), epoch=3)
    interrupted = mlflow.last_active_run().info.run_id
    message = "that run differs: lr was 0.0001, now 0.002; give the same parameters, or resume=none"
    with pytest.raises(ParameterError, match=f"resume={interrupted}: {message}"):
        run_step(lambda: rce_step(line, data, replace(settings, lr=0.002), interrupted))
    run = run_step(lambda: rce_step(line, data, settings))
    assert "threads" not in caplog.text
    assert run.data.tags["lever.resumed_from"] == interrupted
    assert [m.step for m in MlflowClient().get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    assert run_step(lambda: rce_step(line, data, settings, "none")).data.metrics["train/loss"] == run.data.metrics["train/loss"]
    unsent = line.resources.cache_dir / "unsent"
    assert not (unsent / interrupted).exists()
    assert not (unsent / run.info.run_id).exists()


@pytest.mark.slow
def test_another_number_of_threads_is_said(local, good_rl_data, monkeypatch, caplog):
    line = local()
    data = read_rl_data(line, good_rl_data)
    settings = RceSettings(epochs=2, batch_size=16)
    lose_connection(monkeypatch, lambda: rce_step(line, data, settings), epoch=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        run = run_step(lambda: rce_step(line, data, settings))
    finally:
        torch.set_num_threads(threads)
    assert f"it ran with {threads} threads, this with {threads + 1}, so that last digits may differ" in caplog.text
    assert facts(run)["threads"] == str(threads + 1)


def test_a_training_that_still_runs_is_left_alone(local, good_rl_data, monkeypatch, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    data = read_rl_data(line, good_rl_data)
    settings = RceSettings(epochs=2, batch_size=16)
    lose_connection(monkeypatch, lambda: rce_step(line, data, settings), epoch=2)
    other, client = mlflow.last_active_run().info.run_id, MlflowClient()
    client.update_run(other, status="RUNNING")
    step = rce_step(line, data, settings)

    def training_of(process):
        client.set_tag(other, "lever.process", process)
        caplog.clear()
        with mlflow.start_run():
            return interrupted_training(step, "auto")

    place, number, _ = process_identity.this_process().rsplit(" ", 2)
    assert training_of(process_identity.this_process()) is None
    assert f"(run {other}) trains the same just now; starting over beside it" in caplog.text
    with pytest.raises(ParameterError, match=f"resume={other}: that run is still training on this machine; wait for it"):
        interrupted_training(step, other)
    assert training_of(f"another-machine {place.split(' ', 1)[1]} {number} 1") is None
    assert f"in another container; if it was interrupted, give resume={other}" in caplog.text
    assert training_of(f"{place} {number} 1").source == other  # this number belongs to another process by now
    assert training_of(f"{place} {2**22 + 1} 1").source == other


def test_a_run_whose_states_are_gone_is_no_obstacle(local, good_rl_data, monkeypatch, caplog):
    line = local()
    data = read_rl_data(line, good_rl_data)
    settings = RceSettings(epochs=2, batch_size=16)
    lose_connection(monkeypatch, lambda: rce_step(line, data, settings), epoch=2)
    interrupted = mlflow.last_active_run()
    shutil.rmtree(Path(interrupted.info.artifact_uri.removeprefix("file://"), "training_states"))
    with pytest.raises(CheckpointError, match="no whole training state to go on from"):
        run_step(lambda: rce_step(line, data, settings, interrupted.info.run_id))
    run = run_step(lambda: rce_step(line, data, settings))
    assert "no whole training state to go on from; starting over" in caplog.text
    assert "lever.resumed_from" not in run.data.tags
