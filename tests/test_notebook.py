"""The quickstart notebook: it runs, its outputs are fit to be published, and it uses what the package offers."""

import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from helpers.projects import ROOT

import lever_mlflow
from docs import run_notebook


@pytest.fixture
def notebook():
    """The notebook as it is in the repository."""
    return nbformat.read(run_notebook.NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_with_all_its_outputs(notebook):
    nbformat.validate(notebook)
    run_notebook.check(notebook)
    cells = run_notebook.code_cells(notebook)
    assert [bool(cell.outputs) for cell in cells] == [True] * len(cells)
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3


def test_it_uses_the_public_names_alone(notebook):
    code = "\n".join(cell.source for cell in run_notebook.code_cells(notebook))
    assert set(re.findall(r"\blever\.(\w+)", code)) <= set(lever_mlflow.__all__)
    assert re.findall(r"^(?:from|import) lever_mlflow.*$", code, re.MULTILINE) == ["import lever_mlflow as lever"]


def test_its_links_lead_to_pages(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("saved in /home/anna/project/rl.json", "/home/anna/project/rl.json"),
        ("'/tmp/x1/rl.json'", "/tmp/x1/rl.json"),
        (r"C:\Users\anna", "C:\\"),
        ("~/project", "~/"),
        ("95 % in 1/3 of https://example.org/a/b </td></tr> and/or docs/page.md", None),
    ],
)
def test_paths_of_a_machine_are_seen(text, path):
    match = run_notebook.PATH.search(text)
    assert (match[0] if match else None) == path


def test_outputs_that_are_not_fit_are_refused(notebook):
    cells = run_notebook.code_cells(notebook)
    cells[0].outputs[0].text = "data in /home/anna/data\n"
    with pytest.raises(ValueError, match="code cell 1 prints the path /home/anna/data"):
        run_notebook.check(notebook)
    cells[0].execution_count = 7
    with pytest.raises(ValueError, match="code cell 1 was executed as number 7; run `make notebook`"):
        run_notebook.check(notebook)
    cells[0].execution_count = 1
    cells[0].outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="x", traceback=[])]
    with pytest.raises(ValueError, match="code cell 1 holds an error: KeyError"):
        run_notebook.check(notebook)
    cells[0].outputs = [nbformat.v4.new_output("stream", text="x" * run_notebook.MOST_BYTES)]
    with pytest.raises(ValueError, match="at most 1000000 are wanted"):
        run_notebook.check(notebook)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(notebook, tmp_path, cache_dir, monkeypatch):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    source = Path(shutil.copy(run_notebook.NOTEBOOK, tmp_path))
    run_notebook.execute(source, tmp_path / "executed.ipynb")
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    kinds = [[output.output_type for output in cell.outputs] for cell in run_notebook.code_cells(executed)]
    assert kinds == [[output.output_type for output in cell.outputs] for cell in run_notebook.code_cells(notebook)]
    (line,) = re.findall(r"the choice of the selector: +([\d.]+)%", str(executed))
    assert float(line) > 60  # without a demonstration the VLM is right on 45 % of the questions
