"""Rounds of GRPO: fresh trials, their own verdict of the data gate, and what ends, reuses and resumes rounds."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import click
import mlflow
import pytest
import torch
from helpers.projects import facts, run_step
from mlflow import MlflowClient

import entrypoints.grpo
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.pipeline import grpo
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.grpo import candidates_of, grpo_step, why_nothing_was_learnt
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import read_rl_data, recorded_settings
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.metrics import epoch_metrics
from lever_mlflow.runs.models import checkpoints_of
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GateSettings, GrpoSettings, RolloutSettings, RoundSettings
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data

QUICK = GrpoSettings(kl_beta=0.12, epochs=1)
LOW_REWARDS = {"reward_mean.max_value": "1.0"}  # those of the file are 0.44 on average, and those of fresh trials above 1


@pytest.fixture
def start(tmp_path):
    """Path of an untrained selector."""
    torch.manual_seed(5)
    save_selector(tmp_path / "start", PointerSelector(), {})
    return str(tmp_path / "start")


@pytest.fixture(scope="session")
def twelve_queries(good_rl_data, tmp_path_factory):
    """A file of 12 queries, so that a round takes few answers."""
    path = tmp_path_factory.mktemp("twelve") / "twelve.json"
    save_rl_data(path, load_rl_data(good_rl_data, keep_records=True).groups[:12], {})
    return str(path)


def few(**choices):
    """Settings of the gate that let 12 queries pass."""
    thresholds = {"query_count": "2", **choices.pop("thresholds", {})}
    return GateSettings(thresholds=thresholds, **choices)


def children(run):
    """The child runs of a run by name."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {child.info.run_name: child for child in runs if child.data.tags.get("mlflow.parentRunId") == run.info.run_id}


def digests(run):
    """Digests of the checkpoints of all rounds by epoch."""
    models = checkpoints_of(run.info.run_id)
    return {epoch: mlflow.get_logged_model(model).tags["lever.checkpoint_digest"] for epoch, model in models.items()}


@pytest.mark.slow
def test_rl_data_of_a_file_are_those_of_the_first_round(local, start, twelve_queries):
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, replace(QUICK, epochs=2), RoundSettings(rounds=3)))
    rounds = children(run)
    assert rounds["grpo beta 0.12 round 1"].data.tags["lever.rl_data_digest"] == data.digest
    recorded = [load_rl_data(artifact(rounds[f"rollout round {number}"].info.run_id, "rl_data.json")) for number in (2, 3)]
    for number, fresh in zip((2, 3), recorded, strict=True):
        assert rounds[f"grpo beta 0.12 round {number}"].data.tags["lever.rl_data_digest"] == fresh.digest
        assert (len(fresh.groups), fresh.meta["round"]) == (12, number)
        assert {len(trial.pointer) for group in fresh.groups for trial in group.trials} == {2}  # as in the file
    assert {group.query_id for group in recorded[0].groups}.isdisjoint({group.query_id for group in recorded[1].groups})
    assert list(digests(run)) == list(epoch_metrics(run.info.run_id)) == [1, 2, 3, 4, 5, 6]
    assert list(candidates_of(run.info.run_id)) == [2, 4, 6]
    assert run.data.tags["lever.best_epoch"] == "6"
    assert run.data.tags["mlflow.note.content"].startswith("3 of 3 rounds, 6 epochs; reward of the policy's first choice")


def test_one_round_is_a_plain_training(local, start, twelve_queries):
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, QUICK, RoundSettings(rounds=1)))
    assert "grpo beta 0.12 round 1" in children(run)
    assert not any(name.startswith("rollout") for name in children(run))
    torch.manual_seed(5)
    features_SD = line.resources.features("train").fused_SD
    (epoch,) = train_grpo(PointerSelector(), data, features_SD, QUICK, seed=0)
    assert digests(run) == {1: selector_digest(epoch.selector)}


def test_methods_that_later_rounds_do_not_record_are_refused_before_the_first(local, start, twelve_queries):
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    odd = tuple(replace(g, trials=tuple(replace(t, gen_method="aug_swap") for t in g.trials)) for g in data.groups[:6])
    data = replace(data, groups=(*odd, *data.groups[6:]))
    settings = replace(QUICK, filter_gen_methods=("beam", "aug_swap"))
    with pytest.raises(ParameterError, match="later rounds record trials of beam, sample, retrieval, random, and none of aug"):
        grpo_step(line, data, start, settings, RoundSettings(rounds=2))
    single = grpo_step(line, data, start, settings, RoundSettings(rounds=1))
    assert single.settings["filter_gen_methods"] == ("beam", "aug_swap")
    rounds = grpo_step(line, data, start, replace(QUICK, filter_gen_methods=("beam",)), RoundSettings(rounds=2))
    assert rounds.settings["filter_gen_methods"] == ("beam",)


@pytest.mark.slow
def test_one_round_offers_all_its_epochs(local, start, twelve_queries):
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, replace(QUICK, epochs=3), RoundSettings(rounds=1)))
    assert list(candidates_of(run.info.run_id)) == [1, 2, 3]


def test_no_round_at_all_is_refused():
    command = click.Command("grpo", params=entrypoints.grpo.main.params)
    with pytest.raises(click.BadParameter, match="'0' is not a whole number of at least 1"):
        command.main(["--rounds=0"], standalone_mode=False)


@pytest.mark.slow
def test_critical_trials_end_the_rounds_with_what_was_reached(local, start, twelve_queries):
    line = local(gate=few(thresholds=LOW_REWARDS))
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, QUICK, RoundSettings(rounds=3)))
    assert run.info.status == "FINISHED"
    assert list(candidates_of(run.info.run_id)) == [1]
    assert facts(run)["rounds_done"] == "1"
    ended = facts(run)["rounds_ended"]
    assert ended.startswith("ended before round 2 with what was reached: ")
    assert "reward_mean" in ended
    assert ended in run.data.tags["mlflow.note.content"]
    critical = "tags.`lever.step` = 'validate' and tags.`lever.gate` = 'critical'"
    stopped = mlflow.search_runs(search_all_experiments=True, filter_string=critical, output_format="list")
    assert [validation.info.status for validation in stopped] == ["FAILED"]
    assert "lever.gate_override" not in run.data.tags


@pytest.mark.slow
def test_critical_trials_that_are_let_through_are_named(local, start, twelve_queries):
    line = local(gate=few(thresholds=LOW_REWARDS, on_bad_data="warn"))
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, QUICK, RoundSettings(rounds=2)))
    assert facts(run)["rounds_done"] == "2"
    assert run.data.tags["lever.gate_override"] == "round 2: reward_mean"


@pytest.mark.slow
def test_rounds_that_no_longer_help_are_the_last(local, start, twelve_queries, monkeypatch):
    """The first choice has rewards of 1, 2, 1.5 and 2 in the trials of rounds 1 to 4: two rounds in a row without a rise."""
    rewards = iter([1.0, 2.0, 1.5, 2.0])
    monkeypatch.setattr(grpo, "first_choice_reward", lambda groups, mode: next(rewards))
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    run = run_step(lambda: grpo_step(line, data, start, QUICK, RoundSettings(rounds=9, round_patience=2)))
    assert facts(run)["rounds_done"] == "3"
    assert facts(run)["rounds_ended"] == (
        "ended before round 4: the reward of the policy's first choice no longer rises (1.000, 2.000, 1.500, 2.000)"
    )


@pytest.mark.slow
def test_kl_may_refer_to_the_start_of_each_round(local, start, twelve_queries):
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    references = {}
    for kl_reference in ("start", "round"):
        settings = RoundSettings(rounds=2, kl_reference=kl_reference)
        second = children(run_step(lambda settings=settings: grpo_step(line, data, start, QUICK, settings)))
        recorded = facts(second["grpo beta 0.12 round 2"])
        references[kl_reference] = recorded["reference_policy"], recorded["start_digest"]
    assert references["round"][0] == references["round"][1]
    assert references["start"][0] != references["start"][1]


@pytest.mark.slow
def test_finished_rounds_are_reused_and_trained_anew_only_when_asked(local, start, twelve_queries, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local(gate=few())
    data = read_rl_data(line, twelve_queries)
    rounds = RoundSettings(rounds=2)
    first = run_step(lambda: grpo_step(line, data, start, QUICK, rounds))
    caplog.clear()
    second = run_step(lambda: grpo_step(line, data, start, QUICK, rounds))
    assert digests(second) == digests(first)
    assert sum("reused from" in message for message in caplog.messages) == 3  # two trainings and a rollout
    assert not children(second)
    anew = run_step(lambda: grpo_step(line, data, start, QUICK, rounds, "none"))
    assert digests(anew) == digests(first)
    assert sorted(children(anew)) == ["grpo beta 0.12 round 1", "grpo beta 0.12 round 2"]
    with pytest.raises(ParameterError, match="epochs was 1, now 2"):
        run_step(lambda: grpo_step(line, data, start, replace(QUICK, epochs=2), rounds, first.info.run_id))


def test_later_rounds_record_as_the_first_one_did(local, good_rl_data):
    data = read_rl_data(local(), good_rl_data)
    assert recorded_settings(data) == RolloutSettings(n_queries=60, shots=2)
    meta = {"n_queries": 7, "temperatures": [0.5, 2.0], "pool_sampler": "mixed", "mean": 3}
    fewer = replace(data, groups=tuple(replace(group, pool=group.pool[:20]) for group in data.groups[:5]), meta=meta)
    same = {"n_queries": 5, "temperatures": (0.5, 2.0), "pool_sampler": "mixed", "shots": 2}
    assert recorded_settings(fewer) == RolloutSettings(**same, pool_size=20)
    assert recorded_settings(replace(fewer, vintage="pointers")) == RolloutSettings(**same)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"pool_sampler": "best"}, "_meta: pool_sampler is 'best' .*; correct or remove it, or give rounds=1"),
        ({"beam_width": "many"}, "_meta: beam_width is 'many'"),
        ({"beam_width": -1}, r"_meta: beam_width is -1 \(expected at least 0\)"),
        ({"temperatures": [1.0, 0.0]}, r"_meta: temperatures is \[1.0, 0.0\] \(expected at least 0.05\)"),
        ({"temperatures": [float("nan")]}, "_meta: temperatures is "),
    ],
)
def test_a_meta_that_later_rounds_cannot_use_is_reported_before_the_first(local, start, good_rl_data, meta, message):
    line = local()
    data = replace(read_rl_data(line, good_rl_data), meta=meta)
    with pytest.raises(DataError, match=message):
        grpo_step(line, data, start, QUICK, RoundSettings(rounds=2))
    grpo_step(line, data, start, QUICK, RoundSettings(rounds=1))  # which needs none of it


PROCESS = multiprocessing.get_context("forkserver")


def train_until_killed(uri, cache_dir, rl_data, start, steps):
    """Runs rounds of GRPO in a process that ends itself by SIGKILL after so many steps of the optimiser."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("test")
    step, steps_so_far = torch.optim.AdamW.step, []

    def counting(*arguments, **keywords):
        steps_so_far.append(1)
        if len(steps_so_far) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments, **keywords)

    torch.optim.AdamW.step = counting
    line = Context(Resources(cache_dir=cache_dir), gate=few())
    data = read_rl_data(line, rl_data)
    run_step(lambda: grpo_step(line, data, start, replace(QUICK, epochs=3), RoundSettings(rounds=2)))


@pytest.mark.slow
def test_a_kill_in_the_second_round_loses_nothing(local, mlflow_store, cache_dir, start, twelve_queries, caplog):
    """10 training queries at 8 a step make 2 steps an epoch: step 11 is the first of the last epoch of round 2."""
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local(gate=few())
    process = PROCESS.Process(target=train_until_killed, args=(mlflow_store, cache_dir, twelve_queries, start, 11))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    killed = {run.info.run_name: run.info.run_id for run in MlflowClient().search_runs(["1"], "attributes.status = 'RUNNING'")}
    assert sorted(killed) == ["grpo beta 0.12", "grpo beta 0.12 round 2"]
    data = read_rl_data(line, twelve_queries)
    settings, rounds = replace(QUICK, epochs=3), RoundSettings(rounds=2)
    resumed = run_step(lambda: grpo_step(line, data, start, settings, rounds, killed["grpo beta 0.12"]))
    assert "grpo beta 0.12 round 1: reused from" in caplog.text
    assert "rollout round 2: reused from" in caplog.text
    assert f"resuming after epoch 2 of {killed['grpo beta 0.12 round 2']}" in caplog.text
    assert {mlflow.get_run(run_id).info.status for run_id in killed.values()} == {"KILLED"}
    mlflow.set_experiment("undisturbed")
    undisturbed = run_step(lambda: grpo_step(line, data, start, settings, rounds))
    assert digests(resumed) == digests(undisturbed)
    metrics = [json.loads(json.dumps(epoch_metrics(run.info.run_id))) for run in (resumed, undisturbed)]
    for epochs in metrics:
        for epoch in epochs.values():
            del epoch["train/seconds"]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("ends", "epoch", "reason"),
    [
        ([2, 4, 6], 2, "the training found no signal, as 97% of its groups have equal rewards"),
        ([2, 4, 6], 4, "the training changed no picks on its validation queries"),
        ([2, 4, 6], 6, ""),  # the third round changed picks
        ([6], 1, ""),  # a single round is judged by its last epoch
    ],
)
def test_rounds_taught_nothing_if_none_of_those_before_an_epoch_did(mlflow_store, ends, epoch, reason):
    """The first two epochs have no contrast, the next two change no picks, and the last one does."""
    flat, changed = (0.97, 0.97, 0.5, 0.5, 0.5, 0.5), (0.1, 0.1, 0.2, 0.0, 0.0, 0.1)
    with mlflow.start_run() as run:
        for step, values in enumerate(zip(flat, changed, strict=True), start=1):
            names = ("train/frac_reward_zero_std", "val/picks_changed")
            mlflow.log_metrics(dict(zip(names, values, strict=True)), step=step)
        mlflow.log_dict({"last_epochs": ends}, "rounds.json")
    assert why_nothing_was_learnt(run.info.run_id, epoch) == reason
