"""The base class of all sections of the configuration, the units of numbers, and the marks of knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.config.text import convert

SELECTOR = "arch"
"""The key that selects the kind of a section if there are several kinds (``primary.network``)."""


@dataclass(frozen=True)
class Unit:
    """The unit of a number, as part of a field's type."""

    name: str


Steps = Annotated[int, Unit("optimizer steps")]
Seconds = Annotated[float, Unit("seconds")]
Pixels = Annotated[int, Unit("pixels")]
Frames = Annotated[int, Unit("frames")]
FrameRate = Annotated[float, Unit("frames a second")]
Videos = Annotated[int, Unit("videos")]
Mebibytes = Annotated[float, Unit("MiB")]
Share = Annotated[float, Unit("share of 1")]

# Marks of a field or of a whole section: ``Field(10, ge=1, json_schema_extra=SAME_WEIGHTS)``. ``select_marked`` reads them.
SAME_WEIGHTS: Any = {"same_weights": True}
"""The trained weights do not depend on the knob: a run may continue with another value and remains the same setting."""
PROTOCOL: Any = {"same_weights": True, "protocol": True}
"""The trained weights do not depend on the knob, but the scores do: runs with different values cannot be compared."""
MID_RUN: Any = {"mid_run": True}
"""The knob may change in the middle of a run, as in population-based training: no shape, video or schedule depends on it."""
LATER: Any = {"later": True}
"""The knob did not exist when earlier runs were recorded: its default is what they used, and is not in the fingerprint."""


def from_source(source: str) -> Any:
    """Marks a knob whose default is taken from ``source``; the default of any other knob is this project's choice.

    Marks are joined by ``|``: ``json_schema_extra=MID_RUN | PAPER``.
    """
    return {"source": source}


PAPER = from_source("paper")
"""The default is ActNetFormer's (arXiv 2404.06243)."""
SVFORMER = from_source("SVFormer")
"""The default is that of SVFormer (Xing et al., CVPR 2023)."""
TCL = from_source("TCL")
"""The default is that of TCL (Singh et al., CVPR 2021)."""
LTG = from_source("LTG")
"""The default is that of LTG (Xiao et al., CVPR 2022)."""


@dataclass(frozen=True)
class Refused:
    """Stands in for a text that is not a value of its field; pydantic refuses it as well, and lists it with the others."""

    value: Any
    reason: str

    def __repr__(self) -> str:
        return repr(self.value)


class Section(BaseModel):
    """A group of knobs; unknown names are errors and values never change after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _convert_text(cls, tree: Any) -> Any:
        """Converts texts to the types of their fields (see ``pipeline.config.text``)."""
        if not isinstance(tree, Mapping):
            return tree
        converted = dict(tree)
        for name in tree.keys() & cls.model_fields.keys():
            try:
                converted[name] = convert(tree[name], cls.model_fields[name].annotation)
            except ValueError as error:
                converted[name] = Refused(tree[name], str(error))
        return converted

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, tree: Any) -> Any:
        """Lets a section that is given in part keep, for the rest, the defaults that it has as a field of this section.

        ``auxiliary.optimizer`` has another learning rate than ``primary.optimizer``, though both are an ``OptimizerSection``:
        pydantic alone would fill in the class's defaults.
        """
        if not isinstance(tree, Mapping):
            return tree
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        given = {name: tree[name] for name in defaults if isinstance(tree.get(name), Mapping)}
        return {**tree, **{name: merge(defaults[name].model_dump(exclude_unset=True), part) for name, part in given.items()}}


def select_marked(section: Section, mark: str) -> dict[str, Any]:
    """Selects the fields that carry a mark: ``{name: True}``, and ``{name: {...}}`` for a section with marked fields.

    This is the form in which ``model_dump`` includes and excludes fields.
    """
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(field.json_schema_extra, dict) and mark in field.json_schema_extra:
            found[name] = True
        elif isinstance(value, Section) and (below := select_marked(value, mark)):
            found[name] = below
    return found


def list_marked_keys(section: Section, mark: str) -> list[str]:
    """Lists the dotted keys that carry a mark; for a section that carries it as a whole, the section's key followed by a
    dot."""

    def keys(tree: dict[str, Any], part: Section, prefix: str) -> list[str]:
        found = []
        for name, below in tree.items():
            value = getattr(part, name)
            if below is True:
                found.append(f"{prefix}{name}." if isinstance(value, Section) else f"{prefix}{name}")
            else:
                found += keys(below, value, f"{prefix}{name}.")
        return found

    return keys(select_marked(section, mark), section, "")


def drop_frame_rate(clip: Any, sampling: Any) -> None:
    """Removes ``fps`` from a clip's keys if ``sampling``, which is about to replace the clip's, is another one."""
    if isinstance(clip, dict) and sampling is not None and sampling != clip.get("sampling", "window"):
        clip.pop("fps", None)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merges two nested mappings key by key; if both have a value, that of ``changes`` is taken.

    A section of another kind (``arch``) takes nothing from the one that it replaces, and a clip with another ``sampling`` does
    not take its ``fps``.
    """
    if SELECTOR in base and changes.get(SELECTOR, base[SELECTOR]) != base[SELECTOR]:
        return dict(changes)
    merged = dict(base)
    drop_frame_rate(merged, changes.get("sampling"))
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged
