"""Drawings with a row for each class."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.analysis.paired_models import ClassGap
from pipeline.report.plots.drawing import MUTED, SERIES, SIZE, STYLE, as_svg, plain_axes

ROW = 0.24
"""Inches of a class."""


def gap_svg(classes: Sequence[ClassGap], first: str, second: str, prefix: str) -> str:
    """A bar for each class: to the right where the first model recognizes more of its videos, to the left where the second."""
    with mpl.rc_context(STYLE):
        height = ROW * len(classes) + 0.85
        figure = Figure(figsize=(SIZE[0], height), facecolor="none")
        axes = figure.add_axes((0.44, 0.45 / height, 0.54, ROW * len(classes) / height), facecolor="none")
        plain_axes(axes, "points", "")
        axes.grid(visible=False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for row, one in enumerate(classes):
            axes.barh([row], [one.gap], height=0.6, color=SERIES[0 if one.gap >= 0 else 1])
            name = one.name if len(one.name) <= 24 else one.name[:23] + "…"
            label = f"{name} ({one.videos})"
            axes.text(
                -0.02, row, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9.5, parse_math=False
            )
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.yaxis.set_major_locator(NullLocator())
        widest = max([abs(one.gap) for one in classes] + [5.0])
        axes.set_xlim(-1.05 * widest, 1.05 * widest)
        return as_svg(figure, f"Gap of each class: {first} minus {second}, in points of top-1", prefix)
