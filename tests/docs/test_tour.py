"""docs/tour.ipynb runs from its first cell to its last, and is stored with what its cells show."""

from __future__ import annotations

import base64
import copy
import io
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

from docs.site.tour import NOTEBOOK, execute, tidy

LARGEST = 150_000
"""Bytes of the stored notebook."""


def list_pictures(notebook: Any) -> list[np.ndarray]:
    """The pictures that the cells show, as pixels [height, width, colors]."""
    outputs = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    stored = [base64.b64decode(data["image/jpeg"]) for data in outputs if "image/jpeg" in data]
    return [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in stored]


def list_texts(notebook: Any) -> list[bool]:
    """For each cell, whether it shows a text."""
    return [any(output.get("text") for output in cell.get("outputs", [])) for cell in notebook.cells]


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_what_is_stored_is_small_and_free_of_progress(stored: Any) -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
    again = copy.deepcopy(stored)
    tidy(again)
    assert again == stored, "give: python -m docs.site.tour"
    assert "/tmp/tour_" not in NOTEBOOK.read_text(encoding="utf-8")


FEWER = {
    "--videos 64": "--videos 32", "step=80": "step=16", "method.supervised_steps=60": "method.supervised_steps=12",
    "method.ramp_steps=20": "method.ramp_steps=4", "steps: 120": "steps: 24", "log_every: 10": "log_every: 2",
    "checkpoint_every: 60": "checkpoint_every: 12",
}  # fmt: skip
"""Numbers of the notebook, and smaller ones that all cells can show something of, too."""


def shorten(notebook: Any) -> None:
    """Writes these smaller numbers into the cells."""
    for number, smaller in FEWER.items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and number in cell.source]
        cell.source = cell.source.replace(number, smaller)


@pytest.mark.timeout(900)
def test_all_cells_run_and_show_what_is_stored(stored: Any) -> None:
    fresh = copy.deepcopy(stored)
    shorten(fresh)
    execute(fresh)
    tidy(fresh)
    assert list_texts(fresh) == list_texts(stored), "give: python -m docs.site.tour"
    for old, new in zip(list_pictures(stored), list_pictures(fresh), strict=True):
        assert old.shape == new.shape and new.std() > 10
    assert len(list_pictures(fresh)) == 2
    for notebook, steps in ((stored, 120), (fresh, 24)):
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        texts = "".join(output.text for output in outputs if output.output_type == "stream")
        assert "16 labeled videos" in texts and f"test top-1 after step {steps}" in texts


def test_a_cell_that_fails_is_told(stored: Any, tmp_path: Path) -> None:
    wrong = copy.deepcopy(stored)
    wrong.cells = [nbformat.v4.new_code_cell("from jobs import prepared")]
    with pytest.raises(CellExecutionError, match="cannot import name 'prepared'"):
        execute(wrong)
