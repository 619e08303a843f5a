"""Draws reliability curves: how often predictions of each confidence are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.plots.drawing import MUTED, SERIES, SIZE, STYLE, render_svg, style_axes

LARGEST_DOT = 130
"""The area, in points squared, of the dot of a bin that holds all videos."""


def draw_reliability(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], name: str, prefix: str) -> str:
    """Draws accuracy over confidence, both in percent; on the diagonal they are equal.

    ``before`` and ``after`` are the bins of ``calibration.compute_reliability`` without and with a temperature, and may be
    empty. The larger a dot, the more videos its bin holds.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.11, 0.185, 0.85, 0.71), facecolor="none")
        style_axes(axes, "confidence, %", "% right")
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
        _draw_bins(axes, before, SERIES[0], "-")
        _draw_bins(axes, after, SERIES[1], (0, (4, 2)))
        axes.set(xlim=(0, 103), ylim=(0, 103))
        return render_svg(figure, f"Reliability of {name}", prefix)


def _draw_bins(axes: Axes, bins: Sequence[Mapping[str, Any]], color: str, style: Any) -> None:
    filled = [one for one in bins if one["videos"]]
    total = sum(one["videos"] for one in filled)
    x, y = ([100 * one[key] for one in filled] for key in ("confidence", "accuracy"))
    axes.plot(x, y, color=color, linewidth=1.4, linestyle=style)
    sizes = [max(LARGEST_DOT * one["videos"] / total, 6.0) for one in filled]
    axes.scatter(x, y, s=sizes, color=color, linewidth=0, clip_on=False)
