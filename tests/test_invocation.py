"""Commands that are printed for users to paste: as the present command was started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.projects import ROOT
from mlflow import MlflowClient

from lever_mlflow import invocation

ACCEPTED = {"evaluate": frozenset({"dataset", "seed"}), "status": frozenset({"dataset"})}


@pytest.fixture
def started(monkeypatch):
    """started(argv0, **environment) is a command that was started like that in an activated environment."""

    def start(argv0, shared=None, **environment):
        for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"VIRTUAL_ENV": sys.prefix, "PWD": str(Path.cwd()), **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", [argv0])
        invocation.begin(shared or {}, ACCEPTED)

    return start


def test_from_python():
    assert invocation.command("grpo", kl_beta=0.3) == "mlflow run . --env-manager local -e grpo -P kl_beta=0.3"


def test_by_mlflow_run(started):
    started("entrypoints/compare.py", {"dataset": "/my data", "seed": 3, "lang": "zh"}, MLFLOW_RUN_ID="r1")
    invocation.joined("the demo", "", "uv")
    command = "mlflow run . --env-manager uv --experiment-name 'the demo' -e"
    assert invocation.command("evaluate", kl_beta=5e-06, sizes=(100, 200)) == (
        f"{command} evaluate -P 'dataset=/my data' -P seed=3 -P kl_beta=5e-06 -P sizes=100,200"
    )
    assert invocation.command("status", seed=4) == f"{command} status -P 'dataset=/my data' -P seed=4"


def test_by_the_module_and_by_the_installed_command(started):
    started(str(ROOT / "entrypoints/grpo.py"), MLFLOW_TRACKING_URI="sqlite:////tmp/a b.db")
    invocation.joined("demo", "", "")
    beginning = "MLFLOW_TRACKING_URI='sqlite:////tmp/a b.db' MLFLOW_EXPERIMENT_NAME=demo"
    assert invocation.command("evaluate", kl_beta=0.3) == f"{beginning} python -m entrypoints.evaluate --kl_beta 0.3"
    started("/usr/bin/lever-mlflow")
    invocation.joined("Default", "", "")
    assert invocation.command("evaluate", force=True) == "lever-mlflow evaluate --force true"


def test_a_password_is_not_printed(started):
    started("/usr/bin/lever-mlflow", MLFLOW_TRACKING_URI="https://me:secret@server/")
    assert invocation.command("status") == "lever-mlflow status"


def test_a_project_elsewhere_is_named(started, monkeypatch, tmp_path):
    project = tmp_path / "my project"
    project.mkdir()
    monkeypatch.chdir(project)
    started("entrypoints/grpo.py", MLFLOW_RUN_ID="r1", PWD="/home/me")
    invocation.joined("Default", "https://host/repository.git", "")
    assert invocation.command("status") == f"mlflow run '{project}' --env-manager local -e status"


def test_remedies_of_the_suites_are_rewritten(started):
    started("/usr/bin/lever-mlflow")
    text = "record more with `mlflow run . --env-manager local -e rollout -P n_queries=1000 -P temperatures=1,1.3`, then go on"
    assert invocation.in_present_form(text) == (
        "record more with `lever-mlflow rollout --n_queries 1000 --temperatures 1,1.3`, then go on"
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mlflow", "module", "console"])
def test_what_is_printed_runs_when_pasted(form, tmp_path, make_store, cache_dir):
    """The remedy of a promotion without a version is pasted into a shell; it names the same store, experiment and model."""
    folder = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"MLFLOW_TRACKING_URI": make_store(tmp_path), "LEVER_MLFLOW_CACHE": str(cache_dir), "PWD": str(ROOT)}
    environment.pop("VIRTUAL_ENV", None)
    options = {"kl_beta": "0.3", "model_name": "my model"}
    start = {
        "mlflow": [folder / "mlflow", "run", ".", "--env-manager", "local", "--experiment-name", "my runs", "-e", "promote"],
        "module": [sys.executable, "-m", "entrypoints.promote"],
        "console": [folder / "lever-mlflow", "promote"],
    }[form]
    if form == "mlflow":
        words = [word for name, value in options.items() for word in ("-P", f"{name}={value}")]
        path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    else:
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        path = {"MLFLOW_EXPERIMENT_NAME": "my runs"}
    process = subprocess.run(
        [*start, *words], cwd=ROOT, env={**environment, **path}, capture_output=True, text=True, check=False
    )
    remedy = re.search(r"no registered model my model; run `(.*)` first", process.stderr)[1]
    plan = " -P plan=true" if form == "mlflow" else " --plan true"
    del environment["MLFLOW_TRACKING_URI"]  # the command names it
    pasted = subprocess.run(remedy + plan, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, f"{remedy}\n{pasted.stderr}"
    assert re.search(r"^evaluate beta 0\.3 +would run, at most [\d,]+ prompts$", pasted.stdout, re.MULTILINE)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert [experiment.name for experiment in client.search_experiments()] == ["my runs", "Default"]
    runs = client.search_runs([client.get_experiment_by_name("my runs").experiment_id])
    # a run that mlflow itself has made stays until the next plan
    assert [run.info.run_name for run in runs] == [*["plan of evaluate"] * (form == "mlflow"), "promote beta 0.3"]
