"""Writes commands for users to paste, in the form in which the present command was started.

A message that asks for another step names the command that runs it. The command holds what the present one was started with:
the program, the environment manager, the store, the experiment, and the options that all steps share, such as the data set.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lever_mlflow.settings import as_text

__all__ = ["Invocation", "begin", "command", "in_present_form", "joined", "program"]

Form = Literal["mlflow", "module", "console"]
_STORE, _EXPERIMENT, _RUN = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"  # variables that MLflow reads
_DEFAULT_EXPERIMENT = "Default"
_CANONICAL = re.compile(r"mlflow run \. --env-manager local -e (?P<step>\w+)(?P<options>(?: -P \w+=[\w.,-]+)*)")


@dataclass(frozen=True)
class Invocation:
    """Describes how the present command was started.

    Attributes:
        form: ``mlflow`` for ``mlflow run``, ``module`` for ``python -m entrypoints.<step>``, ``console`` for ``lever-mlflow``.
        shared: options of the command that other steps take as well, as a user types them.
        accepted: names of the options that each step takes.
        experiment: name of the MLflow experiment; empty before it is known.
        store: URI of MLflow's store, where the user named one.
        project: what ``mlflow run`` was given as the project.
        env_manager: what ``mlflow run`` was given as ``--env-manager``.
        on_path: whether the user's shell finds the programs of this Python environment.
    """

    form: Form = "mlflow"
    shared: Mapping[str, str] = field(default_factory=dict)
    accepted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    experiment: str = ""
    store: str = ""
    project: str = "."
    env_manager: str = "local"
    on_path: bool = True


_LIBRARY = Invocation()  # where the package is used from Python
_present = _LIBRARY


def begin(shared: Mapping[str, Any], accepted: Mapping[str, frozenset[str]]) -> None:
    """Remembers how this process was started; arguments as the attributes of ``Invocation``."""
    global _present
    texts = {name: as_text(value) for name, value in shared.items()}
    activated = sys.prefix in (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"), sys.base_prefix)
    experiment, store = os.environ.get(_EXPERIMENT, ""), os.environ.get(_STORE, "")
    _present = Invocation(_form(), texts, accepted, experiment, store, on_path=activated)


def joined(experiment: str, source: str, env_manager: str) -> None:
    """Remembers what is known once the run is open.

    Args:
        experiment: the name of its experiment.
        source: the project that MLflow recorded for the run; a URI, or empty.
        env_manager: the environment manager that MLflow recorded; empty for ``local``.
    """
    global _present
    if _present is not _LIBRARY:
        _present = replace(
            _present, experiment=experiment, project=_project(source), env_manager=env_manager or Invocation.env_manager
        )


def command(step: str, **parameters: Any) -> str:
    """Returns the command that runs a step with these parameters."""
    shared = {name: value for name, value in _present.shared.items() if name in _present.accepted.get(step, ())}
    options = {**shared, **{name: as_text(value) for name, value in parameters.items()}}
    named = _present.experiment not in ("", _DEFAULT_EXPERIMENT)
    if _present.form == "mlflow":
        start = f"{program('mlflow')} run {shlex.quote(_present.project)} --env-manager {_present.env_manager}"
        experiment = f" --experiment-name {shlex.quote(_present.experiment)}" if named else ""
        words = "".join(f" -P {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        return f"{_store()}{start}{experiment} -e {step}{words}"
    start = f"{program('python')} -m entrypoints.{step}" if _present.form == "module" else f"{program('lever-mlflow')} {step}"
    experiment = f"{_EXPERIMENT}={shlex.quote(_present.experiment)} " if named else ""
    words = "".join(f" --{name} {shlex.quote(value)}" for name, value in options.items())
    return f"{_store()}{experiment}{start}{words}"


def in_present_form(text: str) -> str:
    """Rewrites the commands ``mlflow run . --env-manager local -e STEP -P name=value`` in a text as ``command`` writes them."""

    def rewrite(match: re.Match[str]) -> str:
        pairs = (option.partition("=") for option in match["options"].split(" -P ")[1:])
        return command(match["step"], **{name: value for name, _, value in pairs})

    return _CANONICAL.sub(rewrite, text)


def program(name: str) -> str:
    """Returns how a program of this Python environment is called from the user's shell, where it may not be on the path."""
    if _present.on_path:
        return name
    folder = Path(sys.executable).parent
    if name == "mlflow":  # which finds python, and so the packages, by the path
        return f'PATH={shlex.quote(str(folder))}:"$PATH" mlflow'
    return shlex.quote(str(folder.relative_to(Path.cwd()) / name if folder.is_relative_to(Path.cwd()) else folder / name))


def _form() -> Form:
    if _RUN in os.environ:
        return "mlflow"
    return "module" if Path(sys.argv[0]).parent.name == "entrypoints" else "console"


def _store() -> str:
    """Returns the beginning of a pasted command that names MLflow's store, such as ``MLFLOW_TRACKING_URI=http://host:5000 ``.

    It is empty where MLflow finds the store by itself, and where the URI could hold a password.
    """
    uri, default = _present.store, ("", "sqlite:///mlflow.db", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    return "" if uri in default or "@" in uri or "?" in uri else f"{_STORE}={shlex.quote(uri)} "


def _project(source: str) -> str:
    """Returns what ``mlflow run`` was given: MLflow works in that folder, or in a temporary clone of a URI."""
    here = Path.cwd()
    if str(here) == os.environ.get("PWD"):
        return "."
    cloned = here.parent == Path(tempfile.gettempdir()) and re.fullmatch(r"tmp\w{8}", here.name)
    return source if cloned and source else str(here)
