"""Self-contained HTML pages: one file without fonts, images or scripts from anywhere, written as a whole or not at all."""

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

SORTING = (Path(__file__).parent / "templates" / "sorting.js").read_text(encoding="utf-8")
"""The one script of a page: makes tables sortable by mouse and keyboard."""


def script_hash(script: str) -> str:
    """What a content security policy allows the script by, and no other one."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render_page(template: str, context: dict[str, Any]) -> str:
    """A template of this room with ``context``; the same context gives the same bytes."""
    loader = PackageLoader("pipeline.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(context)


def write_page(html: str, path: Path, option: str) -> None:
    """Raises UserError naming ``option`` when it cannot be written."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file, for example {path / 'page.html'}")
    write_whole(html, path, option)


def write_whole(text: str, path: Path, option: str) -> None:
    """Any text, whole or not at all. Raises UserError naming ``option`` when it cannot be written."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}") from None


def image_uri(image: NDArray[np.uint8], quality: int = 72) -> str:
    """An RGB image [H, W, 3] as a ``data:image/jpeg`` URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
