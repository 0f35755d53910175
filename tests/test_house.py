"""Rules of this house that no linter checks: short functions, documented names, commands that start at once, no archives."""

import ast
import subprocess
import sys

import pytest
from helpers.projects import ROOT

LONGEST = 60
CODE = sorted(path for folder in ("lever_mlflow", "entrypoints", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
ENTRY_POINTS = sorted(path.stem for path in (ROOT / "entrypoints").glob("[a-z]*.py"))
HEAVY = "accelerate great_expectations matplotlib mlflow numpy pandas scipy sklearn torch transformers".split()


def place(path, node):
    """Returns where a definition is, as a place that editors open."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def test_no_function_is_longer_than_a_screen():
    functions = [
        (path, node)
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(functions) > 500
    lengths = {f"{place(path, node)} {node.name}": node.end_lineno - node.lineno + 1 for path, node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def public_definitions(path):
    """Returns a module and its public functions and classes, each as its name and its node."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    definitions = [node for node in module.body if isinstance(node, kinds) and not node.name.startswith("_")]
    return [("module", module), *((node.name, node) for node in definitions)]


def test_every_public_name_has_a_docstring_that_begins_with_a_whole_sentence():
    wrong = []
    for path in CODE:
        if path.relative_to(ROOT).parts[0] != "lever_mlflow":
            continue
        for name, node in public_definitions(path):
            first_paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            if not first_paragraph.endswith((".", ":")):
                wrong.append(f"{place(path, node)} {name}: {first_paragraph or 'no docstring'}")
    assert wrong == []


def test_entry_points_import_nothing_heavy_before_they_have_read_their_options():
    assert "main" in ENTRY_POINTS
    code = "import importlib, sys\n"
    code += f"for name in {ENTRY_POINTS}:\n    importlib.import_module(f'entrypoints.{{name}}')\n"
    code += f"    print(name, *sorted(set({HEAVY}) & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines() == ENTRY_POINTS


def test_git_holds_no_archives_and_only_the_embedded_models_are_large():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this folder is no clone")
    files = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert not [path.name for path in files if path.suffix in {".whl", ".gz", ".zip", ".tar"}]
    large = {str(path.parent.relative_to(ROOT)) for path in files if path.stat().st_size > 1_000_000}
    assert large == {"lever_mlflow/mini/clip", "lever_mlflow/mini/vlm"}
