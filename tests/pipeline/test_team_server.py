"""What a team shares: ``mlflow server`` on PostgreSQL with its artifacts behind its proxy."""

import json
import os
import subprocess
import sys

import mlflow
import pytest
from helpers.contest import contend
from helpers.failures import lose_connection
from helpers.projects import ROOT, error_lines, facts, run_step
from helpers.servers import Server
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lever_mlflow.pipeline.comparison import compare_step
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import evaluate_step, read_records
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.promotion import list_versions, promote_step
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import read_rl_data
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.registry import champion, model_card
from lever_mlflow.runs import artifacts
from lever_mlflow.settings import EvalSettings, GrpoSettings, PromotionSettings, RceSettings, RoundSettings

ONE_ROUND = RoundSettings(rounds=1)

pytestmark = pytest.mark.slow

NAME = "lever-selector-mini-mini"
SMALL = EvalSettings(sizes=(9,), shots=(1, 2), n_selection=3, n_oracle=0)


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"), store=postgres, workers=2)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def team(server, cache_dir, monkeypatch, tmp_path):
    """A pipeline on the server, in this process; the folder it runs in sees nothing of the server's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_experiment("team")
    yield Context(Resources(cache_dir=cache_dir))
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set_experiment leaves it to child processes


def command(server, cache_dir, name, *options):
    place = {"MLFLOW_TRACKING_URI": server.uri, "LEVER_MLFLOW_CACHE": str(cache_dir), "MLFLOW_EXPERIMENT_NAME": "team"}
    arguments = [sys.executable, "-m", f"entrypoints.{name}", *options]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_EXPERIMENT_ID"} | place
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_from_an_interrupted_training_to_a_champion(server, team, cache_dir, good_rl_data, monkeypatch):
    data = read_rl_data(team, good_rl_data)
    settings = RceSettings(epochs=2, batch_size=16)
    lose_connection(monkeypatch, lambda: rce_step(team, data, settings), epoch=2)
    interrupted = mlflow.last_active_run().info.run_id
    rce = run_step(lambda: rce_step(team, data, settings))
    assert rce.data.tags["lever.resumed_from"] == interrupted
    assert rce.info.artifact_uri.startswith("mlflow-artifacts:/")
    client = MlflowClient()
    assert [metric.step for metric in client.get_metric_history(rce.info.run_id, "train/loss")] == [1, 2]

    start = f"models:/{facts(rce)['best_model']}"
    evaluations = []
    for kl_beta in (0.12, 0.15):
        grpo = run_step(
            lambda beta=kl_beta: grpo_step(
                team, data, start, GrpoSettings(kl_beta=beta, epochs=1, lr=1e-3, batch_size=8), ONE_ROUND
            )
        )
        evaluations.append(run_step(lambda run_id=grpo.info.run_id: evaluate_step(team, run_id, SMALL)).info.run_id)
    compared = run_step(lambda: compare_step(team, evaluations, "en"))
    comparison = json.loads(artifacts.artifact(compared.info.run_id, "comparison.json").read_text())
    assert [result["kl_beta"] for result in comparison["runs"]] == [0.12, 0.15]

    process = command(server, cache_dir, "promote", "--kl_beta", "0.12")
    assert process.returncode == 1
    (line,) = error_lines(process)
    assert line.startswith(f"error: {NAME} version 1 (beta 0.12) is not promoted: over random demonstrations: ")
    assert champion.holders(NAME) == (None, None)
    for kl_beta in (0.12, 0.15):
        run_step(lambda beta=kl_beta: promote_step(team, beta, PromotionSettings(force=True)))
    assert champion.holders(NAME) == ("2", "1")
    version = client.get_model_version(NAME, "2")
    assert version.tags["evaluation_run"] == evaluations[1]
    assert version.tags["evaluation_digest"] == read_records(evaluations[1]).digest
    assert version.description.startswith("Beta 0.15, epoch 1: VQA accuracy ")
    assert "in place of version 1" in version.description

    back = command(server, cache_dir, "rollback")
    assert f"{NAME}: version 1 is champion again, version 2 previous-champion" in back.stderr
    rows = [line.split() for line in list_versions(team).splitlines()[2:]]
    assert [row[:4] for row in rows] == [["0.12", "1", "champion,", "kl-0-12"], ["0.15", "2", "kl-0-15,", "previous-champion"]]


def test_the_longest_description_is_what_the_database_takes(server, team):
    client = MlflowClient()
    client.create_registered_model("long")
    client.create_model_version("long", "s3://nothing/there")
    longest = model_card.promoted("é" * 3400, "line\n" * 1000) + "é" * 3
    client.update_model_version("long", "1", longest[:5000])
    assert client.get_model_version("long", "1").description == longest[:5000]
    with pytest.raises(MlflowException, match="value too long for type character varying"):
        client.update_model_version("long", "1", "x" * 5001)
    client.set_model_version_tag("long", "1", "key", "é" * 5000)


def test_of_several_promotions_at_once_one_wins(server, team):
    contend(server.uri, MlflowClient(), "contended")
