"""Names that knobs had before version 1.0, and knobs that were removed: refused in users' files, understood in recorded ones.

The fingerprint of a run is a hash of its knobs under the names of November 2026, so that runs which were recorded then can be
continued. This file, and what calls it, will be removed in 1.0.
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
"""The current dotted key, by the earlier one."""
_LIMITS = ("least_label_accuracy", "least_mask_rate", "largest_contrast_share", "least_alignment", "largest_class_share",
           "largest_loss")  # fmt: skip
REMOVED: dict[str, str] = dict.fromkeys(
    (f"monitors.{limit}" for limit in _LIMITS),
    "is no longer a knob, because no result depends on it and nobody changed it: leave it out",
)
"""What became of a knob, by its dotted key. None of these is in a fingerprint."""


def translate_old_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a nested mapping of knobs that a run recorded to the current names."""
    kept = _move(tree, RENAMED)
    for key in REMOVED:
        _pop(kept, key.split("."))
    return kept


def translate_to_old_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a nested mapping of all knobs to the names of November 2026."""
    return _move(tree, {new: old for old, new in RENAMED.items()})


def translate_old_keys(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the dotted keys that a study recorded to the current names."""
    return {RENAMED.get(key, key): value for key, value in dict(flat).items()}


def explain_renamed(key: str, value: Any = None) -> list[str]:
    """Returns sentences that name the current keys if ``key`` is an earlier one, or a section whose keys in ``value`` are."""
    if key in RENAMED:
        return [f"{key} is now {RENAMED[key]}"]
    if key in REMOVED:
        return [f"{key} {REMOVED[key]}"]
    below = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else []
    known = [old for old in RENAMED if old.startswith(f"{key}.")]
    return [f"{old} is now {RENAMED[old]}" for old in known if not below or old in below]


def _move(tree: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Moves the values of some dotted keys of ``tree`` to other keys, and removes sections that are then empty."""
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
    """Removes the value at a path and returns it in a list, which is empty if there is none."""
    section = tree.get(path[0])
    if len(path) == 1:
        return [tree.pop(path[0])] if path[0] in tree else []
    if not isinstance(section, dict):
        return []
    popped = _pop(section, path[1:])
    if popped and not section:
        del tree[path[0]]
    return popped
