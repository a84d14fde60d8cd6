"""Executes notebooks and keeps their outputs: python -m notebooks.execute notebooks/model_compare.ipynb

Knows what of an execution is worth keeping: what a cell printed and showed, and not when, by whom, or how far a download
was. The tests execute notebooks in the same way.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

LIMIT_S = 1800
"""For one cell: a machine may have to fetch a model first."""


def execute(path: Path) -> Any:
    """The notebook with its outputs. Raises CellExecutionError where a cell fails, with what it says."""
    notebook = nbformat.read(path, as_version=4)
    with _apart() as folder:
        NotebookClient(
            notebook,
            timeout=LIMIT_S,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


@contextmanager
def _apart() -> Iterator[str]:
    """A folder to work in: neither the history of the user's shells nor a .env file of theirs has part in it."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        os.environ.update(IPYTHONDIR=folder, JUPYTER_RUNTIME_DIR=folder, JUPYTER_CONFIG_DIR=folder)
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(execute(Path(name)), name)
