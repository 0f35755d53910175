"""The selectors that steps start from, and what commands import that run nothing."""

import os
import subprocess
import sys

import mlflow
import pytest
import torch
from helpers.projects import ROOT, run_step

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.pipeline import checkpoints
from lever_mlflow.pipeline.checkpoints import initial_selector, read_selector, start_selector
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import RolloutSettings

WORKING = {"torch", "transformers", "great_expectations", "accelerate", "matplotlib", "datasets", "openai"}


def imported(command, *arguments, ends="", **environment):
    """The packages that work takes and a command imports in a process of its own; ``ends`` is the error in which it ends."""
    code = "import atexit, sys; atexit.register(lambda: print('packages:', *{name.split('.')[0] for name in sys.modules})); "
    code += f"sys.argv[0] = {command!r}; import runpy; runpy.run_module('entrypoints.{command}', run_name='__main__')"
    shell = {**os.environ, **environment}
    process = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=shell, capture_output=True, text=True)
    assert ends in process.stderr if ends else process.returncode == 0, process.stderr
    return WORKING & set(process.stdout.rpartition("packages: ")[2].split())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_untrained_selector_is_known_by_its_digest(local, seed, monkeypatch):
    context = local(seed=seed)
    drawn = initial_selector(context, "random")
    start = start_selector(context, "random")
    assert start.digest == selector_digest(drawn) == selector_digest(start.load())
    monkeypatch.setattr(
        checkpoints, "initial_selector", lambda *_: pytest.fail("it is drawn, although its digest is remembered")
    )
    assert start_selector(context, "random").digest == start.digest


def test_a_checkpoint_is_known_by_its_digest_and_read_when_it_is_used(local, tmp_path):
    context, selector = local(), PointerSelector().eval()
    save_selector(tmp_path / "c", selector, {})
    torch.save(selector.state_dict(), tmp_path / "c.pt")
    for reference in ("c", "c.pt"):
        start = start_selector(context, str(tmp_path / reference))
        assert start.digest == selector_digest(selector) == selector_digest(start.load())


def test_a_checkpoint_that_is_replaced_before_it_is_used_is_refused(local, tmp_path):
    context = local()
    save_selector(tmp_path / "c", PointerSelector(), {})
    save_selector(tmp_path / "other", PointerSelector(), {})
    start = start_selector(context, str(tmp_path / "c"))
    for name in ("selector.json", "selector.safetensors"):
        (tmp_path / "other" / name).replace(tmp_path / "c" / name)
    with pytest.raises(CheckpointError, match="c: its weights were replaced meanwhile; run the command again"):
        start.load()


def test_a_damaged_checkpoint_is_refused_at_once(local, tmp_path):
    context = local()
    save_selector(tmp_path / "c", PointerSelector(), {})
    (tmp_path / "c" / "selector.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not readable weights") as expected:
        read_selector(context, str(tmp_path / "c"))
    with pytest.raises(CheckpointError) as error:
        start_selector(context, str(tmp_path / "c"))
    assert str(error.value) == str(expected.value)


@pytest.mark.slow
def test_commands_that_run_nothing_import_nothing_that_work_takes(local, mlflow_store, cache_dir):
    run_step(lambda: rollout_step(local(), RolloutSettings(n_queries=2)))
    environment = {
        "MLFLOW_TRACKING_URI": mlflow_store,
        "MLFLOW_EXPERIMENT_NAME": "test",
        "LEVER_MLFLOW_CACHE": str(cache_dir),
        "PYTHONPATH": str(ROOT),
    }
    assert imported("status", ends="error: no registered model", **environment) == set()
    assert imported("rollout", "--n_queries=2", **environment) == set()
    assert mlflow.search_runs(output_format="list")[0].info.run_name == "rollout (reused)"


@pytest.mark.slow
def test_a_whole_experiment_that_is_reused_imports_nothing_that_work_takes(mlflow_store, cache_dir):
    environment = {
        "MLFLOW_TRACKING_URI": mlflow_store,
        "MLFLOW_EXPERIMENT_NAME": "test",
        "LEVER_MLFLOW_CACHE": str(cache_dir),
        "PYTHONPATH": str(ROOT),
    }
    small = ["--kl_betas=0.12", "--n_queries=60", "--sizes=20,40", "--n_selection=20", "--shots=1,2", "--rounds=2"]
    assert {"torch", "great_expectations"} <= imported("main", *small, **environment)
    assert imported("main", *small, **environment) == set()
    assert imported("main", *small, "--plan=true", **environment) == set()
    assert imported("promote", "--kl_beta=0.12", "--plan=true", **environment) == set()
