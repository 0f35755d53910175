"""pyproject.toml, conda.yaml, MLproject and the commands say the same."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from mlflow.projects import _project_spec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lever_mlflow.cli.option_types import Number

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
def test_parameters_commands_and_scripts_agree(name):
    parameters, command, script = ENTRY_POINTS[name]["parameters"], ENTRY_POINTS[name]["command"], options(name)
    assert command.startswith(f"python -m entrypoints.{name} ")
    assert re.findall(r"--(\w+) \{(\w+)\}", command) == [(parameter, parameter) for parameter in script]
    assert parameters.keys() == script.keys()
    for parameter, declared in parameters.items():
        option = script[parameter]
        assert declared["type"] == ("float" if isinstance(option.type, Number) else "string"), parameter
        convert = lambda value, option=option: option.type.convert(value, option, None)  # noqa: E731
        assert convert(str(declared["default"])) == convert(option.default), parameter
        if declared["type"] == "string":
            assert declared["default"] == option.default, parameter  # as a user types it


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_mlflow_passes_each_parameter_once(name):
    entry_point = _project_spec.load_project(str(ROOT)).get_entry_point(name)
    assert set(entry_point.parameters) == set(options(name))
    line = entry_point.compute_command({"vlm": "a vlm"}, None).split(" ", 3)
    passed = dict(zip(*[iter(shlex.split(line[3]))] * 2, strict=True))
    assert passed["--vlm"] == "a vlm"
    expected = {f"--{parameter}": str(declared["default"]) for parameter, declared in ENTRY_POINTS[name]["parameters"].items()}
    assert passed == {**expected, "--vlm": "a vlm"}


def test_each_parameter_has_the_first_sentence_of_its_help_as_comment():
    lines = re.findall(r"^ +(\w+): \{type: .*\} +# (.*)$", (ROOT / "MLproject").read_text(), re.MULTILINE)
    assert len(lines) == (ROOT / "MLproject").read_text().count("{type: ")
    helps = {
        (option.name, option.help.split(". ")[0].rstrip(".") + ".")
        for name in ENTRY_POINTS
        for option in options(name).values()
    }
    assert set(lines) == helps


def test_the_installed_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"lever-mlflow": "lever_mlflow.cli.commands:run"}
