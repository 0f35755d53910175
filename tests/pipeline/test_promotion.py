"""Promotions on a real store, rollback and status."""

import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.evaluation_samples import NAME, evaluation_of, records_of
from helpers.projects import run_step
from mlflow import MlflowClient

from lever_mlflow.exceptions import MissingRunError, PromotionError
from lever_mlflow.pipeline import promotion
from lever_mlflow.pipeline.evaluation import evaluate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.promotion import promote_step, read_listing, rollback_step, status_step
from lever_mlflow.pipeline.rollout import find_rl_data
from lever_mlflow.registry import champion, versions
from lever_mlflow.registry.model_card import describe_version
from lever_mlflow.runs import artifacts
from lever_mlflow.selector.checkpoint import save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, PromotionSettings, RoundSettings, format_beta

ONE_ROUND = RoundSettings(rounds=1)


@pytest.fixture
def register(mlflow_store, tmp_path):
    """register(beta, accuracies, **inputs) makes a version with an evaluation, in which random is right on every other.

    The strongest similarity baseline is right on the first ten of these, unless its accuracies are given as ``similarity``.
    There is none with ``similarity=()``.
    """
    client = MlflowClient()
    client.create_registered_model(NAME)

    def make(kl_beta, accuracies, similarity=None, **inputs):
        both_shots = np.array([accuracies, accuracies])
        random = np.tile([0.0, 1.0], (2, both_shots.shape[1] // 2))
        similar = right(0, 10) if similarity is None else similarity
        policies = {"epoch 1": both_shots, "start": both_shots, "random": np.stack([random, random])}
        if len(similar):
            policies |= {"image-similarity": both_shots * 0.0, "fused-similarity of all": np.array([similar, similar])}
        records = records_of(policies)
        with mlflow.start_run() as run:
            evaluation = evaluation_of(both_shots.shape[1], kl_beta, run.info.run_id, **inputs)
            mlflow.log_text(evaluation.model_dump_json(), "evaluation.json")
            records.write(tmp_path / "records.parquet")
            mlflow.log_artifact(tmp_path / "records.parquet")
        tags = {**describe_version(evaluation, records)[0], "kl_beta": format_beta(kl_beta)}
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
    return run_step(lambda: promote_step(local(), kl_beta, PromotionSettings(**settings)))


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
        f"met: {(similar := 'over fused-similarity of all, the strongest similarity baseline: +50.00 points')} "
        "[+35.00, +65.00], p < 0.001, 40 questions",  # 20 of 40 differ, one way: 50 +/- 1.96 * 100 * sqrt(0.25 / 40)
        f"{NAME} version 1 (beta 0.12) is champion",
    ]
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_run"] == run.info.run_id
    assert version.tags["promotion_override"] == "none"
    assert version.tags["promotion_random"] == f"over random demonstrations: {gain}"
    assert (version.tags["strongest_baseline"], f"{version.tags['gain_over_strongest']},") == (
        "random",
        gain.split(" p =")[0].replace(" points", ""),
    )
    assert version.tags["promotion_similarity"].startswith(f"{similar} [")
    assert version.description.startswith("A card.\n\n## Promotion\n\nChampion since ")
    assert f"in place of version none, run {run.info.run_id}." in version.description
    assert f"- over random demonstrations: {gain}" in version.description
    assert f"- {similar} [" in version.description
    assert run.data.tags["lever.champion"] == "1"
    assert run.data.tags["mlflow.note.content"] == f"{NAME} version 1 (beta 0.12) is champion"
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    assert [(row["name"], row["met"]) for row in evidence["conditions"]] == [
        ("gate", True),
        ("random", True),
        ("similarity", True),
    ]
    assert [row["gain"]["points"] for row in evidence["conditions"][1:]] == [25.0, 50.0]
    settings = {"min_gain": 0.0, "similarity": "better", "force": False}
    assert {"champion": None, **settings}.items() <= evidence.items()


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


def test_what_is_no_better_than_similarity_search_is_promoted_only_when_that_is_asked(local, register):
    register(0.12, right(10, 20), similarity=right(8, 20))  # two of 40 questions more: p = 0.5
    told = (
        r"is not promoted: over fused-similarity of all, the strongest similarity baseline: \+5.00 points "
        r"\[\+0.00, \+12.50\], p = 0.500, 40 questions: not better, as similarity=better asks; nothing was changed"
    )
    with pytest.raises(PromotionError, match=told):
        promote(local, 0.12)
    assert aliases() == (None, None)
    run = promote(local, 0.12, similarity="not-worse")
    assert aliases() == ("1", None)
    version = MlflowClient().get_model_version(NAME, "1")
    said = "p = 0.500, 40 questions (similarity=not-worse refuses only a significant loss)"
    assert version.tags["promotion_similarity"].endswith(said)
    assert f"{said}\n" in f"{version.description}\n"
    assert version.tags["promotion_override"] == "none"
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    assert evidence["similarity"] == "not-worse"


def test_what_is_worse_than_similarity_search_takes_force(local, register):
    register(0.12, right(10, 20), similarity=right(20, 20))
    with pytest.raises(PromotionError, match=r"-25.00 points .*only a significant loss\): significantly worse; nothing"):
        promote(local, 0.12, similarity="not-worse")
    promote(local, 0.12, force=True)
    assert aliases() == ("1", None)
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_override"] == "similarity"
    assert "not better, as similarity=better asks (overridden by force=true)" in version.description


def test_an_evaluation_without_similarity_baselines_is_no_evidence(local, register):
    register(0.12, right(20, 20), similarity=())
    told = "no evidence on similarity: the evaluation has no similarity baseline to compare with; run the evaluate step again"
    with pytest.raises(PromotionError, match=f"is not promoted: {told}; nothing was changed"):
        promote(local, 0.12)
    promote(local, 0.12, force=True)
    version = MlflowClient().get_model_version(NAME, "1")
    assert (version.tags["promotion_override"], version.tags["promotion_similarity"]) == ("similarity", told)


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
    with pytest.raises(PromotionError, match=r"no evidence on random: run .*: the records are not what version 1 was regist"):
        promote(local, 0.12)
    run_id = client.get_model_version(NAME, "1").tags["evaluation_run"]
    (tmp_path / "records.parquet").write_bytes(b"no parquet")
    client.log_artifact(run_id, str(tmp_path / "records.parquet"))
    with pytest.raises(PromotionError, match=r"no evidence on random: run .*records.parquet: not the records of an eval"):
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
    assert client.get_model_version(NAME, "1").tags["promotion_override"] == "random, similarity"


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
    judged = promotion.gain_over_random

    def meanwhile(*arguments):
        if aliases() == (None, None):
            champion.change(NAME, champion.holders(NAME), champion.Change("2", None, "somebody"))
        return judged(*arguments)

    monkeypatch.setattr(promotion, "gain_over_random", meanwhile)
    with pytest.raises(PromotionError, match="version 2 is champion, but there is no champion when this began"):
        promote(local, 0.12)
    assert aliases() == ("2", None)
    assert mlflow.last_active_run().data.tags["mlflow.note.content"].startswith(f"{NAME}: version 2 is champion, but")


def test_rollback_and_status(local, register):
    with pytest.raises(MissingRunError, match="there is no champion, and there is no other version to go back to"):
        run_step(lambda: rollback_step(local()))
    register(0.12, right(10, 20))
    register(0.15, right(20, 20), start_gate_override="x is 0")
    MlflowClient().delete_model_version_tag(NAME, "2", "gain_over_strongest")  # as of an older evaluation
    promote(local, 0.12)
    promote(local, 0.15, force=True)
    run = run_step(lambda: rollback_step(local()))
    assert aliases() == ("1", "2")
    told = f"{NAME}: version 1 is champion again, version 2 previous-champion"
    assert (run.data.tags["mlflow.note.content"], run.data.tags["lever.champion"]) == (told, "1")
    listing = run_step(lambda: status_step(local())).info.run_id
    lines = read_listing(listing).splitlines()
    assert lines[0] == f"{NAME}: VQA accuracy in percent, gain in points as a mean over shots, 95 % intervals"
    columns = [line.split("  ") for line in (re.sub(r" {2,}", "  ", line) for line in lines[1:])]
    assert columns[0] == (
        "beta  version  aliases  epoch  questions  1 shot  2 shots  gain over strongest baseline  data set  RL data  gate  "
        "overridden".split("  ")
    )
    interval = MlflowClient().get_model_version(NAME, "1").tags["acc_n40_shots1_interval"]
    digests = ["digest of dataset", "digest of rl_data", "pass"]
    first = ["0.12", "1", "champion, kl-0-12", "1", "40", *[f"75.00 {interval}"] * 2, "+25.00 [+12.50, +40.00] over random"]
    first += [*digests, "-"]
    second = ["0.15", "2", "kl-0-15, previous-champion", "1", "40", *["100.00 [100.00, 100.00]"] * 2, "-", *digests]
    assert columns[1] == first
    assert columns[2] == [*second, "start_gate_override, forced: gate"]
    for start in (lines[1].index("gate"), lines[1].index("1 shot ")):
        assert all(line[start - 1] == " " and line[start] != " " for line in lines[1:])


def test_a_champion_is_evaluated_on_the_questions_of_the_candidate(local, good_rl_data, tmp_path, caplog):
    """Real parts: two betas, evaluated on other numbers of questions; only the champion's answers are asked for."""
    caplog.set_level("INFO", logger="lever_mlflow")
    line = local()
    data = find_rl_data(line, good_rl_data)
    save_selector(tmp_path / "start", PointerSelector(), {})
    for kl_beta, size in ((0.12, 5), (0.15, 9)):
        grpo = run_step(
            lambda beta=kl_beta: grpo_step(
                line, data, str(tmp_path / "start"), GrpoSettings(kl_beta=beta, epochs=1, lr=1e-3), ONE_ROUND
            )
        )
        small = EvalSettings(sizes=(size,), shots=(1, 2), n_selection=3, n_oracle=0)
        run_step(lambda run_id=grpo.info.run_id, small=small: evaluate_step(line, run_id, small))
    promote(lambda: line, 0.12, force=True)
    registered = {alias: str(v) for alias, v in MlflowClient().get_registered_model(NAME).aliases.items()}
    caplog.clear()
    run = promote(lambda: line, 0.15, force=True)
    assert "version 1, was evaluated on other questions, shots or pools: evaluating it on those of the candidate" in caplog.text
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    conditions = {row["name"]: row for row in evidence["conditions"]}
    assert list(conditions) == ["gate", "random", "similarity", "champion"]
    assert conditions["champion"]["gain"]["questions"] == conditions["similarity"]["gain"]["questions"] == 9
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
