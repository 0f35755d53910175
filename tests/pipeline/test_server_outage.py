"""Training against a real tracking server on loopback that goes away: for a while, and for good."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.projects import ROOT
from helpers.servers import Server
from mlflow import MlflowClient

pytestmark = pytest.mark.slow

OUTAGE = float(os.environ.get("LEVER_OUTAGE_SECONDS", "12"))
EPOCHS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def train(server, good_rl_data, cache_dir):
    """train(*options, **environment) starts an rce run against the server, as a process."""

    def start(*options, **environment):
        place = {"MLFLOW_TRACKING_URI": server.uri, "LEVER_MLFLOW_CACHE": str(cache_dir), **environment}
        command = [sys.executable, "-m", "entrypoints.rce", "--rl_data", good_rl_data]
        command += ["--epochs", str(EPOCHS), *options]
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True)

    return start


def logged_epochs(server, run_id):
    return [metric.step for metric in MlflowClient(server.store).get_metric_history(run_id, "train/loss")]


def wait_for_an_epoch(server, process):
    """Id of the training run once its second epoch is logged; read behind the server's back."""
    client = MlflowClient(server.store)
    deadline = time.monotonic() + 120
    while True:
        for run in client.search_runs(["0"], "tags.`lever.step` = 'rce' and attributes.status = 'RUNNING'"):
            if 2 in logged_epochs(server, run.info.run_id):
                return run.info.run_id
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_server_that_comes_back_gets_all_metrics(server, train):
    process = train()
    run_id = wait_for_an_epoch(server, process)
    server.kill()
    time.sleep(OUTAGE)
    assert process.poll() is None
    server.start()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert logged_epochs(server, run_id) == list(range(1, EPOCHS + 1))
    run = MlflowClient(server.store).get_run(run_id)
    assert run.info.status == "FINISHED"
    models = MlflowClient(server.store).search_logged_models(["0"], f"source_run_id = '{run_id}'")
    assert len(models) == EPOCHS


def test_a_server_that_stays_away_leaves_the_epochs_on_disk(server, train):
    process = train("--rerun", "true", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    wait_for_an_epoch(server, process)
    server.kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    (line,) = re.findall("^error: .*", errors, re.MULTILINE)
    folder = Path(re.search(r"safe in (\S+): .* -P resume=\1 logs them", line).group(1))
    server.start()
    process = train("--resume", str(folder))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    run = MlflowClient(server.store).search_runs(["0"], "tags.`lever.step` = 'rce'")[0]
    assert run.info.status == "FINISHED"
    assert run.data.tags["lever.resumed_from"] == str(folder)
    assert logged_epochs(server, run.info.run_id) == list(range(1, EPOCHS + 1))
    assert not folder.exists()
