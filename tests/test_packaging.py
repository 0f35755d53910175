"""pyproject.toml, conda.yaml, MLproject, the commands, the Dockerfile and the workflow say the same."""

import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from mlflow.projects import _project_spec
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lever_mlflow.cli.reference import options_page

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
DOCKERFILE = ROOT / "Dockerfile"
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRY_POINTS = PROJECT["entry_points"]


def ranges():
    return {canonicalize_name(r.name): r for r in map(Requirement, PYPROJECT["dependencies"])}


def pins():
    lines = next(item["pip"] for item in CONDA if isinstance(item, dict))
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
    steps = ["main", "rollout", "merge", "validate", "rce", "grpo", "evaluate", "compare", "promote", "rollback", "status"]
    assert list(ENTRY_POINTS) == steps
    scripts = {path.stem for path in (ROOT / "entrypoints").glob("[a-z]*.py")}
    assert scripts == {*ENTRY_POINTS, "convert", "merge_answers"}  # which compute nothing, so are no runs
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
    assert PYPROJECT["scripts"] == {"lever-mlflow": "lever_mlflow.cli.commands:run"}


def instructions():
    """The instructions of the Dockerfile, each a keyword and the rest of its logical line."""
    text = re.sub(r"^ *#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def arguments():
    """The build arguments of the Dockerfile with their defaults."""
    return dict(rest.split("=", 1) for keyword, rest in instructions() if keyword == "ARG")


def copied():
    """The paths that the Dockerfile copies from the context."""
    copies = [shlex.split(rest) for keyword, rest in instructions() if keyword == "COPY"]
    return [path for words in copies for path in words[:-1] if not path.startswith("--")]


def test_the_image_copies_what_there_is_and_what_the_package_is_made_of():
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    exceptions = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == exceptions
    # What the build of the package reads, and what `mlflow run` reads.
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "lever_mlflow", "data_checks"} <= exceptions
    assert {"MLproject", "conda.yaml", "entrypoints"} <= exceptions


def test_the_image_has_the_python_and_the_versions_of_conda_yaml(tmp_path):
    python = next(item.removeprefix("python=") for item in CONDA if isinstance(item, str) and item.startswith("python="))
    assert arguments()["BASE_IMAGE"] == f"python:{python}-slim"
    command = next(rest for keyword, rest in instructions() if keyword == "RUN" and "constraints.txt" in rest)
    sed, grep = (re.search(rf"&& ({tool} .*?) > /venv", command)[1] for tool in ("sed", "grep"))
    listed = subprocess.run(shlex.split(sed), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed.splitlines() == [str(pin) for pin in pins().values()]
    (tmp_path / "constraints.txt").write_text(listed)
    words = [word.replace("/venv", str(tmp_path)) for word in shlex.split(grep)]
    torch = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert torch == [str(pins()[name]) for name in ("torch", "torchvision")]
    assert sed.split(" conda.yaml")[0] in (ROOT / "Makefile").read_text().replace("$$", "$")
    assert arguments()["TORCH_INDEX"] in (ROOT / "Makefile").read_text()


def test_the_image_runs_as_a_user_without_privileges_and_keeps_its_cache_in_a_volume():
    by_keyword = dict(instructions())
    assert by_keyword["USER"] == "${USER_ID}:${USER_ID}"
    assert int(arguments()["USER_ID"]) > 0
    assert by_keyword["VOLUME"] == "/cache"
    assert "LEVER_MLFLOW_CACHE=/cache" in by_keyword["ENV"]


def test_the_docker_env_of_the_docs_is_one_that_mlflow_takes(tmp_path):
    line = re.search(r"^sed -i '(.*)' MLproject$", (ROOT / "docs" / "container.md").read_text(), re.MULTILINE)[1]
    content = subprocess.run(["sed", line, "MLproject"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (tmp_path / "MLproject").write_text(content)
    project = _project_spec.load_project(str(tmp_path))
    assert project.docker_env == {"image": "lever-mlflow", "volumes": ["lever-cache:/cache"]}
    assert set(project._entry_points) == set(ENTRY_POINTS)


def test_the_workflow_tests_every_python_that_is_named():
    (job,) = WORKFLOW["jobs"].values()
    versions = job["strategy"]["matrix"]["python"]
    named = [c.rsplit(" ", 1)[1] for c in PYPROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert versions == named
    assert [
        v for v in ("3.10", "3.11", "3.12", "3.13", "3.14") if SpecifierSet(PYPROJECT["requires-python"]).contains(v)
    ] == named
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test PYTHON=python TORCH=cpu"]
    assert [
        step["uses"] for step in job["steps"] if "uses" in step and not re.search(r"@(v\d+|[0-9a-f]{40})$", step["uses"])
    ] == []
    assert "secrets." not in str(WORKFLOW)


def test_every_command_that_installs_something_names_an_extra_or_a_requirement_of_the_package():
    required = {str(r) for extra in PYPROJECT["optional-dependencies"].values() for r in map(Requirement, extra)}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("lever_mlflow/**/*.py")]
    commands = [c for page in pages for c in re.findall(r"python -m pip install ([^`\n]*)", page.read_text(encoding="utf-8"))]
    assert len(commands) >= 3
    for command in commands:
        for extra in re.findall(r"\.\[(\w+)\]", command):
            assert extra in PYPROJECT["optional-dependencies"], command
        for requirement in re.findall(r"'(\S+)'", command):
            assert requirement in required, command
