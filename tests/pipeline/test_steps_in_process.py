"""Steps as runs, in this process on a fresh store: the gate before training, recorded verdicts, two data sets compared."""

import base64
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.projects import facts, run_step
from mlflow import MlflowClient

from lever_mlflow.comparison.from_evaluation import run_of_evaluation
from lever_mlflow.exceptions import CheckpointError, DataError, GateError, MissingRunError, ParameterError
from lever_mlflow.pipeline.baselines import baselines_step
from lever_mlflow.pipeline.comparison import chosen_evaluations, compare_results_step
from lever_mlflow.pipeline.evaluation import evaluate_step, find_evaluation, read_evaluation
from lever_mlflow.pipeline.gate import rl_data_figures, validate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.rollout import find_rl_data, read_rl_data, rollout_step
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.runs import artifacts, steps
from lever_mlflow.runs.steps import run_settings
from lever_mlflow.runs.tags import Tag
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import (
    DataSettings,
    EvalSettings,
    GateSettings,
    GrpoSettings,
    RceSettings,
    RolloutSettings,
    RoundSettings,
)
from lever_mlflow.training.filters import split_groups
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.vlm.prompt import Prompt

ONE_ROUND = RoundSettings(rounds=1)
WAYS = ("raw", "stem", "plain")

NAME = "lever-selector-mini-mini"


def test_training_runs_the_same_gate_and_takes_a_recorded_verdict(local, bad_rl_data, caplog):
    caplog.set_level("DEBUG", logger="lever_mlflow")
    line = local()
    data = find_rl_data(line, bad_rl_data)
    for expected in ("validate: running", "data gate: verdict taken from validate (run "):
        caplog.clear()
        with pytest.raises(GateError, match=r"positive_query_rate: 0\.0000"), steps.project_run("rce") as run:
            steps.run_here(rce_step(line, data, RceSettings()))
        assert any(message.startswith(expected) for message in caplog.messages)
        logged = mlflow.get_run(run.info.run_id)
        assert logged.info.status == "FAILED"
        assert logged.data.tags["lever.gate"] == "critical"
        assert rl_data_figures(run.info.run_id)["data/positive_query_rate"] == 0.0
        assert "train/loss" not in logged.data.metrics
    validations = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`lever.step` = 'validate'", output_format="list"
    )
    assert [run.info.status for run in validations] == ["FAILED"]


def test_runs_that_score_in_different_ways_never_meet(local, good_rl_data):
    line = local()
    scored = {way: replace(line, resources=replace(line.resources, data=DataSettings(scoring=way))) for way in WAYS}
    assert len({context.same_resources()[Tag.IDENTITY] for context in scored.values()}) == 3
    assert scored["raw"].identity() == line.identity()
    assert line.identity()[Tag.PROFILE_DIGEST] == line.resources.language_model.profile.digest
    prompt = Prompt((), line.resources.train[0])  # an answer is the same however it is scored
    assert len({c.resources.language_model.key(Prompt((), c.resources.train[0])) for c in scored.values()}) == 1
    score_keys = {c.resources.language_model.score_key(Prompt((), c.resources.train[0])) for c in scored.values()}
    assert len(score_keys) == 3
    assert line.resources.language_model.score_key(prompt) in score_keys

    settings = RolloutSettings(n_queries=2, beam_width=0, samples_per_temperature=0, random_pointers=2)
    run = run_step(partial(rollout_step, scored["stem"], settings))
    assert facts(run)["scoring"] == "stem"
    data = find_rl_data(line, f"runs:/{run.info.run_id}")
    assert data.meta["scoring"] == "stem"
    with pytest.raises(DataError, match=r"_meta: scoring is 'stem', but this run has scoring=raw; give the scoring with"):
        run_step(partial(validate_step, line, data))


def test_other_data_thresholds_or_shots_need_a_verdict_of_their_own(local, bad_rl_data):
    data = find_rl_data(local(), bad_rl_data)
    keys = {
        validate_step(local(gate=settings), data).key
        for settings in (
            GateSettings(),
            GateSettings(thresholds={"positive_query_rate": "0.05"}),
            GateSettings(max_shots=8),
            GateSettings(on_bad_data="warn"),  # the same verdict: what follows from it is another matter
        )
    }
    assert len(keys) == 3
    assert validate_step(local(), replace(data, digest="0" * 32)).key not in keys
    keys |= {validate_step(local(reward_mode=mode), data).key for mode in ("hard_only", "separated")}
    keys |= {validate_step(local(reward_weights={"hard": weight}), data).key for weight in (1.0, 2.0)}
    assert len(keys) == 6  # a weight of 1 is the default


def test_evaluations_and_baselines_of_another_order_are_other_steps(local):
    keys = {baselines_step(local(), EvalSettings(order=order)).key for order in ("similar-first", "similar-last")}
    assert len(keys) == 2
    assert baselines_step(local(), EvalSettings()).key in keys


def test_a_rollout_reports_what_mining_changed_and_passes_the_gate(local):
    line = local()
    few = RolloutSettings(n_queries=40, beam_width=1, samples_per_temperature=0, retrieval_per_feature=1, random_pointers=2)
    plain, mined = (run_step(partial(rollout_step, line, replace(few, mine_positives=budget))) for budget in (0, 4))
    before, after = plain.data.metrics, mined.data.metrics
    assert not [name for name in before if "mined" in name]
    assert before["rollout/positive_query_rate"] < 1
    groups, train = read_rl_data(line, plain.info.run_id).groups, line.resources.train
    right = [any(train[g.query_id].accuracy(train[i].answer) >= 0.5 for i in g.pool) for g in groups]
    assert before["pool/answer_rate"] == after["pool/answer_rate"] == sum(right) / 40 == 0.9
    without, with_mining = (metrics["rollout/positive_query_rate"] for metrics in (before, after))
    assert after["rollout/positive_query_rate_before"] == without < with_mining
    assert after["rollout/n_trials"] - before["rollout/n_trials"] == after["rollout/mined_trials"]
    assert after["rollout/mined_queries"] == round(40 * (1 - before["rollout/positive_query_rate"]))
    assert after["rollout/mined_queries"] < after["rollout/mined_trials"] <= 4 * after["rollout/mined_queries"]
    path = artifacts.artifact(mined.info.run_id, "rl_data.json")
    groups = load_rl_data(path, keep_records=True).groups
    assert sum(bool(t.record.get("mined")) for group in groups for t in group.trials) == after["rollout/mined_trials"]
    validation = run_step(lambda: validate_step(line, read_rl_data(line, mined.info.run_id)))
    assert validation.data.metrics["data/positive_query_rate"] == after["rollout/positive_query_rate"]
    assert run_settings(mined.info.run_id)["mine_positives"] == 4
    searched = run_step(partial(rollout_step, line, replace(few, search_positives=2)))
    after = searched.data.metrics
    assert after["rollout/positive_query_rate_before"] == without < after["rollout/positive_query_rate"]
    n_found = after["rollout/found_trials"]
    assert n_found == after["rollout/mined_trials"] == after["rollout/mined_queries"]
    assert n_found == round(40 * (after["rollout/positive_query_rate"] - without))
    validation = run_step(lambda: validate_step(line, read_rl_data(line, searched.info.run_id)))
    assert validation.data.metrics["data/share_global_search"] == pytest.approx(n_found / after["rollout/n_trials"])
    assert validation.data.tags["lever.gate"] == "warning"  # as there are few queries


@pytest.mark.slow
def test_a_filtered_training_weighs_and_records_what_it_was_trained_on(local, good_rl_data):
    plain, weighted = local(), local(reward_weights={"hard": 2.0})
    data = find_rl_data(plain, good_rl_data)
    filters = RceSettings(epochs=1, filter_gen_methods=("beam",), require_positive_query=True)
    run = run_step(lambda: rce_step(weighted, data, filters))
    train, _ = split_groups(data.groups, filters.val_share, 0)
    positive = sum(group.query_id % 2 for group in train)  # the odd queries of this file
    assert facts(run)["filtered"] == f"{positive} of 48 training queries with {9 * positive} of 432 trials"
    assert facts(run)["reward_mode"] == "hard_plus_soft:hard=2"
    assert run.data.params["filter_gen_methods"] == "beam"
    metrics = run.data.metrics
    assert metrics["train/reward_mean"] == pytest.approx(4 * 3 / 9)  # 4 of 9 trials are right, which is 2 + 1
    config = yaml.safe_load(artifacts.artifact(run.info.run_id, "config.yaml").read_text())
    assert config["rce"]["reward_weights"] == {"hard": 2.0}
    assert rce_step(plain, data, filters).key != rce_step(weighted, data, filters).key
    assert "filtered" not in facts(run_step(lambda: rce_step(plain, data, RceSettings(epochs=1))))
    with pytest.raises(DataError, match=r"good.json: filter_gen_methods: no trial .* 'sample'; their methods are beam"):
        rce_step(plain, data, RceSettings(filter_gen_methods=("sample",)))


@pytest.mark.slow
def test_an_evaluation_draws_its_pools_by_its_sampler_and_records_it(local, good_rl_data):
    line = local()
    data = find_rl_data(line, good_rl_data)
    rce = run_step(lambda: rce_step(line, data, RceSettings(epochs=1)))
    start = facts(rce)["best_model"]
    grpo = run_step(lambda: grpo_step(line, data, f"models:/{start}", GrpoSettings(kl_beta=0.12, epochs=1), ONE_ROUND))
    small = EvalSettings(sizes=(5,), shots=(1,), n_selection=3, pool_size=4, pool_sampler="text-similarity")
    evaluation = run_step(lambda: evaluate_step(line, grpo.info.run_id, small))
    assert evaluation.data.params["pool_sampler"] == "text-similarity"
    result = json.loads(artifacts.artifact(evaluation.info.run_id, "evaluation.json").read_text())
    assert result["settings"]["pool_sampler"] == "text-similarity"
    records = pd.read_parquet(artifacts.artifact(evaluation.info.run_id, "records.parquet"))
    train, val = line.resources.train, {sample.question_id: sample for sample in line.resources.val}
    train_SD, val_SD = (np.array(line.resources.features(split).text_SD) for split in ("train", "val"))
    rows = records[(records.shots == 1) & ~records.policy.str.endswith("(full training set)")]
    assert len(rows) > 5
    for question, picks in zip(rows.question_id, rows.picks, strict=True):
        order = np.argsort(-(train_SD @ val_SD[val[question].index]), kind="stable")[:50]
        near = [train[i].question_id for i in order if train_SD[i] @ val_SD[val[question].index] > 0.999]
        assert set(picks) <= set(near)
    served_picks_are_the_recorded(records[records.policy == f"epoch {result['best_epoch']}"], val)
    what_is_registered_again_is_not_logged_again(line, grpo.info.run_id, small)


def served_picks_are_the_recorded(records, val):
    """The registered model, asked the evaluation's questions, answers with the recorded picks: its pools hold no draws."""
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@kl-0-12")
    files = [base64.b64encode(val[question].image_path.read_bytes()).decode() for question in records.question_id]
    rows = pd.DataFrame({"question": [val[question].question for question in records.question_id], "image": files})
    assert [answer.question_ids for answer in model.predict(rows, params={"shots": 1})] == [list(p) for p in records.picks]


def what_is_registered_again_is_not_logged_again(line, grpo_run, settings):
    def logged():
        versions = MlflowClient().search_model_versions(f"name = '{NAME}'")
        models = mlflow.search_logged_models(output_format="list")
        return len(versions), len([model for model in models if model.name.startswith("retriever")])

    assert logged() == (1, 1)
    with steps.project_run("test"):
        find_evaluation(line, 0.12)
    assert logged() == (1, 1)
    run_step(lambda: evaluate_step(line, grpo_run, replace(settings, pool_size=5)))
    assert logged() == (2, 2)  # the same checkpoint with another pool is another retriever
    assert MlflowClient().get_model_version_by_alias(NAME, "kl-0-12").version in (2, "2")


@pytest.mark.slow
def test_other_checkpoints_are_evaluated_beside_the_epochs(local, good_rl_data, tmp_path):
    line = local()
    data = find_rl_data(line, good_rl_data)
    torch.manual_seed(0)
    start = PointerSelector().eval()
    save_selector(tmp_path / "same", start, {})
    other = PointerSelector().eval()
    torch.save({"model_state_dict": other.state_dict()}, tmp_path / "old.pt")
    grpo = run_step(
        lambda: grpo_step(line, data, str(tmp_path / "same"), GrpoSettings(kl_beta=0.12, epochs=1, lr=1e-12), ONE_ROUND)
    )
    path = Path(mlflow.get_run(grpo.info.run_id).info.artifact_uri.removeprefix("file://"), "settings.json")
    chosen = json.loads(path.read_text())
    del chosen["require_positive_query"]  # as in the runs of a version that did not have this setting
    path.write_text(json.dumps(chosen))
    small = EvalSettings(sizes=(9,), shots=(2,), n_selection=3, n_oracle=0)
    paths = [str(tmp_path / "old.pt"), str(tmp_path / "same")]
    run = run_step(lambda: evaluate_step(line, grpo.info.run_id, small, paths))
    result = read_evaluation(run.info.run_id)
    old, same = (f"checkpoint {i} ({path})" for i, path in enumerate(paths, start=1))
    overlap = {(row.first, row.second): row for row in result.overlap}
    assert overlap["start", same].reason.rule == "equal_weights"
    assert overlap["start", "epoch 1"].reason.rule == "same_order"
    assert overlap["start", old].ordered < 1.0
    accuracy = {cell.policy: cell.accuracy for cell in result.accuracy}
    assert accuracy["start"] == accuracy[same] == accuracy["epoch 1"]
    assert old in accuracy
    assert result.best_epoch == 1
    assert result.best_single is None
    assert result.checkpoints == tuple(paths)
    assert result.training == GrpoSettings(kl_beta=0.12, epochs=1, lr=1e-12)
    assert set(result.inputs.checkpoints) == {old, same}
    with pytest.raises(ParameterError, match="checkpoints: an empty name between commas"):
        evaluate_step(line, grpo.info.run_id, small, ["a.pt", ""])
    with pytest.raises(CheckpointError, match=r"missing\.pt"):
        evaluate_step(line, grpo.info.run_id, small, [str(tmp_path / "missing.pt")])


def test_a_damaged_record_of_a_verdict_is_replaced(local, bad_rl_data, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    data = find_rl_data(line, bad_rl_data)
    with steps.project_run("validate") as run, pytest.raises(GateError):
        steps.run_here(validate_step(line, data))
    path = Path(mlflow.get_run(run.info.run_id).info.artifact_uri.removeprefix("file://"), "gate.json")
    path.write_text(path.read_text()[:-50])
    with steps.project_run("rce"), pytest.raises(GateError, match=r"positive_query_rate: 0\.0000"):
        steps.run_here(rce_step(line, data, RceSettings()))
    (line,) = [message for message in caplog.messages if "not used again" in message]
    assert line.startswith(f"validate (run {run.info.run_id}) is not used again: its gate.json has ")


@pytest.mark.slow
def test_an_override_is_a_tag_on_runs_checkpoints_and_versions(local, bad_rl_data):
    line = local(gate=GateSettings(on_bad_data="warn"))
    data = find_rl_data(line, bad_rl_data)
    rce = run_step(lambda: rce_step(line, data, RceSettings(epochs=1)))
    start = facts(rce)["best_model"]
    grpo = run_step(lambda: grpo_step(line, data, f"models:/{start}", GrpoSettings(kl_beta=0.12, epochs=1), ONE_ROUND))
    small = EvalSettings(sizes=(5,), shots=(1,), n_selection=3)
    evaluation = run_step(lambda: evaluate_step(replace(line, register="always"), grpo.info.run_id, small))
    model = mlflow.get_logged_model(facts(grpo)["best_model"])
    version = MlflowClient().get_model_version_by_alias(NAME, "kl-0-12")
    reason = rce.data.tags["lever.gate_override"]
    assert reason.startswith("on_bad_data=warn: ")
    assert "positive_query_rate" in reason
    for run in (rce, grpo, evaluation):
        assert (run.info.status, run.data.tags["lever.gate"]) == ("FINISHED", "critical")
        assert run.data.tags["lever.gate_override"] == reason
    assert mlflow.get_logged_model(start).tags["lever.gate_override"] == reason
    assert (model.tags["lever.gate_override"], model.tags["lever.start_gate_override"]) == (reason, reason)
    assert (version.tags["gate_override"], version.tags["start_gate_override"]) == (reason, reason)


@pytest.mark.slow
def test_nothing_is_registered_from_overridden_data_unless_that_is_asked(local, bad_rl_data, caplog):
    line = local(gate=GateSettings(on_bad_data="warn"))
    data = find_rl_data(line, bad_rl_data)
    save_selector("start", PointerSelector(), {})
    grpo = run_step(lambda: grpo_step(line, data, "start", GrpoSettings(kl_beta=0.12, epochs=1), ONE_ROUND))
    small = EvalSettings(sizes=(5,), shots=(1,), n_selection=3)
    evaluation = run_step(lambda: evaluate_step(line, grpo.info.run_id, small))
    overridden = grpo.data.tags["lever.gate_override"]
    refusal = (
        f"Not registered, because the data gate was overridden ({overridden}); `mlflow run . --env-manager local -e evaluate "
        f"-P kl_beta=0.12 -P grpo_run={grpo.info.run_id} -P sizes=5 -P shots=1 -P n_selection=3 -P register=always` registers "
        "it all the same."
    )
    assert f"evaluate beta 0.12: {refusal}" in caplog.messages
    assert evaluation.data.tags["mlflow.note.content"].splitlines()[0].endswith(f"the strongest baseline. {refusal}")
    assert "mlflow models serve" not in evaluation.data.tags["mlflow.note.content"]
    assert "lever.registered" not in evaluation.data.tags
    result = read_evaluation(evaluation.info.run_id)
    assert (result.registration.refusal, result.registration.version) == (refusal, "")
    assert run_of_evaluation(result).registered is None
    with steps.project_run("test"):
        assert find_evaluation(line, 0.12) == evaluation.info.run_id
    assert not MlflowClient().search_registered_models()
    forced = run_step(lambda: evaluate_step(replace(line, register="always"), grpo.info.run_id, small))
    assert forced.data.tags["lever.registered"] == f"{NAME} version 1"
    assert read_evaluation(forced.info.run_id).registration.refusal == ""
    with steps.project_run("test"):
        assert find_evaluation(line, 0.12) == forced.info.run_id


@pytest.mark.slow
def test_nothing_is_registered_from_a_training_that_changed_no_picks(local, good_rl_data):
    line = local()
    data = find_rl_data(line, good_rl_data)
    save_selector("start", PointerSelector(), {})
    still = GrpoSettings(kl_beta=0.12, epochs=1, lr=1e-12)
    grpo = run_step(lambda: grpo_step(line, data, "start", still, ONE_ROUND))
    small = EvalSettings(sizes=(5,), shots=(1,), n_selection=3)
    evaluation = run_step(lambda: evaluate_step(line, grpo.info.run_id, small))
    reason = "Not registered, because the training changed no picks on its validation queries; `mlflow run "
    assert read_evaluation(evaluation.info.run_id).registration.refusal.startswith(reason)
    never = run_step(lambda: evaluate_step(replace(line, register="never"), grpo.info.run_id, small))
    assert read_evaluation(never.info.run_id).registration.refusal == "Not registered, as register=never was given."
    assert not MlflowClient().search_registered_models()


@pytest.mark.slow
def test_two_data_sets_are_compared_by_file_or_run(local, bad_rl_data, good_rl_data):
    line = local()
    good = run_step(lambda: validate_step(line, read_rl_data(line, good_rl_data)))
    assert good.data.tags["lever.gate"] == "pass"
    for reference in (good_rl_data, good.info.run_id, f"runs:/{good.info.run_id}"):
        with pytest.raises(GateError, match=r"cannot be compared: mean reward 0.0000 against 0.4444"):
            run_step(
                lambda reference=reference: validate_step(line, read_rl_data(line, bad_rl_data), read_rl_data(line, reference))
            )
        run = mlflow.last_active_run()
        assert facts(run)["comparison"].startswith(f"{bad_rl_data} and {good_rl_data} cannot be compared")
        assert run.data.metrics["data/drift_reward_mean"] == pytest.approx(-4 / 9)
        names = {dataset_input.dataset.digest for dataset_input in run.inputs.dataset_inputs}
        assert names == {read_rl_data(line, path).digest for path in (bad_rl_data, good_rl_data)}
    assert (
        run_step(lambda: validate_step(line, read_rl_data(line, good_rl_data), read_rl_data(line, good_rl_data))).info.status
        == "FINISHED"
    )


def test_a_file_that_changed_since_its_run_is_no_reference(local, good_rl_data, tmp_path):
    path = tmp_path / "moving.json"
    path.write_text(Path(good_rl_data).read_text())
    line = local()
    run = run_step(lambda: validate_step(line, read_rl_data(line, str(path))))
    path.write_text(path.read_text().replace('"gen_method": "beam"', '"gen_method": "random"', 1))
    with pytest.raises(DataError, match=f"but run {run.info.run_id} worked on .*; the file has changed since"):
        read_rl_data(line, run.info.run_id)
    with pytest.raises(MissingRunError, match=r"run 0{32}: Run .* not found"):
        read_rl_data(line, "0" * 32)


def test_the_runs_of_the_gate_hold_what_people_look_at(local, good_rl_data):
    line = local(gate=GateSettings(thresholds={"query_count_warning": "60", "positive_query_rate_warning.severity": "info"}))
    run = run_step(lambda: validate_step(line, read_rl_data(line, good_rl_data)))
    artifacts = {item.path for item in MlflowClient().list_artifacts(run.info.run_id)}
    results = {"gate.html", "gate.json", "great_expectations.json", "rl_data_figures.json"}
    assert artifacts == {*results, "settings.json", "config.yaml", "facts.json", "manifest.json"}
    assert run.data.metrics["data/positive_query_rate"] == 0.5
    assert run.data.params["thresholds"] == "query_count_warning=60,positive_query_rate_warning.severity=info"
    assert run.inputs.dataset_inputs[0].dataset.digest == read_rl_data(line, good_rl_data).digest


def test_evaluations_that_are_not_told_apart(mlflow_store):
    """Of 17 run ids two at least begin with the same digit."""
    client = MlflowClient()
    with steps.project_run("test") as active:
        run_ids = [client.create_run(active.info.experiment_id, run_name=f"evaluate {i}").info.run_id for i in range(17)]
        for run_id in run_ids:
            client.set_tag(run_id, "lever.step", "evaluate")
            client.set_tag(run_id, "lever.kl_beta", "0.12" if run_id == run_ids[0] else "0.15")
            client.set_terminated(run_id)
        assert chosen_evaluations([run_ids[0], run_ids[1][:20]]) == run_ids[:2]
        digits = [run_id[0] for run_id in run_ids]
        shared = next(digit for digit in digits if digits.count(digit) > 1)
        several = [run_id for run_id in run_ids if run_id[0] == shared]
        with pytest.raises(ParameterError, match=f"evaluations={shared}: several begin so: ") as error:
            chosen_evaluations([shared])
        assert all(run_id in str(error.value) for run_id in several)
        assert chosen_evaluations(run_ids[1:3]) == run_ids[1:3]  # of one beta
        twice = f"evaluations={run_ids[1][:20]}: run {run_ids[1]} is named twice; name each run once"
        with pytest.raises(ParameterError, match=twice):
            chosen_evaluations([run_ids[1], run_ids[1][:20]])
        with pytest.raises(MissingRunError, match="run 0123456789: "):
            chosen_evaluations(["0123456789"])


def test_a_results_file_that_is_none(local, tmp_path):
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"results.json: not valid JSON at line 1"):
        run_step(lambda: compare_results_step(local(), tmp_path / "results.json", "en"))
