"""Executes the quickstart notebook and writes it with its outputs; run from the repository by ``make notebook``.

What another machine or another day would change is left out of the file: execution times, and texts on the error stream, where
libraries warn.
"""

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "quickstart.ipynb"
MOST_BYTES = 1_000_000
MOST_SECONDS = 600  # for a cell
# An absolute path or a user's folder, as it stands in a text output; a page of the web is none.
PATH = re.compile(r"(?<![\w:/.<])/(?:\w[\w.-]*/)+[\w.-]*|[A-Z]:\\|~/")


def execute(source: Path, target: Path) -> None:
    """Executes a notebook in the folder that it lies in, and writes it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
        ValueError: the outputs are not fit to be published.
    """
    notebook = nbformat.read(source, as_version=4)
    where = {"metadata": {"path": str(source.parent)}}
    NotebookClient(notebook, timeout=MOST_SECONDS, record_timing=False, coalesce_streams=True, resources=where).execute()
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    check(notebook)
    nbformat.write(notebook, target)


def check(notebook: Any) -> None:
    """Checks that a notebook's outputs are fit to be published.

    Raises:
        ValueError: a cell has not been executed or holds an error, a text output names a path of a machine, or the notebook is
            too large.
    """
    for number, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != number:
            raise ValueError(f"code cell {number} was executed as number {cell.execution_count}; run `make notebook`")
        for output in cell.outputs:
            if output.output_type == "error":
                raise ValueError(f"code cell {number} holds an error: {output.ename}; mend it and run `make notebook`")
            path = PATH.search(text_of(output))
            if path:
                raise ValueError(f"code cell {number} prints the path {path[0]}; print the file's name alone")
    size = len(nbformat.writes(notebook).encode())
    if size > MOST_BYTES:
        raise ValueError(f"the notebook has {size} bytes, at most {MOST_BYTES} are wanted; draw smaller figures")


def code_cells(notebook: Any) -> list[Any]:
    """Returns the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output: Any) -> str:
    """Returns what an output says in words: the text of a stream, or the plain text and HTML of a result."""
    data = output.get("data", {})
    return "\n".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")])


if __name__ == "__main__":
    execute(NOTEBOOK, Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK)
