"""Promotions on a real store, rollback and status."""

import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from helpers.evaluation_samples import NAME, evaluation_of, records_of
from helpers.projects import Project, error_lines, run_step
from mlflow import MlflowClient
from mlflow.entities import ViewType

from lever_mlflow.cli.commands import cli
from lever_mlflow.exceptions import MissingRunError, PromotionError
from lever_mlflow.pipeline import promotion
from lever_mlflow.pipeline.evaluation import evaluate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.promotion import list_versions, plan_promotion, promote_step, roll_back
from lever_mlflow.pipeline.rollout import find_rl_data
from lever_mlflow.registry import champion, versions
from lever_mlflow.registry.model_card import describe_version
from lever_mlflow.runs import artifacts
from lever_mlflow.runs.optional_runs import placeholder_run
from lever_mlflow.runs.planning import planning
from lever_mlflow.runs.steps import project_run
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
            policies |= {
                "image-similarity": both_shots * 0.0,
                "fused-similarity (full training set)": np.array([similar, similar]),
            }
        records = records_of(policies)
        with mlflow.start_run() as run:
            evaluation = evaluation_of(both_shots.shape[1], kl_beta, run.info.run_id, **inputs)
            evaluation = evaluation.model_copy(update={"accuracy": tuple(records.table(evaluation.settings.sizes))})
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
    *messages, end = caplog.messages
    assert re.fullmatch(rf"promote beta 0\.12: Promoted\. {NAME} version 1 \(beta 0\.12\) is champion.* \(\d\.\d s\)", end)
    assert messages == [
        "promote beta 0.12: running",
        "met: data gate: pass",
        f"met: over random demonstrations: {(gain := '+25.00 points [+12.50, +40.00], p = 0.002, 40 questions')}",
        f"met: {(similar := 'over fused-similarity (full training set), the strongest similarity baseline: +50.00 points')} "
        "[+35.00, +65.00], p < 0.001, 40 questions",  # 20 of 40 differ, one way: 50 +/- 1.96 * 100 * sqrt(0.25 / 40)
    ]
    version = MlflowClient().get_model_version(NAME, "1")
    assert list(version.tags) == (
        "accuracy gain epoch gate evaluation_run evaluation_digest kl_beta promoted_at promotion_run promotion_override".split()
    )
    assert version.tags["promotion_run"] == run.info.run_id
    assert version.tags["promotion_override"] == "none"
    assert version.tags["gain"] == "+25.00 [+12.50, +40.00] over random"
    assert version.description.startswith("A card.\n\n## Promotion\n\nChampion since ")
    assert f"in place of version none, run {run.info.run_id}." in version.description
    assert f"- over random demonstrations: {gain}" in version.description
    assert f"- {similar} [" in version.description
    assert run.data.tags["lever.champion"] == "1"
    assert run.data.tags["mlflow.note.content"] == (
        f"**Promoted.** {NAME} version 1 (beta 0.12) is champion\n\n"
        f"- met: data gate: pass\n- met: over random demonstrations: {gain}\n- {messages[3]}"
    )
    over_similarity = {"gain/over_similarity": 50.0, "gain/over_similarity_low": 35.0, "gain/over_similarity_high": 65.0}
    assert run.data.metrics == pytest.approx(
        {
            "gain/over_random": 25.0,
            "gain/over_random_low": 12.5,
            "gain/over_random_high": 40.0,
            "gain/over_random_p": 2 / 2**10,  # 10 of 40 differ, all one way
            **over_similarity,
            "gain/over_similarity_p": 2 / 2**20,
        }
    )
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
    description = f"**Nothing to do.** {NAME} version 1 (beta 0.12) is champion already; nothing was changed"
    assert (run.data.tags["mlflow.note.content"], run.data.metrics) == (description, {})
    assert MlflowClient().get_model_version(NAME, "1").tags == before.tags
    assert champion.settle(NAME) == 1


def test_a_refused_promotion_names_what_failed_and_changes_nothing(local, register):
    register(0.12, right(20, 20))
    promote(local, 0.12)
    register(0.15, right(10, 20))
    before = MlflowClient().get_model_version(NAME, "2")
    reason = "over the champion: -25.00 points [-40.00, -12.50], p = 0.002, 40 questions: "
    reason += "significantly less accurate than the champion; a gain above 0 points is needed"
    with pytest.raises(PromotionError) as error:
        promote(local, 0.15)
    assert str(error.value) == (
        f"{NAME} version 2 (beta 0.15) is not promoted: {reason}; nothing was changed, force=true promotes it in spite of that"
    )
    run = mlflow.last_active_run()
    assert run.info.status == "FAILED"
    description = run.data.tags["mlflow.note.content"].splitlines()
    assert description[0] == (
        f"**Not promoted.** {NAME} version 2 (beta 0.15): version 1 stays champion. Not met: champion. "
        "force=true promotes it in spite of that."
    )
    assert description[2] == "- met: data gate: pass"
    assert description[-1] == f"- **not met**: {reason}"
    figures = {"": -25.0, "_low": -40.0, "_high": -12.5, "_p": 2 / 2**10}
    assert {end: run.data.metrics[f"gain/over_champion{end}"] for end in figures} == pytest.approx(figures)
    assert len(run.data.metrics) == 12
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
    ("accuracies", "inputs", "message"),
    [
        (right(3, 20), {}, "over random demonstrations: .*: not significantly better; p < 0.05 and .*; nothing"),
        (right(20, 20), {"gate": "critical", "gate_override": "x is 0"}, "data gate: critical; gate_override: x is 0; nothing"),
        (right(20, 20), {"start_gate_override": "x is 0"}, "data gate: pass; start_gate_override: x is 0; nothing"),
    ],
)
def test_each_condition_and_its_override(local, register, accuracies, inputs, message):
    register(0.12, accuracies, **inputs)
    with pytest.raises(PromotionError, match=message):
        promote(local, 0.12)
    assert aliases() == (None, None)
    run = promote(local, 0.12, force=True)
    assert aliases() == ("1", None)
    failed = "gate" if inputs else "random"
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_override"] == failed
    assert " (overridden by force=true)" in version.description
    assert f"is champion; force=true overrode: {failed}\n\n- " in run.data.tags["mlflow.note.content"]


def test_what_is_no_better_than_similarity_search_is_promoted_only_when_that_is_asked(local, register):
    register(0.12, right(10, 20), similarity=right(8, 20))  # two of 40 questions more: p = 0.5
    refusal = (
        r"is not promoted: over fused-similarity \(full training set\), the strongest similarity baseline: \+5.00 points "
        r"\[0.00, \+12.50\], p = 0.500, 40 questions: not significantly better, as similarity=better asks; "
        "p < 0.05 and an interval above 0 are needed; nothing was changed"
    )
    with pytest.raises(PromotionError, match=refusal):
        promote(local, 0.12)
    assert aliases() == (None, None)
    run = promote(local, 0.12, similarity="not-worse")
    assert aliases() == ("1", None)
    version = MlflowClient().get_model_version(NAME, "1")
    evidence_line = "p = 0.500, 40 questions (similarity=not-worse refuses only a significant loss)"
    assert f"{evidence_line}\n" in f"{version.description}\n"
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
    assert (
        "similarity=better asks; p < 0.05 and an interval above 0 are needed (overridden by force=true)" in version.description
    )


def test_an_evaluation_without_similarity_baselines_is_no_evidence(local, register):
    register(0.12, right(20, 20), similarity=())
    lacking = "the evaluation has no similarity baseline to compare with; run the evaluate step again with rerun=true"
    reason = f"no evidence on similarity: {lacking}"
    with pytest.raises(PromotionError, match=f"is not promoted: {reason}; nothing was changed"):
        promote(local, 0.12)
    promote(local, 0.12, force=True)
    version = MlflowClient().get_model_version(NAME, "1")
    assert version.tags["promotion_override"] == "similarity"
    assert f"- {reason} (overridden by force=true)" in version.description


def test_a_gain_may_be_asked_for(local, register):
    register(0.12, right(10, 20))
    promote(local, 0.12)
    register(0.15, right(12, 20))
    with pytest.raises(
        PromotionError, match=r"over the champion: \+5.00 points .* too little; a gain of at least 5.5 points is needed"
    ):
        promote(local, 0.15, min_gain=5.5)
    run = promote(local, 0.15, min_gain=5.0)
    assert aliases() == ("2", "1")
    description = f"**Promoted.** {NAME} version 2 (beta 0.15) is champion, version 1 previous-champion\n\n"
    assert run.data.tags["mlflow.note.content"].startswith(description)


@pytest.mark.parametrize(
    ("accuracies", "reason"),
    [
        (right(10, 20), "exactly as accurate as the champion, which stays"),  # the same picks
        (right(11, 19), "exactly as accurate as the champion, which stays"),  # one question more, another one less
        (right(9, 20), "less accurate than the champion, though not significantly"),
    ],
)
def test_a_challenger_that_gained_nothing_does_not_replace_the_champion(local, register, accuracies, reason):
    register(0.12, right(10, 20))
    promote(local, 0.12)
    register(0.15, accuracies)
    with pytest.raises(
        PromotionError, match=f"p = 1.000, 40 questions: {reason}; a gain above 0 points is needed; nothing was"
    ):
        promote(local, 0.15)
    assert aliases() == ("1", None)


def test_a_small_gain_is_enough(local, register):
    register(0.12, right(10, 20))
    promote(local, 0.12)
    register(0.15, right(11, 20))
    run = promote(local, 0.15)
    assert aliases() == ("2", "1")
    assert run.data.metrics["gain/over_champion"] == 2.5


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
    assert (
        mlflow.last_active_run()
        .data.tags["mlflow.note.content"]
        .startswith(f"**Not promoted.** {NAME}: version 2 is champion, but there is no champion when this began")
    )


def test_a_rollback_is_recorded_on_the_version(local, register):
    with pytest.raises(MissingRunError, match="there is no champion, and there is no other version to go back to"):
        roll_back(local())
    register(0.12, right(10, 20))
    register(0.15, right(20, 20))
    promote(local, 0.12)
    promote(local, 0.15)
    runs = everything_run()
    roll_back(local())
    assert aliases() == ("1", "2")
    restored = MlflowClient().get_model_version(NAME, "1").tags["restored"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]{8}\+00:00, in place of version 2, by user .+", restored)
    assert len(MlflowClient().get_model_version(NAME, "1").tags) == 11
    assert "restored" not in MlflowClient().get_model_version(NAME, "2").tags
    assert everything_run() == runs  # and no run was added


def everything_run():
    """The ids of all runs of the store, the deleted ones among them."""
    runs = mlflow.search_runs(search_all_experiments=True, run_view_type=ViewType.ALL, output_format="list")
    return {run.info.run_id for run in runs}


def columns_of(listing):
    return [line.split("  ") for line in (re.sub(r" {2,}", "  ", line) for line in listing.splitlines()[1:])]


def test_plans_change_nothing(local, register, caplog):
    caplog.set_level("INFO", logger="lever_mlflow")
    register(0.12, right(10, 20))
    register(0.15, right(12, 20))
    promote(local, 0.12, force=True)
    with project_run("test"), planning() as plan:
        plan_promotion(local(), plan, 0.15)
    assert list(plan.steps.values()) == [("promote beta 0.15", 0, None)]  # the champion is evaluated already
    promote(local, 0.15, force=True)
    runs = everything_run()
    roll_back(local(), plan=True)
    assert caplog.messages[-1] == f"{NAME}: version 1 would be champion again; nothing was changed"
    assert (aliases(), everything_run()) == (("2", "1"), runs)


def test_the_list_of_versions(local, register):
    with pytest.raises(MissingRunError, match="no registered model nothing; run `mlflow run"):
        list_versions(local(model_name="nothing"))
    register(0.12, right(10, 20), dataset_digest="0123456789abcdef", rl_data_digest="fedcba9876543210")
    register(0.15, right(20, 20), start_gate_override="x is 0")
    promote(local, 0.15, force=True)
    runs = everything_run()
    listing = list_versions(local())
    lines = listing.splitlines()
    assert lines[0] == f"{NAME}: VQA accuracy in percent, gain in points, means over shots with 95 % intervals"
    interval = MlflowClient().get_model_version(NAME, "1").tags["accuracy"].removeprefix("75.00 [").partition("]")[0]
    head = "beta  version  aliases  epoch  accuracy  1 shot  2 shots  gain over strongest baseline  data set  RL data  gate  "
    first = ["0.12", "1", "kl-0-12", "1", f"75.00 [{interval}] on 40 questions", "75.00", "75.00"]
    first += ["+25.00 [+12.50, +40.00] over random", "01234567", "fedcba98", "pass", "-"]
    second = ["0.15", "2", "champion, kl-0-15", "1", "100.00 [100.00, 100.00] on 40 questions", "100.00", "100.00"]
    second += ["+50.00 [+35.00, +65.00] over random", "digest o", "digest o", "pass", "start_gate_override, forced: gate"]
    assert columns_of(listing) == [f"{head}overridden".split("  "), first, second]
    for start in (lines[1].index("gate"), lines[1].index("1 shot ")):
        assert all(line[start - 1] == " " and line[start] != " " for line in lines[1:])
    assert everything_run() == runs


def test_versions_whose_evaluation_is_gone_or_of_an_earlier_format_are_listed(local, register):
    """The first version has the tags of an earlier format and no readable evaluation; the second's run was deleted for good."""
    client = MlflowClient()
    register(0.12, right(10, 20))
    register(0.15, right(20, 20))
    first, second = (client.get_model_version(NAME, number).tags for number in "12")
    client.log_text(first["evaluation_run"], '{"kl_beta": 0.12}', "evaluation.json")
    for tag in ("accuracy", "gain"):
        client.delete_model_version_tag(NAME, "1", tag)
    for tag, text in {
        "acc_n40_mean": "75.00",
        "acc_n40_mean_interval": "[62.50, 87.50]",
        "strongest_baseline": "random",
    }.items():
        client.set_model_version_tag(NAME, "1", tag, text)
    client.set_model_version_tag(NAME, "2", "evaluation_run", "0" * 32)
    client.create_model_version(NAME, "s3://nothing/there")
    assert columns_of(list_versions(local())) == [
        "beta  version  aliases  epoch  accuracy  gain over strongest baseline  data set  RL data  gate  overridden".split(
            "  "
        ),
        ["0.12", "1", "kl-0-12", "1", "-", "-", "-", "-", "pass", "-"],
        ["0.15", "2", "kl-0-15", "1", second["accuracy"], second["gain"], "-", "-", "pass", "-"],
        ["-", "3", *["-"] * 8],
    ]


def test_a_deleted_evaluation_can_be_read_until_it_is_purged(local, register):
    register(0.12, right(10, 20))
    MlflowClient().delete_run(MlflowClient().get_model_version(NAME, "1").tags["evaluation_run"])
    assert columns_of(list_versions(local()))[1][5:7] == ["75.00", "75.00"]


def test_commands_on_the_registry_leave_no_run_and_no_experiment(local, register, cache_dir, monkeypatch, caplog):
    register(0.12, right(10, 20))
    register(0.15, right(20, 20))
    promote(local, 0.12)
    promote(local, 0.15)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    before = everything_run(), len(MlflowClient().search_experiments(view_type=ViewType.ALL))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "not there yet")
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    caplog.set_level("INFO", logger="lever_mlflow")
    assert "champion, kl-0-15" in CliRunner().invoke(cli, ["status"]).output
    assert CliRunner().invoke(cli, ["rollback"]).exit_code == 0
    assert caplog.messages[-1] == f"{NAME}: version 1 is champion again, version 2 previous-champion"
    assert (everything_run(), len(MlflowClient().search_experiments(view_type=ViewType.ALL))) == before


@pytest.mark.slow
def test_the_runs_that_mlflow_run_makes_for_them(local, register, mlflow_store, cache_dir, tmp_path, monkeypatch):
    """Of the runs of ``status`` the last one stays; that of ``rollback`` stays as a record."""
    register(0.12, right(10, 20))
    register(0.15, right(20, 20))
    promote(local, 0.12)
    promote(local, 0.15)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    project = Project(mlflow_store, tmp_path, cache_dir)
    process = project.run("status", model_name="nothing")
    assert process.returncode == 1
    assert error_lines(process)[0].startswith("error: no registered model nothing; run ")
    listed = project.run("status")
    assert listed.returncode == 0, listed.stderr
    assert "champion, kl-0-15" in listed.stdout
    (run,) = project.runs()
    assert (run.info.run_name, run.info.status, run.data.tags["lever.step"]) == ("status", "FINISHED", "status")
    trash = project.client.search_runs([run.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert [(former.info.run_name, former.info.status) for former in trash] == [("status", "FAILED")]
    back = project.run("rollback")
    assert back.returncode == 0, back.stderr
    (run,) = project.runs(lever_step="rollback")
    assert (run.info.run_name, run.info.status, run.data.tags["lever.champion"]) == ("rollback", "FINISHED", "1")
    assert run.data.tags["mlflow.note.content"] == f"{NAME}: version 1 is champion again, version 2 previous-champion"
    assert MlflowClient().get_model_version(NAME, "1").tags["restored"].endswith(f", by run {run.info.run_id}")


def test_a_run_that_was_opened_for_something_else_is_left_alone(local, register, monkeypatch):
    register(0.12, right(10, 20))
    run = MlflowClient().create_run("0", tags={"mlflow.project.entryPoint": "grpo"})
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with placeholder_run("status"):
        list_versions(local())
    after = MlflowClient().get_run(run.info.run_id)
    assert (after.info.run_name, after.data.tags) == (run.info.run_name, run.data.tags)


@pytest.mark.slow
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
    with project_run("test"), planning() as plan:
        plan_promotion(line, plan, 0.15)
    prompts = 9 * 2  # nine questions with one and with two demonstrations
    assert list(plan.steps.values()) == [("evaluate version 1", prompts, None), ("promote beta 0.15", 0, None)]
    caplog.clear()
    run = promote(lambda: line, 0.15, force=True)
    assert "version 1, was evaluated on other questions, shots or pools: evaluating it on those of the candidate" in caplog.text
    evidence = json.loads(artifacts.artifact(run.info.run_id, "promotion.json").read_text())
    conditions = {row["name"]: row for row in evidence["conditions"]}
    assert list(conditions) == ["gate", "random", "similarity", "champion"]
    assert conditions["champion"]["gain"]["questions"] == conditions["similarity"]["gain"]["questions"] == 9
    (child,) = (
        other
        for other in mlflow.search_runs(search_all_experiments=True, output_format="list")
        if other.data.tags.get("mlflow.parentRunId") == run.info.run_id
    )
    assert child.info.run_name == "evaluate version 1"
    records = pd.read_parquet(artifacts.artifact(child.info.run_id, "records.parquet"))
    former_run = MlflowClient().get_model_version(NAME, "1").tags["evaluation_run"]
    former = pd.read_parquet(artifacts.artifact(former_run, "records.parquet"))
    former = former[(former.policy == "epoch 1") & (former.part == "report")]
    both = records.merge(former, on=["position", "question_id", "shots"], suffixes=("", "_former"))
    assert len(both) == 5 * 2
    assert (both.prompt == both.prompt_former).all()
    assert (both.accuracy == both.accuracy_former).all()
    after = {alias: str(v) for alias, v in MlflowClient().get_registered_model(NAME).aliases.items()}
    assert after == {**registered, "champion": "2", "previous-champion": "1"}
