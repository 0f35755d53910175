"""The wheel, installed into a folder and run from an empty one: nothing of the clone is needed."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lever_mlflow.gate import suite_digest

ROOT = Path(__file__).parents[2]
PARTS = ("lever_mlflow", "data_checks", "pyproject.toml", "setup.py", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


# without the experiment of another test in this process
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")}


def run(*command, folder, **environment):
    result = subprocess.run(
        command, cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """installed(*command) runs a command in an empty folder, with nothing but the installed wheel to import."""
    source, wheels, target, empty = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target", "empty"))
    for part in PARTS:  # a copy, as building leaves files behind
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), ".", folder=source)
    (wheel,) = wheels.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel), folder=empty)
    place = {"PYTHONPATH": str(target), "MLFLOW_TRACKING_URI": f"sqlite:///{empty / 'mlflow.db'}"}
    place |= {"LEVER_MLFLOW_CACHE": str(empty / "cache")}

    def here(*command):
        return run(*command, folder=empty, **place)

    here.target, here.store = target, empty / "mlflow.db"
    return here


def test_the_suites_are_those_of_the_clone(installed):
    code = "from lever_mlflow import gate; print(gate.DEFAULT_PROJECT_DIR, gate.suite_digest())"
    checks = installed.target / "lever_mlflow" / "gate" / "default_checks"
    assert installed(sys.executable, "-c", code).split() == [str(checks), suite_digest()]
    packaged = sorted(path.relative_to(checks) for path in checks.rglob("*.*"))
    clone = ROOT / "data_checks"
    assert packaged == sorted(path.relative_to(clone) for path in clone.rglob("*.*"))


def test_the_command_records_trials_and_checks_them(installed):
    command = str(installed.target / "bin" / "lever-mlflow")
    assert "rollout" in installed(command, "--help")
    installed(command, "rollout", "--n_queries=4", "--beam_width=2", "--pool_size=8")
    installed(command, "validate", "--on_bad_data=warn", "--max_shots=2")
    with sqlite3.connect(installed.store) as store:
        runs = store.execute("select status, name from runs order by start_time").fetchall()
    assert runs == [("FINISHED", "rollout"), ("FINISHED", "validate")]
