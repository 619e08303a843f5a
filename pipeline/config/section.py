"""What all sections of the configuration are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.config.text import convert

SELECTOR = "arch"
"""The key that says which kind of section this is, where there are several (``primary.network``)."""


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
