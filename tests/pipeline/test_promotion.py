"""Evidence for and against a promotion, promotions on a real store, rollback and status."""

import itertools
import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.projects import run_step
from mlflow import MlflowClient

from lever_mlflow.exceptions import LeverError, MissingRunError, PromotionError
from lever_mlflow.registry import champion, evidence, model_card, versions
from lever_mlflow.runs import artifacts
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, PromotionSettings

NAME = "lever-selector-mini-mini"
SHOTS = (1, 2)
GATED = {"gate": "pass"}


def records_of(policies, part="report"):
    """Records of policies, given as accuracies [draws, shots, Q]."""
    rows = [
        (policy, draw, part, position, 1000 + position, shots, [7, 8][:shots], "digest", "answer", float(accuracy))
        for policy, accuracies in policies.items()
        for draw, of_draw in enumerate(np.atleast_3d(accuracies) if np.ndim(accuracies) == 3 else [accuracies])
        for shots, of_shots in zip(SHOTS, of_draw, strict=True)
        for position, accuracy in enumerate(of_shots)
    ]
    columns = "policy draw part position question_id shots picks prompt answer accuracy".split()
    return pd.DataFrame(rows, columns=columns)


def result_of(questions, kl_beta=0.12, run_id="run", **inputs):
    digests = {f"{name}_digest": f"digest of {name}" for name in ("dataset", "vlm", "profile", "encoder", "rl_data", "start")}
    return {
        "kl_beta": kl_beta,
        "best_epoch": 1,
        "selection_accuracy": {"1": 0.5, "2": 0.25},
        "settings": {
            "sizes": [questions // 2, questions],
            "shots": list(SHOTS),
            "n_selection": 9,
            "pool_size": 64,
            "pool_sampler": "random",
            "random_draws": 2,
            "n_oracle": 0,
        },
        "training": {"lr": 5e-06, "epochs": 2},
        "inputs": {
            **digests,
            "seed": 0,
            "start": "rce epoch 4",
            "start_uri": "models:/m-1",
            "grpo_run": "g1",
            **GATED,
            **inputs,
        },
        "resources": {"dataset": "mini", "vlm": "mini", "encoder": "mini"},
        "registered": {"name": NAME, "alias": versions.beta_alias(kl_beta)},
        "run_id": run_id,
        "git_commit": "c0ffee",
    }


def test_gain_is_paired_over_questions_and_averaged_over_shots_and_draws():
    own = np.array([[1.0, 0.6, 0.0], [1.0, 0.0, 0.3]])
    draws = np.array([[[0.0, 0.6, 0.0], [0.3, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.3, 0.0, 0.6]]])
    found = evidence.gain(records_of({"epoch 1": own}), "epoch 1", records_of({"random": draws}), "random", seed=0)
    differences = np.array([1.0 - 0.4, 0.3 - 0.15, 0.15 - 0.15])  # by hand: 1.6 / 4, 0.6 / 4 and 0.6 / 4
    assert found.points == pytest.approx(100 * differences.mean())
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))
    extreme = np.abs(signs @ differences) >= differences.sum() - 1e-9
    assert found.p_value == pytest.approx(extreme.mean()) == 0.5
    assert (found.low, found.high) == pytest.approx((0.0, 60.0))  # of 27 equally likely resamples the outermost
    assert found.questions == 3
    assert str(found) == "+25.00 points [+0.00, +60.00], p = 0.500, 3 questions"


def test_gain_on_other_questions_or_of_an_unknown_policy_is_refused():
    first = records_of({"epoch 1": np.ones((2, 3))})
    for other, policy in ((records_of({"epoch 1": np.ones((2, 2))}), "epoch 1"), (first, "epoch 2")):
        with pytest.raises(LeverError, match="do not cover the same questions; evaluate again"):
            evidence.gain(first, "epoch 1", other, policy, seed=0)


@pytest.mark.parametrize(
    ("tags", "met", "says"),
    [
        ({"gate": "pass"}, True, "data gate: pass"),
        ({"gate": "warning"}, True, "data gate: warning"),
        ({"gate": "critical", "gate_override": "a is 0"}, False, "data gate: critical; gate_override: a is 0"),
        ({"gate": "pass", "start_gate_override": "b is 1"}, False, "data gate: pass; start_gate_override: b is 1"),
        ({}, False, "data gate: missing"),
    ],
)
def test_gate(tags, met, says):
    assert evidence.gate_condition(tags)[:3] == ("gate", met, says)


@pytest.mark.parametrize(
    ("gains", "losses", "met"), [(6, 0, True), (5, 0, False), (0, 6, False), (12, 2, True), (9, 3, False), (0, 0, False)]
)
def test_better_than_random_takes_a_test_and_an_interval(gains, losses, met):
    """p of a sign test: 2 / 64 for 6 : 0, 2 / 32 for 5 : 0, 0.013 for 12 : 2, 0.146 for 9 : 3."""
    own, random = np.full((2, 40), 0.3), np.full((2, 40), 0.3)
    own[:, :gains], own[:, 40 - losses :] = 1.0, 0.3
    random[:, 40 - losses :] = 1.0
    frame = records_of({"epoch 1": own, "random": random})
    assert evidence.gain_over_random(frame, "epoch 1", seed=0).met == met


@pytest.mark.parametrize(
    ("gains", "losses", "min_gain", "met", "reason"),
    [
        (0, 0, 0.0, True, ""),
        (6, 0, 0.0, True, ""),
        (0, 5, 0.0, True, ""),
        (0, 6, 0.0, False, ": significantly worse"),
        (4, 0, 10.0, True, ""),
        (4, 0, 10.1, False, ": below min_gain=10.1"),
        (0, 0, 0.1, False, ": below min_gain=0.1"),
    ],
)
def test_over_the_champion(gains, losses, min_gain, met, reason):
    own, champions = np.zeros((2, 40)), np.zeros((2, 40))
    own[:, :gains] = 1.0
    champions[:, 40 - losses :] = 1.0 if losses else 0.0
    frames = records_of({"epoch 1": own}), "epoch 1", records_of({"epoch 2": champions}), "epoch 2"
    found = evidence.gain_over_champion(*frames, PromotionSettings(min_gain=min_gain), seed=0)
    assert found.met == met
    assert found.says.endswith(f"40 questions{reason}")


def test_what_an_evaluation_covers():
    result, records = result_of(6), records_of({"epoch 1": np.ones((2, 6))})
    fewer = records[records.position < 4]
    assert evidence.covers(records, result, fewer, result)
    assert not evidence.covers(fewer, result, records, result)
    assert not evidence.covers(records[records.shots == 1], result, fewer, result)
    assert not evidence.covers(records.assign(part="selection"), result, fewer, result)
    for section, name in (
        ("inputs", "seed"),
        ("inputs", "vlm_digest"),
        ("settings", "pool_size"),
        ("settings", "pool_sampler"),
    ):
        other = {**result, section: {**result[section], name: "other"}}
        assert not evidence.covers(records, other, fewer, result), name


def test_tags_and_card():
    accuracies = {"zero-shot": np.ones((2, 4)) * 0.3, "random": np.zeros((3, 2, 4)), "epoch 2": np.ones((2, 4))}
    own = np.array([[1.0, 0.0, 0.6, 0.0], [1.0, 0.0, 0.0, 0.0]])
    records = records_of({**accuracies, "epoch 1": own, "start": own / 2, "fused-similarity of all": own})
    records.loc[records.policy == "zero-shot", "shots"] = 0
    selection = records_of({"epoch 1": np.ones((2, 9))}, part="selection")
    result, records = result_of(4, gate_override="a is 0"), pd.concat([records, selection], ignore_index=True)
    tags = model_card.version_tags(result, records)
    low, high = json.loads(tags["acc_n4_shots1_interval"])
    assert 0.0 <= low < 40.0 < high <= 100.0
    assert (tags["acc_n4_shots1"], tags["acc_n4_shots2"], tags["acc_n4_mean"]) == ("40.00", "25.00", "32.50")
    assert tags["baseline_start_n4_shots1"] == "20.00"
    assert tags["baseline_zero_shot_n4_shots0"] == "30.00"
    assert tags["baseline_random_n4_mean"] == "0.00"
    assert tags["baseline_fused_similarity_of_all_n4_shots2"] == "25.00"
    assert not [key for key in tags if "epoch_" in key]
    told = ("epoch", "evaluation_run", "git_commit", "questions", "gate", "gate_override", "start", "start_uri", "grpo_run")
    expected = ["1", "run", "c0ffee", "4", "pass", "a is 0", "rce epoch 4", "models:/m-1", "g1"]
    assert [tags[name] for name in told] == expected
    assert tags["rl_data_digest"] == "digest of rl_data"
    card = model_card.markdown(result, records)
    assert re.search(r"^\| epoch 1 \|  \| 40\.0 \[\d.*\] \| 25\.0 \[.*\] \| 32\.5 \[.*\] \|$", card, re.MULTILINE)
    assert re.search(r"^\| zero-shot \| 30\.0 \[30\.0, 30\.0\] \|  \|  \| 30\.0 ", card, re.MULTILINE)
    assert "mean over shots by epoch: 1: 50.00, 2: 25.00" in card
    assert "overrides: a is 0" in card
    assert f'mlflow.pyfunc.load_model("models:/{NAME}@kl-0-12")' in card


def test_records_digest_is_of_their_content(tmp_path):
    records = records_of({"epoch 1": np.array([[1.0, 0.6], [0.9, 0.3]])})
    records.to_parquet(tmp_path / "records.parquet")
    digest = model_card.records_digest(records)
    assert model_card.records_digest(pd.read_parquet(tmp_path / "records.parquet")) == digest
    assert model_card.records_digest(records.assign(accuracy=records.accuracy.replace(0.6, 0.3))) != digest
    assert model_card.records_digest(records.assign(picks=[[8, 7]] * 4)) != digest


def test_a_description_is_never_longer_than_the_database_takes():
    result, records = result_of(4), records_of({"epoch 1": np.ones((2, 4)), "start": np.ones((2, 4))})
    result["training"] = {f"setting {i}": "x" * 50 for i in range(200)}
    card = model_card.markdown({**result, "resources": dict.fromkeys(result["resources"], "y" * 500)}, records)
    assert len(card) <= 3500
    assert card.endswith("(cut: the rest is in evaluation.json and promotion.json)\n")
    once = model_card.promoted("line\n" * 1000, "line\n" * 1000)
    assert 4900 < len(once) <= 5000
    again = model_card.promoted(once, "Champion since today.")
    assert again.count("## Promotion") == 1
    assert again.endswith("## Promotion\n\nChampion since today.")
    assert model_card.renewed("new card", again) == "new card\n\n## Promotion\n\nChampion since today."
    assert model_card.renewed("new card", "old card") == "new card"


@pytest.fixture
def register(mlflow_store, tmp_path):
    """register(beta, own accuracies, **inputs) makes a version with an evaluation, in which random is right on every other."""
    client = MlflowClient()
    client.create_registered_model(NAME)

    def make(kl_beta, own, **inputs):
        own = np.array([own, own])
        random = np.tile([0.0, 1.0], (2, own.shape[1] // 2))
        records = records_of({"epoch 1": own, "start": own, "random": np.stack([random, random])})
        with mlflow.start_run() as run:
            result = result_of(own.shape[1], kl_beta, run.info.run_id, **inputs)
            mlflow.log_dict(result, "evaluation.json")
            artifacts.log_frame(records, tmp_path / "records.parquet")
        tags = {**model_card.version_tags(result, records), "kl_beta": f"{kl_beta:g}"}
        version = str(client.create_model_version(NAME, "s3://nothing/there", tags=tags, description="A card.").version)
        client.set_registered_model_alias(NAME, versions.beta_alias(kl_beta), version)
        return version

    return make


def right(first, second):
    """Accuracies on 40 questions: right on so many of those that random gets wrong, and of those that it gets right."""
    accuracies = np.zeros(40)
    accuracies[0 : 2 * first : 2] = 1.0
    accuracies[1 : 1 + 2 * second : 2] = 1.0
    return accuracies


def promote(local, kl_beta, **settings):
    return run_step(lambda: local().promote(kl_beta, PromotionSettings(**settings)))


def aliases():
    return tuple(champion.holders(NAME))


def test_promotion_of_the_better_writes_its_evidence(local, register, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    assert register(0.12, right(10, 20)) == "1"
    run = promote(local, 0.12)
    assert aliases() == ("1", None)
    assert caplog.messages == [
        "met: data gate: pass",
        f"met: over random demonstrations: {(gain := '+25.00 points [+12.50, +40.00], p = 0.002, 40 questions')}",
        f"{NAME} version 1 (beta 0.12) is champion",
    ]
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_run"] == run.info.run_id
    assert version.tags["promotion_override"] == "none"
    assert version.tags["promotion_random"] == f"over random demonstrations: {gain}"
    assert version.description.startswith("A card.\n\n## Promotion\n\nChampion since ")
    assert f"in place of version none, run {run.info.run_id}." in version.description
    assert f"- over random demonstrations: {gain}" in version.description
    assert run.data.tags["lever.champion"] == "1"
    assert run.data.tags["mlflow.note.content"] == f"{NAME} version 1 (beta 0.12) is champion"
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    assert [(row["name"], row["met"]) for row in evidence["conditions"]] == [("gate", True), ("random", True)]
    assert evidence["conditions"][1]["gain"]["points"] == 25.0
    assert (evidence["champion"], evidence["force"], evidence["min_gain"]) == (None, False, 0.0)


def test_promoting_the_champion_changes_nothing_and_says_so(local, register):
    register(0.12, right(10, 20))
    promote(local, 0.12)
    before = MlflowClient().get_model_version(NAME, "1")
    run = promote(local, 0.12)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == f"{NAME} version 1 (beta 0.12) is champion already; nothing was changed"
    assert MlflowClient().get_model_version(NAME, "1").tags == before.tags
    assert champion.settle(NAME) == 1


def test_a_refused_promotion_names_what_failed_and_changes_nothing(local, register):
    register(0.12, right(20, 20))
    promote(local, 0.12)
    register(0.15, right(10, 20))
    before = MlflowClient().get_model_version(NAME, "2")
    told = "over the champion: -25.00 points [-40.00, -12.50], p = 0.002, 40 questions: significantly worse"
    with pytest.raises(PromotionError) as error:
        promote(local, 0.15)
    assert str(error.value) == (
        f"{NAME} version 2 (beta 0.15) is not promoted: {told}; nothing was changed, force=true promotes it in spite of that"
    )
    run = mlflow.last_active_run()
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == str(error.value)
    assert [
        row["met"] for row in json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())["conditions"]
    ] == [
        True,
        True,
        False,
    ]
    assert aliases() == ("1", None)
    after = MlflowClient().get_model_version(NAME, "2")
    assert (after.tags, after.description) == (before.tags, before.description)


@pytest.mark.parametrize(
    ("own", "inputs", "said"),
    [
        (right(3, 20), {}, "over random demonstrations: .*: not better; nothing"),
        (right(20, 20), {"gate": "critical", "gate_override": "x is 0"}, "data gate: critical; gate_override: x is 0; nothing"),
        (right(20, 20), {"start_gate_override": "x is 0"}, "data gate: pass; start_gate_override: x is 0; nothing"),
    ],
)
def test_each_condition_and_its_override(local, register, own, inputs, said):
    register(0.12, own, **inputs)
    with pytest.raises(PromotionError, match=said):
        promote(local, 0.12)
    assert aliases() == (None, None)
    run = promote(local, 0.12, force=True)
    assert aliases() == ("1", None)
    failed = "gate" if inputs else "random"
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_override"] == failed
    assert " (overridden by force=true)" in version.description
    assert run.data.tags["mlflow.note.content"].endswith(f"is champion; force=true overrode: {failed}")


def test_a_gain_may_be_asked_for(local, register):
    register(0.12, right(10, 20))
    promote(local, 0.12)
    register(0.15, right(12, 20))
    with pytest.raises(PromotionError, match=r"over the champion: \+5.00 points .*: below min_gain=5.5; nothing"):
        promote(local, 0.15, min_gain=5.5)
    run = promote(local, 0.15, min_gain=5.0)
    assert aliases() == ("2", "1")
    assert run.data.tags["mlflow.note.content"] == f"{NAME} version 2 (beta 0.15) is champion, version 1 previous-champion"


def test_records_that_are_gone_or_changed_are_no_evidence(local, register, tmp_path):
    register(0.12, right(20, 20))
    client = MlflowClient()
    client.set_model_version_tag(NAME, "1", "evaluation_digest", "0" * 16)
    with pytest.raises(
        PromotionError, match=r"no evidence on random: run .*: records.parquet is not what version 1 was regist"
    ):
        promote(local, 0.12)
    run_id = client.get_model_version(NAME, "1").tags["evaluation_run"]
    (tmp_path / "records.parquet").write_bytes(b"no parquet")
    client.log_artifact(run_id, str(tmp_path / "records.parquet"))
    with pytest.raises(PromotionError, match=r"no evidence on random: run .*: records.parquet cannot be read \("):
        promote(local, 0.12)
    client.set_model_version_tag(NAME, "1", "evaluation_run", "0" * 32)
    with pytest.raises(PromotionError, match=r"no evidence on random: run 0{32}: artifact records.parquet cannot be read"):
        promote(local, 0.12)
    client.delete_model_version_tag(NAME, "1", "evaluation_run")
    with pytest.raises(
        PromotionError, match="no evidence on random: version 1 has no tag evaluation_run; run the evaluate step"
    ):
        promote(local, 0.12)
    promote(local, 0.12, force=True)
    assert client.get_model_version(NAME, "1").tags["promotion_override"] == "random"


def test_a_champion_that_cannot_be_evaluated_here(local, register):
    register(0.12, right(20, 20), seed=1)
    promote(local, 0.12)
    register(0.15, right(20, 20))
    with pytest.raises(
        PromotionError, match=r"no evidence on champion: run .* evaluated with dataset_digest digest of dataset, but"
    ):
        promote(local, 0.15)
    assert aliases() == ("1", None)


def test_a_champion_that_changed_meanwhile(local, register, monkeypatch):
    register(0.12, right(20, 20))
    register(0.15, right(20, 20))
    judged = evidence.gain_over_random

    def meanwhile(*arguments):
        if aliases() == (None, None):
            champion.change(NAME, champion.holders(NAME), champion.Change("2", None, "somebody"))
        return judged(*arguments)

    monkeypatch.setattr(evidence, "gain_over_random", meanwhile)
    with pytest.raises(PromotionError, match="version 2 is champion, but there is no champion when this began"):
        promote(local, 0.12)
    assert aliases() == ("2", None)
    assert mlflow.last_active_run().data.tags["mlflow.note.content"].startswith(f"{NAME}: version 2 is champion, but")


def test_rollback_and_status(local, register):
    with pytest.raises(MissingRunError, match="there is no champion, and there is no other version to go back to"):
        run_step(lambda: local().rollback())
    register(0.12, right(10, 20))
    register(0.15, right(20, 20), start_gate_override="x is 0")
    promote(local, 0.12)
    promote(local, 0.15, force=True)
    run = run_step(lambda: local().rollback())
    assert aliases() == ("1", "2")
    told = f"{NAME}: version 1 is champion again, version 2 previous-champion"
    assert (run.data.tags["mlflow.note.content"], run.data.tags["lever.champion"]) == (told, "1")
    listing = run_step(lambda: local().status()).info.run_id
    lines = local().listing(listing).splitlines()
    assert lines[0] == f"{NAME}: VQA accuracy in percent, 95 % intervals"
    columns = [line.split("  ") for line in (re.sub(r" {2,}", "  ", line) for line in lines[1:])]
    assert columns[0] == (
        "beta  version  aliases  epoch  questions  1 shot  2 shots  data set  RL data  gate  overridden".split("  ")
    )
    interval = MlflowClient().get_model_version(NAME, "1").tags["acc_n40_shots1_interval"]
    digests = ["digest of dataset", "digest of rl_data", "pass"]
    first = ["0.12", "1", "champion, kl-0-12", "1", "40", *[f"75.00 {interval}"] * 2, *digests, "-"]
    second = ["0.15", "2", "kl-0-15, previous-champion", "1", "40", *["100.00 [100.00, 100.00]"] * 2, *digests]
    assert columns[1] == first
    assert columns[2] == [*second, "start_gate_override, forced: gate"]
    for start in (lines[1].index("gate"), lines[1].index("1 shot ")):
        assert all(line[start - 1] == " " and line[start] != " " for line in lines[1:])


def test_a_champion_is_evaluated_on_the_questions_of_the_candidate(local, good_rl_data, tmp_path, caplog):
    """Real parts: two betas, evaluated on other numbers of questions; only the champion's answers are asked for."""
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    data = line.find_rl_data(good_rl_data)
    save_selector(tmp_path / "start", PointerSelector(), {})
    for kl_beta, size in ((0.12, 5), (0.15, 9)):
        grpo = run_step(
            lambda beta=kl_beta: line.grpo(data, str(tmp_path / "start"), GrpoSettings(kl_beta=beta, epochs=1, lr=1e-3))
        )
        small = EvalSettings(sizes=(size,), shots=(1, 2), n_selection=3, n_oracle=0)
        run_step(lambda run_id=grpo.info.run_id, small=small: line.evaluate(run_id, small))
    promote(lambda: line, 0.12, force=True)
    registered = {alias: str(v) for alias, v in MlflowClient().get_registered_model(NAME).aliases.items()}
    caplog.clear()
    run = promote(lambda: line, 0.15, force=True)
    assert "version 1, was evaluated on other questions, shots or pools: evaluating it on those of the candidate" in caplog.text
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    assert evidence["conditions"][2]["gain"]["questions"] == 9
    (child,) = (
        found
        for found in mlflow.search_runs(search_all_experiments=True, output_format="list")
        if found.data.tags.get("mlflow.parentRunId") == run.info.run_id
    )
    assert child.info.run_name == "evaluate version 1"
    found = pd.read_parquet(artifacts.artifact(child.info.run_id, "records.parquet"))
    own_run = MlflowClient().get_model_version(NAME, "1").tags["evaluation_run"]
    own = pd.read_parquet(artifacts.artifact(own_run, "records.parquet"))
    own = own[(own.policy == "epoch 1") & (own.part == "report")]
    both = found.merge(own, on=["position", "question_id", "shots"], suffixes=("", "_own"))
    assert len(both) == 5 * 2
    assert (both.prompt == both.prompt_own).all()
    assert (both.accuracy == both.accuracy_own).all()
    after = {alias: str(v) for alias, v in MlflowClient().get_registered_model(NAME).aliases.items()}
    assert after == {**registered, "champion": "2", "previous-champion": "1"}
