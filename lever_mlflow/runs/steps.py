"""Runs steps as MLflow runs: starts them, and reuses those that have finished.

Every step's run records the digests of all that decides its result; its key names all of them and the settings together. A step
is looked up by its tags, never by its name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run

import lever_mlflow
from lever_mlflow import invocation
from lever_mlflow.exceptions import GateError, LeverError, StoreError
from lever_mlflow.files.locks import lock_of, one_at_a_time
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.progress import duration
from lever_mlflow.runs.artifacts import log_json, log_text, read_json
from lever_mlflow.runs.clock import warn_of_the_clock
from lever_mlflow.runs.environment_run import OPEN, check_environment_run
from lever_mlflow.runs.fields import LONGEST_DESCRIPTION, LONGEST_PARAMETER, LONGEST_RUN_NAME, fitted
from lever_mlflow.runs.links import run_link
from lever_mlflow.runs.planning import Unfinished, active_plan
from lever_mlflow.runs.processes import close_runs_without_process, run_of_this_process
from lever_mlflow.runs.progress import recorded_progress
from lever_mlflow.runs.search import describe, find_run
from lever_mlflow.runs.stores import check_stores, is_of_the_store, store_errors
from lever_mlflow.runs.tags import DESCRIPTION, RUN_NAME, Tag, name_run, record, set_description
from lever_mlflow.runs.whole import log_manifest
from lever_mlflow.settings import as_text

__all__ = [
    "RUN_ID",
    "Step",
    "active_run",
    "anew",
    "describe_unopened_run",
    "ensure",
    "finished_run",
    "project_run",
    "run_as_child",
    "run_here",
    "run_settings",
]

RUN_ID = "MLFLOW_RUN_ID"  # MLflow's own variable, which names the run that ``mlflow run`` made
SETTINGS_FILE, CONFIG_FILE = "settings.json", "config.yaml"
_PACKAGES = ("torch", "transformers", "mlflow", "great-expectations", "numpy")
_PROJECT_SOURCE, _PROJECT_ENV = "mlflow.source.name", "mlflow.project.env"  # MLflow's own tags

log = logging.getLogger(__name__)
_locks_of_run: ContextVar[ExitStack | None] = ContextVar("locks_of_run", default=None)
_run_anew: ContextVar[dict[str, str] | None] = ContextVar("run_anew", default=None)  # ids of the runs made, by key


@dataclass(frozen=True)
class Step:
    """Describes a step that is ready to run.

    Attributes:
        step: its kind, such as ``grpo``; ``name`` is the run's name in the UI.
        settings: what the user can choose; logged as parameters.
        inputs: digests and origins of all that it works on; recorded as facts, by which it is found again.
        execute: does the work inside the active run.
        labels: further options as the user gave them, such as the names of the inputs; parameters, but not part of the key.
        config: the content of a configuration file that repeats the step; empty where no command runs it.
        prompts: how many prompts it asks the VLM at most.
        needs: URIs of the logged models that whoever takes its result reads, beside those that it makes.
        repeatable: whether another run with the same key has the same result, so that a finished one can be reused.
    """

    step: str
    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    execute: Callable[[], None]
    labels: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    prompts: int = 0
    needs: Sequence[str] = ()
    repeatable: bool = True

    @property
    def key(self) -> str:
        """Names the step with all its settings, inputs and this package's code; the same key means the same result."""
        content = json.dumps([code_digest(), self.step, self.settings, self.inputs], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@cache
def code_digest() -> str:
    """Returns the SHA-256 over this package's modules, 16 hex characters; those of the commands decide nothing of a result."""
    digest, package = hashlib.sha256(), Path(lever_mlflow.__file__).parent
    for path in sorted(set(package.rglob("*.py")) - set(package.glob("cli/*"))):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def project_run(name: str) -> Iterator[Run]:
    """Opens the run that ``mlflow run`` made, or a new one, and closes the runs of processes that are gone.

    The run is FINISHED at the end of the block, and FAILED when an exception leaves it. It is called ``name`` until a step
    gives it a name of its own; its description says why it failed.

    Raises:
        StoreError: as ``store_errors`` and ``check_stores``.
        MissingRunError: as ``check_environment_run``.
    """
    failure: LeverError | None = None
    with store_errors(), _locks():
        check_stores()
        check_environment_run(name)
        try:
            with run_of_this_process() as run, recorded_progress():
                name_run(name)
                close_runs_without_process()
                warn_of_the_clock(run)
                tags = run.data.tags
                experiment = mlflow.get_experiment(run.info.experiment_id).name
                source = without_secrets(tags.get(_PROJECT_SOURCE, ""))
                invocation.joined(experiment, source, tags.get(_PROJECT_ENV, ""))
                try:
                    with store_errors():
                        yield run
                except LeverError as error:
                    failure = error
                    if not is_of_the_store(error.__cause__):  # otherwise MLflow cannot be reached
                        _describe_failure(run.info.run_id, f"failed: {error}")
                    raise
                except (KeyboardInterrupt, SystemExit):
                    _describe_failure(run.info.run_id, "interrupted")
                    raise
        except Exception as error:
            if failure is None or error is failure:
                raise
            raise failure from error  # not even the failure could be recorded; what failed first says more


def active_run() -> Run:
    """Returns the run that a step works in."""
    run = mlflow.active_run()
    assert run is not None, "a step works in a run"
    return run


def run_here(step: Step, *, rerun: bool = False) -> str:
    """Runs a step in the active run, unless a finished run of exactly this step is there, which this run then points to.

    Args:
        rerun: whether the step runs although a finished run is there.

    Returns:
        The id of the run that holds the result.
    """
    if not step.repeatable:
        return _run(step)
    if (locks := _locks_of_run.get()) is not None:
        locks.enter_context(_alone(step))  # until the run has ended, as others find a finished one only
    finished = None if rerun else finished_run(step)
    if finished is None:
        return _run(step)
    name_run(f"{step.name} (reused)")
    record({Tag.REUSED: finished})
    set_description(
        f"Nothing was run: {run_link(finished)} has finished with the same inputs, settings and code. "
        "The parameter rerun=true runs it anew."
    )
    return finished


def ensure(step: Step) -> str:
    """Returns the id of a finished run of exactly this step, or of a child run that does it now.

    Raises:
        Unfinished: a plan is being made, and there is no finished run.
    """
    finished = finished_run(step)
    plan = active_plan()
    if plan is not None:
        plan.look(step.name, step.prompts, finished)
        if finished is None:
            raise Unfinished(step.name)
    if finished is not None:
        return finished
    with _alone(step):
        return finished_run(step) or run_as_child(step)


@contextmanager
def _alone(step: Step) -> Iterator[None]:
    """Waits while another process of this user and machine runs exactly this step, and then lets others wait.

    What is not known to it, such as a process of another machine, does the same work, and its result is the same.
    """
    lock = lock_of(f"{mlflow.get_tracking_uri()}\n{active_run().info.experiment_id}\n{step.key}")
    with one_at_a_time(lock, f"{step.name}: another process runs the same step just now; waiting for its end"):
        yield


@contextmanager
def _locks() -> Iterator[None]:
    """Holds until the end of the block the locks of the steps that ``run_here`` runs in it."""
    with ExitStack() as locks:
        token = _locks_of_run.set(locks)
        try:
            yield
        finally:
            _locks_of_run.reset(token)


@contextmanager
def anew() -> Iterator[None]:
    """Lets every step within the block run once, although a finished run of it may be there."""
    token = _run_anew.set({})
    try:
        yield
    finally:
        _run_anew.reset(token)


def finished_run(step: Step) -> str | None:
    """Returns the id of the newest finished run of exactly this step, which the log then names; None if there is none.

    Within ``anew`` only the runs that were made there count.
    """
    run_ids = _run_anew.get()
    if run_ids is not None:
        return run_ids.get(step.key)
    finished = find_run(step.step, {Tag.KEY: step.key})
    if finished is None:
        return None
    if active_plan() is None:
        log.info("%s: reused from %s", step.name, describe(finished))
    return str(finished.info.run_id)


def run_as_child(step: Step) -> str:
    """Runs a step in a child of the active run and returns the child's id."""
    with run_of_this_process(nested=True, run_name=fitted(step.name, LONGEST_RUN_NAME)):
        return _run(step)


def run_settings(run_id: str) -> dict[str, Any]:
    """Reads the settings that a step ran with.

    Raises:
        DataError: the run does not hold them.
    """
    return read_json(run_id, SETTINGS_FILE)


def _run(step: Step) -> str:
    """Runs a step in the active run and returns the run's id.

    The log has a line when the step starts, and one when it ends: the first line of the run's description, which says what the
    step came to. Parameters that ``mlflow run`` has logged already are left as the user typed them.
    """
    run_id, started = str(active_run().info.run_id), time.perf_counter()
    log.info("%s: running", step.name)
    _log_parameters(step)
    log_json(step.settings, SETTINGS_FILE)
    if step.config:
        plain = json.loads(json.dumps(dict(step.config)))  # tuples become lists
        log_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), CONFIG_FILE)
    name_run(step.name)
    record(
        {
            **{f"lib.{package}": version(package) for package in _PACKAGES},
            "lib.python": platform.python_version(),
            **step.inputs,
            Tag.VERSION: lever_mlflow.__version__,
            Tag.CODE: code_digest(),
            Tag.STEP: step.step,
            Tag.KEY: step.key,
        }
    )
    try:
        step.execute()
    except GateError:  # whose verdict is found again in the failed run
        log_manifest(run_id)
        raise
    log_manifest(run_id, step.needs)
    run_ids = _run_anew.get()
    if run_ids is not None:
        run_ids[step.key] = run_id
    description = mlflow.get_run(run_id).data.tags.get(DESCRIPTION) or "done"
    finding = description.splitlines()[0].replace("**", "").removesuffix(".")  # without Markdown's emphasis
    log.info("%s: %s (%s)", step.name, finding, duration(time.perf_counter() - started))
    return run_id


def _log_parameters(step: Step) -> None:
    """Logs the settings and labels of a step as parameters of the active run, unless ``mlflow run`` has logged them."""
    logged = mlflow.get_run(active_run().info.run_id).data.params
    for name, text in logged.items():
        if text != without_secrets(text):
            log.warning(
                "mlflow run has recorded the parameter %s with its password; delete this run, and give it otherwise", name
            )
    new = {name: as_text(value) for name, value in {**step.labels, **step.settings}.items() if name not in logged}
    mlflow.log_params({name: fitted(text, LONGEST_PARAMETER, CONFIG_FILE) for name, text in new.items()})


def describe_unopened_run(run_id: str, name: str, reason: str) -> None:
    """Names a run and says why it failed, unless it has ended or has a description; what MLflow refuses is left as it is.

    It is for runs that ``mlflow run`` has made and whose command failed before ``project_run``.
    """
    client = mlflow.MlflowClient()
    with suppress(StoreError), store_errors():
        run = client.get_run(run_id)
        if DESCRIPTION not in run.data.tags and run.info.status in OPEN:
            client.set_tag(run_id, RUN_NAME, fitted(name, LONGEST_RUN_NAME))
            client.set_tag(run_id, DESCRIPTION, fitted(f"failed: {reason}", LONGEST_DESCRIPTION))


def _describe_failure(run_id: str, reason: str) -> None:
    """Says in a run's description why it failed, unless its step has written a description already."""
    if DESCRIPTION not in mlflow.get_run(run_id).data.tags:
        set_description(reason)
