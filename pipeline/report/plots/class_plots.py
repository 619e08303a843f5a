"""Draws plots with a row for each class."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pipeline.analysis.paired_models import ClassGap
from pipeline.report.plots.drawing import MUTED, SERIES, SIZE, STYLE, render_svg, style_axes

ROW = 0.24
"""The height of a class's row in inches."""


def draw_class_gaps(classes: Sequence[ClassGap], first: str, second: str, prefix: str) -> str:
    """Draws a bar for each class: to the right if the first model recognizes more of its videos, to the left if the second
    does."""
    with mpl.rc_context(STYLE):
        height = ROW * len(classes) + 0.85
        figure = Figure(figsize=(SIZE[0], height), facecolor="none")
        axes = figure.add_axes((0.44, 0.45 / height, 0.54, ROW * len(classes) / height), facecolor="none")
        style_axes(axes, "points", "")
        axes.grid(visible=False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for row, gap in enumerate(classes):
            axes.barh([row], [gap.gap], height=0.6, color=SERIES[0 if gap.gap >= 0 else 1])
            name = gap.name if len(gap.name) <= 24 else gap.name[:23] + "…"
            label = f"{name} ({gap.videos})"
            axes.text(
                -0.02, row, label, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9.5, parse_math=False
            )
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.yaxis.set_major_locator(NullLocator())
        widest = max([abs(gap.gap) for gap in classes] + [5.0])
        axes.set_xlim(-1.05 * widest, 1.05 * widest)
        return render_svg(figure, f"Gap of each class: {first} minus {second}, in points of top-1", prefix)
