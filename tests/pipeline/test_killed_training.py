"""Training that is killed before any one of its writes, halfway through one, or in the middle of an epoch: nothing is lost.

``LEVER_KILLS=all`` tries them all.
"""

import logging
import multiprocessing
import os
import pkgutil
import signal
from pathlib import Path

import mlflow
import pytest
from helpers.projects import run_step
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import read_rl_data
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.runs import artifacts, metrics
from lever_mlflow.runs.models import checkpoints_of
from lever_mlflow.selector.checkpoint import load_selector, selector_digest
from lever_mlflow.serving import logged_models
from lever_mlflow.settings import RceSettings
from lever_mlflow.training.state import load_state

pytestmark = pytest.mark.slow

PROCESS = multiprocessing.get_context("forkserver")
STORES = ("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store")
PROCESS.set_forkserver_preload(  # all that a training imports on its way, once for all processes
    ["lever_mlflow.pipeline.experiment", "great_expectations", "matplotlib.figure", "mlflow.pyfunc", "torch._dynamo", *STORES]
)
SETTINGS = RceSettings(epochs=3, batch_size=16, dropout=0.1, lr_scheduler="cosine")  # 3 steps an epoch; draws random numbers

# which function, what its arguments hold, at which such call the process is killed, before it or with half of its file
# written, and the epochs that are whole then
KILLS = [
    ("torch.optim:AdamW.step", "", 5, "before", 1),
    ("mlflow:set_tags", "state_epoch", 2, "before", 2),
    ("lever_mlflow.training.state:save_file", "", 4, "halfway", 1),  # of the copy that is sent; the third is of the one on disk
]
if os.environ.get("LEVER_KILLS") == "all":
    KILLS += [
        ("torch.optim:AdamW.step", "", 2, "before", 0),
        ("lever_mlflow.pipeline.epochs:save_selector", "", 2, "before", 1),
        ("lever_mlflow.pipeline.resume:save_state", "", 3, "before", 1),
        ("mlflow.pyfunc:log_model", "", 2, "before", 1),
        ("mlflow.store.artifact.local_artifact_repo:LocalArtifactRepository.log_artifacts", "models/m-", 2, "before", 1),
        ("mlflow:log_metrics", "train/loss", 2, "before", 1),
        ("mlflow:log_artifact", "training_states", 2, "before", 1),
        ("mlflow:log_figure", "", 1, "before", 3),
        ("mlflow:set_tags", "best_epoch", 1, "before", 3),
        ("lever_mlflow.selector.checkpoint:save_file", "", 2, "halfway", 1),
        ("lever_mlflow.training.state:save_file", "", 3, "halfway", 1),
    ]


def train_until_killed(uri, cache_dir, rl_data, place, argument, call, when):
    """A training that ends itself by SIGKILL before a function is called, or when half of a file is written."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("test")
    owner, name = place.rsplit("." if "." in place.split(":")[1] else ":", 1)
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, name), []

    def counting(*arguments, **keywords):
        if argument in repr((arguments, keywords)):
            calls.append(name)
            if len(calls) == call:
                if when == "halfway":
                    function(*arguments, **keywords)
                    os.truncate(arguments[1], Path(arguments[1]).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    setattr(owner, name, counting)
    line = Context(Resources(cache_dir=cache_dir))
    data = read_rl_data(line, rl_data)
    run_step(lambda: rce_step(line, data, SETTINGS, "none"))


def epochs_of(run):
    """Metrics of each epoch but the seconds, and the digests of the checkpoints."""
    epochs = [
        {name: value for name, value in epoch.items() if name != "train/seconds"}
        for epoch in metrics.epoch_metrics(run.info.run_id).values()
    ]
    models = checkpoints_of(run.info.run_id)
    return epochs, {epoch: mlflow.get_logged_model(model).tags["lever.checkpoint_digest"] for epoch, model in models.items()}


def readable_checkpoints(line, run_id):
    """Epoch and digest of every checkpoint that a killed run left ready in MLflow or on disk."""
    models = mlflow.search_logged_models(
        [mlflow.get_run(run_id).info.experiment_id], f"source_run_id = '{run_id}'", output_format="list"
    )
    for model in models:
        if model.status == LoggedModelStatus.READY:
            yield (
                int(model.params["epoch"]),
                selector_digest(load_selector(logged_models.checkpoint_folder(f"models:/{model.model_id}"))),
            )
    for folder in (line.resources.cache_dir / "unsent" / run_id).glob("checkpoint-*"):
        yield int(folder.name[-4:]), selector_digest(load_selector(folder))


def whole_states(run_id):
    """The epochs of the training states that a killed run logged and that can be read."""
    for path in artifacts.list_artifacts(run_id, "training_states"):
        try:
            state, _ = load_state(artifacts.artifact(run_id, path))
        except CheckpointError:
            continue
        assert len(state.history) == int(path[-4:])
        yield len(state.history)


def test_killed_at_any_write_it_ends_as_if_it_had_not_been(local, mlflow_store, good_rl_data, cache_dir, caplog):
    caplog.set_level(logging.INFO, logger="lever_mlflow")
    line = local()
    data = read_rl_data(line, good_rl_data)
    undisturbed = epochs_of(run_step(lambda: rce_step(line, data, SETTINGS)))
    for *kill, whole in KILLS:
        process = PROCESS.Process(target=train_until_killed, args=(mlflow_store, cache_dir, good_rl_data, *kill))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, kill
        killed = MlflowClient().search_runs(["1"], "attributes.status = 'RUNNING'")[0].info.run_id
        assert list(whole_states(killed)) == list(range(1, whole + 1)), kill
        for epoch, digest in readable_checkpoints(line, killed):
            assert digest == undisturbed[1][epoch], kill
        caplog.clear()
        if whole:
            resumed = run_step(lambda killed=killed: rce_step(line, data, SETTINGS, killed))
            assert f"resuming after epoch {whole} of {killed}" in caplog.text
            assert epochs_of(resumed) == undisturbed, kill
        else:
            with pytest.raises(CheckpointError, match="no whole training state to go on from"):
                run_step(lambda killed=killed: rce_step(line, data, SETTINGS, killed))
