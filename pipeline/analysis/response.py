"""Decides how to plot accuracy against what was varied: a curve over one number, a map over two, else a row for each
setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.analysis.comparison import BASELINE, Group, find_varied_keys, read_setting

FEWEST = 2
"""A key needs at least so many values to become an axis."""


@dataclass(frozen=True)
class Response:
    """The kind of plot that fits the settings, and its axes."""

    kind: Literal["curve", "map", "rows"]
    keys: tuple[str, ...]
    """The configuration keys of the axes: one for a curve, two for a map, none for rows."""
    coordinates: Mapping[int, tuple[Any, ...]]
    """The values of the keys, by the index of the group. Groups that lack the keys (the supervised baseline) are left out."""

    def list_values(self, axis: int) -> list[Any]:
        """Lists the distinct values of an axis, ascending."""
        return sorted({values[axis] for values in self.coordinates.values()})


def choose_response(groups: Sequence[Group]) -> Response | None:
    """Chooses the plot for the evaluated settings; None if there are fewer than two.

    A map needs both keys crossed: more cells than one row or one column has.
    """
    evaluated = [index for index, group in enumerate(groups) if group.get_top1("mean")]
    varied = [index for index in evaluated if groups[index].method != BASELINE]
    keys = find_varied_keys([groups[index] for index in varied])
    values = {index: tuple(read_setting(groups[index].runs[0]).get(key) for key in keys) for index in varied}
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for row in values.values() for value in row)
    one_method = len({groups[index].method for index in varied}) == 1
    if one_method and numbers and len(keys) in (1, 2) and len(set(values.values())) == len(values):
        response = Response("curve" if len(keys) == 1 else "map", tuple(keys), values)
        sizes = [len(response.list_values(axis)) for axis in range(len(keys))]
        if min(sizes) >= FEWEST and (len(keys) == 1 or len(values) > max(sizes)):
            return response
    return Response("rows", (), {index: () for index in evaluated}) if len(evaluated) > 1 else None
