"""pyproject.toml, conda.yaml, MLproject and the scripts say the same."""

import importlib
import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    assert dict(re.findall(r"--(\w+) \{(\w+)\}", command)) == {parameter: parameter for parameter in parameters}
    assert parameters.keys() == script.keys()
    for parameter, declared in parameters.items():
        option = script[parameter]
        assert declared["type"] in ("string", "float")
        assert option.help, parameter
        convert = lambda value, option=option: option.type.convert(value, option, None)  # noqa: E731
        assert convert(str(declared["default"])) == convert(option.default), parameter


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_one_comment_on_each_parameter(name):
    text = (ROOT / "MLproject").read_text().split(f"\n  {name}:\n")[1].split("command:")[0]
    lines = [line for line in text.splitlines() if line.startswith("      ")]
    assert len(lines) == len(ENTRY_POINTS[name]["parameters"])
    for line in lines:
        parameter, comment = re.fullmatch(r"      (\w+): \{.*\} +# (.*)", line).groups()
        assert comment == options(name)[parameter].help
