"""How the accuracy answers to what was varied: a curve over one number, a map over two, else a row for each setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.analysis.comparison import BASELINE, Group, setting, varied_keys

FEWEST = 2
"""Values of a key that make an axis."""


@dataclass(frozen=True)
class Response:
    """What kind of picture fits the settings, and its axes."""

    kind: Literal["curve", "map", "rows"]
    keys: tuple[str, ...]
    """One for a curve, two for a map."""
    places: Mapping[int, tuple[Any, ...]]
    """Index of the group -> its value of each key. Groups without one (the supervised baseline) are left out."""

    def values(self, axis: int) -> list[Any]:
        """Those of an axis, ascending."""
        return sorted({place[axis] for place in self.places.values()})


def response(groups: Sequence[Group]) -> Response | None:
    """The picture for evaluated settings; None for fewer than two. A map needs both keys crossed: more than a line of cells."""
    judged = [index for index, group in enumerate(groups) if group.top1("mean")]
    varied = [index for index in judged if groups[index].method != BASELINE]
    keys = varied_keys([groups[index] for index in varied])
    values = {index: tuple(setting(groups[index].runs[0]).get(key) for key in keys) for index in varied}
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) for place in values.values() for value in place
    )
    one_method = len({groups[index].method for index in varied}) == 1
    if one_method and numbers and len(keys) in (1, 2) and len(set(values.values())) == len(values):
        found = Response("curve" if len(keys) == 1 else "map", tuple(keys), values)
        sizes = [len(found.values(axis)) for axis in range(len(keys))]
        if min(sizes) >= FEWEST and (len(keys) == 1 or len(values) > max(sizes)):
            return found
    return Response("rows", (), {index: () for index in judged}) if len(judged) > 1 else None
