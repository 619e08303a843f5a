"""The pages for people: one to try the model with a clip, and the description of the interface."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Operation:
    """One address of the interface, as the description shows it."""

    method: str
    path: str
    summary: str
    parameters: list[Mapping[str, Any]]
    bodies: list[str]
    responses: Mapping[str, Mapping[str, Any]]


@cache
def read_asset(name: str) -> str:
    """Reads a style or script of the page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def render_upload_page(facts: Mapping[str, Any]) -> str:
    """Renders the page to drop a clip on."""
    return _render("page.html.j2", facts)


def render_docs(description: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Renders an OpenAPI description as a page, which needs no script and nothing from elsewhere."""
    schemas = {name: json.dumps(schema, indent=1) for name, schema in description["components"]["schemas"].items()}
    shown = {name: text for name, text in schemas.items() if "Validation" not in name}
    return _render("docs.html.j2", {**facts, "title": description["info"]["title"], "about": description["info"]["description"],
                                    "operations": list(list_operations(description)), "schemas": shown})  # fmt: skip


def list_operations(description: Mapping[str, Any]) -> Iterator[Operation]:
    """Lists the addresses of an OpenAPI description."""
    for path, methods in description["paths"].items():
        for method, one in methods.items():
            bodies = list(one.get("requestBody", {}).get("content", {}))
            yield Operation(method.upper(), path, one["summary"], one.get("parameters", []), bodies, one["responses"])


def _render(template: str, context: Mapping[str, Any]) -> str:
    loader = PackageLoader("pipeline.serving.web")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(context)
