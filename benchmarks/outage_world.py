"""Runs commands in small worlds of their own, takes a part of such a world away in the middle, and reads what was left.

A world is a folder with a store, artifacts, a cache, a temporary folder, a home and a working folder. Commands run in forks of
this process, which has imported everything already, so that a whole experiment takes about twenty seconds.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from lever_mlflow.cli.launching import launch
from lever_mlflow.cli.step_commands import COMMANDS

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds for one command
SMALL = {
    "kl_betas": "0.12",
    "n_queries": "40",
    "sizes": "10,20",
    "n_selection": "10",
    "shots": "1,2",
    "rce_epochs": "2",
    "rounds": "1",
    "grpo_epochs": "2",
    "on_bad_data": "warn",
}
_PRELOADED = (
    *(
        "lever_mlflow.cli.commands",
        "lever_mlflow.pipeline.experiment",
        "lever_mlflow.pipeline.planning",
        "lever_mlflow.pipeline.overview",
    ),
    *("great_expectations", "matplotlib.pyplot", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "openai"),
    *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.clip.modeling_clip", "qwen_vl_utils"),
)
# Where a stage is in the middle of its work: the module and the name of a function, and which call of it.
STAGES = {
    "rollout": ("lever_mlflow.pipeline.rollout", "record_groups", 1),
    "validate": ("lever_mlflow.pipeline.gate", "report_html", 1),
    "rce": ("lever_mlflow.pipeline.epochs", "persistently", 2),
    "baselines": ("lever_mlflow.pipeline.baselines", "answering", 1),
    "grpo": ("lever_mlflow.pipeline.epochs", "persistently", 8),  # RCE has logged two epochs by three calls each
    "evaluate": ("lever_mlflow.pipeline.evaluation", "answering", 1),
    "register": ("lever_mlflow.pipeline.registration", "register", 1),
    "compare": ("lever_mlflow.pipeline.comparison", "markdown", 1),
}


class Ended(NamedTuple):
    """Says how a command ended: its exit code, what it wrote, and how many seconds it ran."""

    code: int
    output: str
    errors: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """Returns the lines that tell the user what went wrong."""
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]

    @property
    def has_traceback(self) -> bool:
        """Says whether anything was written that is meant for programmers."""
        return any(word in self.errors + self.output for word in ("Traceback", "Exception ignored", "--- Logging error"))


class Results(NamedTuple):
    """Holds what the finished runs of a store came to, and in which states its runs are."""

    values: Mapping[str, Any]
    states: Mapping[str, int]


@dataclass
class World:
    """Is a folder in which commands run.

    Attributes:
        folder: the folder, in which the parts are made.
        uri: of the store; by default a SQLite file in the world.
        options: of the command ``main``, beside ``SMALL``.
        environment: further variables.
    """

    folder: Path
    uri: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Makes the parts, and an experiment whose artifacts are in the world."""
        for part in ("store", "artifacts", "cache", "tmp", "home", "work"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        if not self.uri:
            self.uri = f"sqlite:///{self.folder / 'store' / 'mlflow.db'}"
            if not (self.folder / "store" / "mlflow.db").exists():
                in_fork(_make_experiment, self.uri)
            self._keep_artifacts_here()

    def part(self, name: str) -> Path:
        """Returns a part of the world."""
        return self.folder / name

    def main(self, at: str = "", do: Callable[[], object] | None = None, **choices: Any) -> Ended:
        """Runs the whole experiment in small; ``at`` a stage, ``do`` is called in the command's own process."""
        return self.run("main", {**SMALL, **self.options}, at, do, **choices)

    def run(
        self,
        name: str,
        options: Mapping[str, str],
        at: str = "",
        do: Callable[[], object] | None = None,
        *,
        before: Callable[[], object] | None = None,
        after: tuple[float, Callable[[], object]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Runs a command.

        Args:
            name: of the command.
            options: its options.
            at: the stage at which ``do`` is called, in the command's own process.
            do: takes a part of the world away.
            before: is called in the command's own process before the command.
            after: what is called in this process so many seconds after ``do``.
            environment: further variables.
        """
        struck = self.folder / "struck"
        struck.unlink(missing_ok=True)

        def strike() -> None:
            struck.touch()
            assert do is not None, "a stage is given with what is done there"
            do()

        def child() -> None:
            self._enter(environment or {})
            if before is not None:
                before()
            if do is not None:
                _call_at(STAGES[at], strike)
            launch(COMMANDS[name], [f"--{option}={value}" for option, value in options.items()])

        started = time.monotonic()
        process = os.fork()
        if process == 0:
            _leave(child)
        code = _wait(process, struck, after)
        if do is not None and not struck.exists():
            raise click.ClickException(f"{name}: nothing was done at {at}: {self._text('err')[-2000:]}")
        return Ended(code, self._text("out"), self._text("err"), time.monotonic() - started)

    def results(self) -> Results:
        """Reads what the finished runs came to."""
        return in_fork(_read_results, self.uri)

    def _keep_artifacts_here(self) -> None:
        """Has the experiment keep its artifacts in the world, also where its empty database was copied."""
        with closing(sqlite3.connect(self.folder / "store" / "mlflow.db")) as connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", [(self.folder / "artifacts").as_uri()])
            connection.commit()

    def _text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def _enter(self, environment: Mapping[str, str]) -> None:
        """Makes the calling process, which is a fork, one of this world; it hears signals even where this one ignores them."""
        os.setpgid(0, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by processes in the background
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        os.environ |= {**variables(self.folder, self.uri), **self.environment, **environment}
        os.chdir(self.part("work"))


def variables(folder: Path, uri: str) -> dict[str, str]:
    """Returns the environment variables that make a process one of the world in a folder."""
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_NAME": "small",
        "LEVER_MLFLOW_CACHE": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def preload() -> None:
    """Imports what commands import, so that forks need not."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    for module in _PRELOADED:
        importlib.import_module(module)


def in_fork(function: Callable[..., T], *arguments: Any) -> T:
    """Returns what a function of a module returns in a fork of this process, which itself never opens a store."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def _call_at(place: tuple[str, str, int], do: Callable[[], object]) -> None:
    """Calls something before a certain call of a function in this process."""
    module, name, number = place
    function, calls = getattr(importlib.import_module(module), name), Counter[str]()

    def called(*arguments: Any, **keywords: Any) -> Any:
        calls[name] += 1
        if calls[name] == number:
            do()
        return function(*arguments, **keywords)

    setattr(importlib.import_module(module), name, called)


def _leave(work: Callable[[], object]) -> None:
    """Does the work of a fork, and ends it as Python would end a process of its own."""
    code = 0
    try:
        work()
    except SystemExit as error:
        code = int(error.code or 0) if isinstance(error.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _wait(process: int, struck: Path, after: tuple[float, Callable[[], object]] | None) -> int:
    """Waits for a fork, and calls what is to be called some time after the strike; returns the exit code."""
    deadline, due = time.monotonic() + LIMIT, 0.0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if after is not None and not due and struck.exists():
            due = now + after[0]
        if after is not None and due and now >= due:
            after[1]()
            after = None
        if now > deadline:
            os.killpg(process, signal.SIGKILL)
            deadline = now + LIMIT
        time.sleep(0.05)


def _make_experiment(uri: str) -> None:
    from mlflow import MlflowClient

    MlflowClient(uri).create_experiment("small")


def _read_results(uri: str) -> Results:
    """Reads digests, accuracies and versions of the newest finished run of each step."""
    import mlflow
    from mlflow import MlflowClient

    from lever_mlflow.runs.models import checkpoints_of

    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments(filter_string="name = 'small'")]
    runs = client.search_runs(experiments, order_by=["attributes.start_time DESC"])
    finished = {run.data.tags.get("lever.step"): run for run in reversed(runs) if run.info.status == "FINISHED"}
    values: dict[str, Any] = {
        "rl_data": finished["rollout"].data.tags["lever.rl_data_digest"] if "rollout" in finished else None,
        "checkpoints": {
            name: {
                epoch: client.get_logged_model(model).tags["lever.checkpoint_digest"]
                for epoch, model in checkpoints_of(finished[name].info.run_id).items()
            }
            for name in {"rce", "grpo"} & finished.keys()
        },
        "versions": sum(1 for _ in client.search_model_versions()),
        "steps": sorted(name for name in finished if name),
    }
    if "evaluate" in finished:
        path = mlflow.artifacts.download_artifacts(run_id=finished["evaluate"].info.run_id, artifact_path="evaluation.json")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        values |= {name: content[name] for name in ("accuracy", "selection_accuracy", "best_epoch", "overlap")}
    return Results(values, Counter(run.info.status for run in runs))


def tags_of_newest(world: World, step: str) -> dict[str, str]:
    """Returns the tags of the newest finished run of a step, and its id as ``run_id``."""
    return in_fork(_read_tags, world.uri, step)


def _read_tags(uri: str, step: str) -> dict[str, str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    filter_string = f"tags.`lever.step` = '{step}' and attributes.status = 'FINISHED'"
    run = client.search_runs(experiments, filter_string, order_by=["attributes.start_time DESC"], max_results=1)[0]
    return {**run.data.tags, "run_id": run.info.run_id}


def shell(*command: object) -> None:
    """Runs a program, and raises an error with what it said where it fails."""
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if process.returncode:
        raise click.ClickException(f"{command}: {process.stderr.strip()}")
