"""Runs of this project: ``mlflow run`` as a user types it, and steps in this process."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from lever_mlflow.runs import steps
from lever_mlflow.runs.tags import run_tags

ROOT = Path(__file__).parents[2]


class Project:
    """Runs ``mlflow run`` on the empty store ``uri``, whose artifacts are kept in ``folder``."""

    def __init__(self, uri, folder, cache_dir):
        self.uri = uri
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "LEVER_MLFLOW_CACHE": str(cache_dir), "PATH": path}
        mlflow.set_tracking_uri(self.uri)
        mlflow.create_experiment("small", artifact_location=(folder / "artifacts").as_uri())
        self.client = MlflowClient(self.uri)

    def run(self, entry_point, experiment="small", **parameters):
        """Runs an entry point with parameters and returns the finished process."""
        arguments = [part for name, value in parameters.items() for part in ("-P", f"{name}={value}")]
        command = ["mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local", "--experiment-name", experiment]
        return subprocess.run(
            [*command, *arguments], env=self.environment, capture_output=True, text=True, timeout=280, check=False
        )

    def runs(self, experiment="small", **tags):
        """Returns the runs of an experiment with these tags, the newest first; ``a_b`` stands for the tag ``a.b``."""
        return self.client.search_runs(
            [self.client.get_experiment_by_name(experiment).experiment_id],
            " and ".join(f"tags.`{name.replace('_', '.', 1)}` = '{value}'" for name, value in tags.items()),
        )

    def newest(self, experiment="small"):
        """Returns the newest run of an experiment."""
        return self.runs(experiment)[0]


def facts(run):
    """Returns all facts that a run recorded, as tags or beside them."""
    return run_tags(run.info.run_id)


def error_lines(result):
    """Returns what a process told its user went wrong, and asserts that it printed no traceback."""
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def run_step(make_step):
    """Runs a step in this process, even where it has finished before, and returns its run."""
    with steps.project_run("test") as run:
        steps.run_here(make_step(), rerun=True)
    return mlflow.get_run(run.info.run_id)
