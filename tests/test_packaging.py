"""pyproject.toml, conda.yaml, MLproject and the commands say the same."""

import importlib
import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from mlflow.projects import _project_spec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lever_mlflow.cli.reference import options_page

ROOT = Path(__file__).parents[1]
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS = PROJECT["entry_points"]


def ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {canonicalize_name(r.name): r for r in map(Requirement, project["dependencies"])}


def pins():
    dependencies = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    lines = next(item["pip"] for item in dependencies if isinstance(item, dict))
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def options(name):
    command = importlib.import_module(f"entrypoints.{name}").main
    return {option.name: option for option in command.params if isinstance(option, click.Option)}


def test_every_dependency_is_pinned_within_its_range():
    assert pins().keys() == ranges().keys()
    for name, pin in pins().items():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert ranges()[name].specifier.contains(specifier.version), name


def test_names_of_the_entry_points():
    steps = ["main", "rollout", "validate", "rce", "grpo", "evaluate", "compare", "promote", "rollback", "status"]
    assert list(ENTRY_POINTS) == steps
    scripts = {path.stem for path in (ROOT / "entrypoints").glob("[a-z]*.py")}
    assert scripts == {*ENTRY_POINTS, "merge_answers"}  # which computes nothing, so is no run
    assert PROJECT["conda_env"] == "conda.yaml"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_mlflow_passes_what_was_typed_and_nothing_else(name):
    assert ENTRY_POINTS[name] == {"command": f"python -m entrypoints.{name}"}
    entry_point = _project_spec.load_project(str(ROOT)).get_entry_point(name)
    assert entry_point.compute_command({}, None) == f"python -m entrypoints.{name}"
    line = entry_point.compute_command({"vlm": "a vlm", "seed": "1"}, None)
    assert line == f"python -m entrypoints.{name} --vlm 'a vlm' --seed 1"


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_parameters_that_mlproject_names_are_options(name):
    (names,) = re.findall(rf"^  {name}:  # .*: (.*)$", (ROOT / "MLproject").read_text(), re.MULTILINE)
    assert set(names.split(", ")) <= set(options(name))


def test_the_page_of_options_is_up_to_date():
    assert (ROOT / "docs/options.md").read_text() == options_page()  # python -m lever_mlflow.cli.reference > docs/options.md


def test_the_installed_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"lever-mlflow": "lever_mlflow.cli.commands:run"}
