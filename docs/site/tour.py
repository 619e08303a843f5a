"""Executes docs/tour.ipynb and stores it with what its cells show: ``python -m docs.site.tour``.

Progress is left out, and so is whatever differs from one execution to the next without a meaning, so that only changes of the
notebook change the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "tour.ipynb"
SECONDS = 600
"""For a single cell, on a busy machine."""


def execute(notebook: nbformat.NotebookNode) -> None:
    """Executes all cells, as JupyterLab would in docs/, with the code of this checkout. Raises CellExecutionError at the first
    one that fails."""
    kernel = {"metadata": {"path": str(NOTEBOOK.parent)}}
    environment = {**os.environ, "PYTHONPATH": str(NOTEBOOK.parent.parent)}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=kernel).execute(env=environment)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Takes out progress, the times of execution and the name of the folder of this execution."""
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = re.sub(r"\S*/(tour)_\w+", r"/tmp/\1", output.text)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}


def main() -> int:
    """Executes the notebook and stores it again."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook)
    tidy(notebook)
    nbformat.write(notebook, NOTEBOOK)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
