"""Writes the reference of all knobs from their declarations: ``python -m pipeline.config.reference docs/configuration.md``.

Type, default, unit, range, source and text are those of the fields, and the packages that read a knob are found in the code.
``tests/config/test_reference.py`` keeps the page current.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from pipeline.config.knob_readers import find_readers
from pipeline.config.load import find_sections
from pipeline.config.run import Config
from pipeline.config.section import Section, Unit

HEAD = """# Configuration

All knobs. `python -m pipeline.config.reference docs/configuration.md` writes this page from their declarations in
`pipeline/config/`. A YAML file gives them by section, the command line by dotted key: `method.contrast.weight=4`. What is not
given has its default.

- **Range**: the smallest and largest value that is accepted; a parenthesis leaves the end itself out.
- **Source**: where the default is from: *paper* is ActNetFormer, other papers are named, and *choice* is ours, where the paper
  is silent.
- **Used by**: the packages of `pipeline/` whose code reads the knob. `config` derives from it what the others use, or checks
  that it goes with other knobs.
- † The trained weights do not depend on it: a run may continue with another value.
- ‡ Population-based training may change it in the middle of a run (`jobs.search --algorithm pbt`).
"""


@dataclass(frozen=True)
class Knob:
    """One key, as the page shows it."""

    key: str
    field: FieldInfo
    default: Any
    section: type[Section]
    about: str
    """What the section is there for, where several sections are of the same kind; else empty."""
    marks: frozenset[str]

    @property
    def source(self) -> str:
        """Where its default is from."""
        extra = self.field.json_schema_extra
        return str(extra.get("source", "choice")) if isinstance(extra, dict) else "choice"


def list_knobs(
    section: type[Section] = Config,
    default: Section | None = None,
    prefix: str = "",
    about: str = "",
    marks: frozenset[str] = frozenset(),
) -> Iterator[Knob]:
    """Lists every key that can be set, in the order of declaration; those of each kind of network one after the other."""
    for name, field in section.model_fields.items():
        own = marks | frozenset(field.json_schema_extra if isinstance(field.json_schema_extra, dict) else ())
        value = field.get_default(call_default_factory=True) if default is None else getattr(default, name)
        children = find_sections(field.annotation)
        for child in children:
            given = value if isinstance(value, child) else None
            yield from list_knobs(child, given, f"{prefix}{name}.", field.description or "", own)
        if not children:
            yield Knob(f"{prefix}{name}", field, value, section, about, own)


def build_page() -> str:
    """Builds the whole page."""
    parts = [HEAD]
    groups: dict[tuple[str, type[Section]], list[Knob]] = {}
    for knob in list_knobs():
        groups.setdefault((knob.key.rpartition(".")[0], knob.section), []).append(knob)
    for (path, section), found in groups.items():
        if path == "auxiliary.network":  # the same kinds as the primary's, with the same defaults
            continue
        kind = next((str(knob.default) for knob in found if knob.key.endswith(".arch")), "")
        both = f"`primary.network` and `auxiliary.network`, arch `{kind}`"
        title = both if path == "primary.network" else f"`{path}`"
        parts += [f"## {title}", "", _wrap(_join_lines(f"{found[0].about} {section.__doc__ or ''}"), ""), ""]
        parts += [*(_format_entry(knob) for knob in found if knob.field.description), ""]
    return "\n".join(parts).rstrip() + "\n"


def _format_entry(knob: Knob) -> str:
    mark = ("†" if "same_weights" in knob.marks else "") + ("‡" if "mid_run" in knob.marks else "")
    unit, accepted = find_unit(knob.field), describe_range(knob.field)
    text = _join_lines(knob.field.description or "")
    facts = [
        describe_type(knob.field.annotation) + (f" ({unit})" if unit else ""),
        f"default {_format_code(knob.default)}",
        f"range {accepted}" if accepted else "",
        f"source: {knob.source}",
        f"used by {', '.join(find_users(knob))}",
    ]
    lines = [f"- `{knob.key.rpartition('.')[2]}`{mark}", f"*{'; '.join(fact for fact in facts if fact)}.*", text]
    return "\n".join([lines[0] + "  ", _wrap(lines[1], "  ") + "  ", _wrap(text, "  ")])


def _join_lines(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _wrap(text: str, indent: str) -> str:
    filled = textwrap.TextWrapper(124, indent, indent, break_long_words=False, break_on_hyphens=False)
    return filled.fill(text)


def _format_code(value: Any) -> str:
    if value is None or isinstance(value, bool | dict | tuple):
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def describe_type(annotation: Any) -> str:
    """Describes a type: whole number, number, text, true or false, one of ..., list or mapping of these, or null."""
    kind, parts = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return describe_type(parts[0])
    if kind in (Union, UnionType):
        return " or ".join("null" if part is NoneType else describe_type(part) for part in parts)
    if kind is Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts) if len(parts) > 1 else f"`{parts[0]}`"
    if kind is tuple:
        return f"list of {describe_type(parts[0])}"
    if kind is dict:
        return f"mapping of text to {describe_type(parts[1])}"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[annotation]


def find_unit(field: FieldInfo) -> str:
    """Finds the unit of a number; empty if it has none or the field is not a number."""
    return next((part.name for part in _list_metadata(field) if isinstance(part, Unit)), "")


def describe_range(field: FieldInfo) -> str:
    """Describes the accepted values as an interval; empty if all values are accepted."""
    low = high = ""
    for part in _list_metadata(field):
        low = f"[{part.ge}" if isinstance(part, annotated_types.Ge) else low
        low = f"({part.gt}" if isinstance(part, annotated_types.Gt) else low
        high = f"{part.le}]" if isinstance(part, annotated_types.Le) else high
        high = f"{part.lt})" if isinstance(part, annotated_types.Lt) else high
    return f"{low or '(-∞'}, {high or '∞)'}" if low or high else ""


def _list_metadata(field: FieldInfo) -> list[Any]:
    def within(annotation: Any) -> list[Any]:
        extra: list[Any] = []
        for part in getattr(annotation, "__metadata__", ()):
            extra += part.metadata if isinstance(part, FieldInfo) else [part]
        return extra + [one for part in get_args(annotation) if not isinstance(part, str) for one in within(part)]

    return [*field.metadata, *within(field.annotation)]


def find_users(knob: Knob) -> list[str]:
    """Finds the packages whose code reads the knob, in alphabetical order."""
    name = knob.key.rpartition(".")[2]
    users = [packages for (kind, field), packages in find_readers().items() if field == name and issubclass(knob.section, kind)]
    return sorted(frozenset().union(*users))


def main(words: list[str]) -> int:
    """Writes the page to the path on the command line."""
    if len(words) != 1:
        print("usage: python -m pipeline.config.reference docs/configuration.md", file=sys.stderr)
        return 2
    Path(words[0]).write_text(build_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
