"""Names that knobs had before version 1.0, and knobs that are gone: refused in what users write, read in what runs recorded.

The fingerprint of a run is a hash of its knobs under the names of November 2026, so that runs that were recorded then go on.
This file, and what calls it, goes away with 1.0.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_LOSSES = ("supervised", "pseudo_label", "contrast", "group_contrast", "alignment", "mix")
RENAMED: dict[str, str] = {
    **{f"method.{loss}_weight": f"method.{loss}.weight" for loss in _LOSSES},
    **{f"method.{part}.{loss}": f"method.{loss}.{part}" for part in ("start", "ramp") for loss in _LOSSES},
    **{f"method.contrast_{knob}": f"method.contrast.{knob}" for knob in ("temperature", "features", "negatives", "level")},
    **{f"method.mix_{knob}": f"method.mix.{knob}" for knob in ("patch", "concentration", "consistency")},
    "method.projection_width": "method.contrast.projection_width",
    "method.label_smoothing": "method.supervised.label_smoothing",
    "method.mixup": "method.supervised.mixup",
    "evaluation.batch_videos": "evaluation.batch_views",
}
"""Earlier dotted key -> today's."""
_LIMITS = ("least_label_accuracy", "least_mask_rate", "largest_contrast_share", "least_alignment", "largest_class_share",
           "largest_loss")  # fmt: skip
REMOVED: dict[str, str] = dict.fromkeys(
    (f"monitors.{limit}" for limit in _LIMITS),
    "is no knob any more, because no result depends on it and nobody changed it: leave it out",
)
"""Earlier dotted key -> what has become of it. None of them is in a fingerprint."""


def with_new_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping of knobs that a run recorded, under today's names."""
    kept = _move(tree, RENAMED)
    for key in REMOVED:
        _pop(kept, key.split("."))
    return kept


def with_old_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping of all knobs under the names of November 2026."""
    return _move(tree, {new: old for old, new in RENAMED.items()})


def with_new_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping with dotted keys that a study recorded, under today's names."""
    return {RENAMED.get(key, key): value for key, value in dict(flat).items()}


def explain_renamed(key: str, value: Any = None) -> list[str]:
    """Sentences that name today's keys, where ``key`` is an earlier one, or a section whose keys in ``value`` are."""
    if key in RENAMED:
        return [f"{key} is now {RENAMED[key]}"]
    if key in REMOVED:
        return [f"{key} {REMOVED[key]}"]
    below = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else []
    known = [old for old in RENAMED if old.startswith(f"{key}.")]
    return [f"{old} is now {RENAMED[old]}" for old in known if not below or old in below]


def _move(tree: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``tree`` with the values of some dotted keys under others; sections that are left empty are removed."""
    moved: dict[str, Any] = copy.deepcopy(dict(tree))
    taken = [(key.split("."), value) for source, key in names.items() for value in _pop(moved, source.split("."))]
    for (*sections, last), value in taken:
        section = moved
        for name in sections:
            if not isinstance(section.setdefault(name, {}), dict):  # no section, as validation will say
                section[name] = {}
            section = section[name]
        section.setdefault(last, value)
    return moved


def _pop(tree: dict[str, Any], path: list[str]) -> list[Any]:
    """The value at a path, removed, in a list; an empty list where there is none."""
    section = tree.get(path[0])
    if len(path) == 1:
        return [tree.pop(path[0])] if path[0] in tree else []
    if not isinstance(section, dict):
        return []
    found = _pop(section, path[1:])
    if found and not section:
        del tree[path[0]]
    return found
