"""What all sections of the configuration are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.config.text import convert

SELECTOR = "arch"
"""The key that says which kind of section this is, where there are several (``primary.network``)."""


@dataclass(frozen=True)
class Unit:
    """What a number is in; part of a field's type."""

    name: str


Steps = Annotated[int, Unit("optimizer steps")]
Seconds = Annotated[float, Unit("seconds")]
Pixels = Annotated[int, Unit("pixels")]
Frames = Annotated[int, Unit("frames")]
FrameRate = Annotated[float, Unit("frames a second")]
Videos = Annotated[int, Unit("videos")]
Mebibytes = Annotated[float, Unit("MiB")]
Share = Annotated[float, Unit("share of 1")]

# Marks of a field or of a whole section: ``Field(10, ge=1, json_schema_extra=SAME_WEIGHTS)``. ``marked`` reads them.
SAME_WEIGHTS: Any = {"same_weights": True}
"""The trained weights do not depend on it: a run may go on with another value, and is the same setting with it."""
PROTOCOL: Any = {"same_weights": True, "protocol": True}
"""The trained weights do not depend on it, and the scores do: runs that differ in it cannot be compared."""
MID_RUN: Any = {"mid_run": True}
"""May change in the middle of a run, as population-based training does: it decides no shapes, videos or schedules."""
LATER: Any = {"later": True}
"""Runs were recorded without it: its default is what was before, and is left out of the fingerprint."""


@dataclass(frozen=True)
class Refused:
    """In the place of a text that is no value of its field: pydantic takes it for none either, and lists it with all else."""

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
        """A text means what its field's type makes of it (see ``pipeline.config.text``)."""
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
        """A section within this one that is given in part keeps, for the rest, the defaults that it has *here*.

        ``auxiliary.optimizer`` has another learning rate than ``primary.optimizer``, though both are an ``OptimizerSection``:
        pydantic alone would fill what is not given with the class's defaults.
        """
        if not isinstance(tree, Mapping):
            return tree
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        given = {name: tree[name] for name in defaults if isinstance(tree.get(name), Mapping)}
        return {**tree, **{name: merge(defaults[name].model_dump(exclude_unset=True), part) for name, part in given.items()}}


def marked(section: Section, mark: str) -> dict[str, Any]:
    """What carries a mark: ``{name: True}``, of a section within another ``{name: {...}}``, as ``model_dump`` includes and
    excludes."""
    found: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(field.json_schema_extra, dict) and mark in field.json_schema_extra:
            found[name] = True
        elif isinstance(value, Section) and (below := marked(value, mark)):
            found[name] = below
    return found


def marked_keys(section: Section, mark: str) -> list[str]:
    """Dotted keys that carry a mark, of sections that carry it as a whole their own, followed by a dot."""

    def keys(tree: dict[str, Any], part: Section, prefix: str) -> list[str]:
        found = []
        for name, below in tree.items():
            value = getattr(part, name)
            if below is True:
                found.append(f"{prefix}{name}." if isinstance(value, Section) else f"{prefix}{name}")
            else:
                found += keys(below, value, f"{prefix}{name}.")
        return found

    return keys(marked(section, mark), section, "")


def forget_rate(clip: Any, sampling: Any) -> None:
    """Remove ``fps`` from a clip's keys if ``sampling``, which is about to be written there, is another than the clip's."""
    if isinstance(clip, dict) and sampling is not None and sampling != clip.get("sampling", "window"):
        clip.pop("fps", None)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one, key by key; where both have a value, that of ``changes``.

    A section of another kind (``arch``) takes nothing from the one that it replaces, and a clip of another ``sampling`` does
    not take its ``fps``.
    """
    if SELECTOR in base and changes.get(SELECTOR, base[SELECTOR]) != base[SELECTOR]:
        return dict(changes)
    merged = dict(base)
    forget_rate(merged, changes.get("sampling"))
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged
