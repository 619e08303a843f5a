"""Writes HTML pages as single files that load no fonts, images or scripts, completely or not at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UserError

SORTING = (Path(__file__).parents[1] / "templates" / "sorting.js").read_text(encoding="utf-8")
"""The script of a page, which makes tables sortable by mouse and keyboard."""
REPORT_SCRIPT = SORTING + (Path(__file__).parents[1] / "templates" / "confusion.js").read_text(encoding="utf-8")
"""The only script of a report: ``SORTING``, and what names the cells of large confusion matrices."""


def hash_script(script: str) -> str:
    """Returns the hash by which a content security policy allows this script and no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render_page(template: str, context: dict[str, Any]) -> str:
    """Renders a template of this package; the same context gives the same bytes."""
    loader = PackageLoader("pipeline.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(context)


def write_page(html: str, path: Path, option: str) -> None:
    """Writes a page. Raises UserError that names ``option`` if it cannot be written."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file, for example {path / 'page.html'}")
    write_file(html, path, option)


def write_file(text: str, path: Path, option: str) -> None:
    """Writes a text completely or not at all. Raises UserError that names ``option`` if it cannot be written."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        remedy = f"name another file with {option}"
        raise UserError(f"{path} cannot be written: {error.strerror or error}; {remedy}") from None


def encode_image(image: NDArray[np.uint8], quality: int = 72) -> str:
    """Encodes an RGB image [H, W, 3] as a ``data:image/jpeg`` URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
