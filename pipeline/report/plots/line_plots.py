"""Draws the report's line plots and confusion matrices as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.analysis.curves import Curve, Panel
from pipeline.report.plots.drawing import (
    GLYPH_WIDTH,
    LINE_HEIGHT,
    MUTED,
    NUM_COLORS,
    RULE,
    SERIES,
    SIZE,
    STYLE,
    render_svg,
    spread_boxes,
    style_axes,
)

LARGEST_LABELED = 30
"""With up to so many classes, a confusion matrix names its rows and shows its counts."""


def draw_panel(panel: Panel, lines: Sequence[Curve], names: Sequence[str], last_step: float, prefix: str) -> str:
    """Draws one panel. The lines are labeled at their right ends if there is room; else the page's legend has to do.

    Args:
        panel: The title (for screen readers), the unit and the limits.
        lines: The lines to draw; at least one.
        names: The name of each group; it is drawn only if there are several.
        last_step: The right end of the x axis, the same for all panels, unless the panel has limits of its own.
        prefix: A prefix that is unique in the page and begins every id in the SVG.
    """
    assert lines, f"{panel.title}: nothing to draw"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        labels = [_name_curve(curve, names) for curve in lines]
        room = 0.71 * 72 * SIZE[1]
        ambiguous = len(set(labels)) < len(labels)  # long names that differ only where they are cut
        if ambiguous or sum(LINE_HEIGHT * (1 + label.count("\n")) + 4 for label in labels) > room:
            labels = [""] * len(labels)
        longest = max(len(part) for label in labels for part in label.split("\n"))
        margin = min(max(8 + GLYPH_WIDTH * longest, 20) / (72 * SIZE[0]), 0.45)  # at least half of the last tick's text
        axes = figure.add_axes((0.11, 0.185, 0.88 - margin, 0.71), facecolor="none")
        for curve in lines:
            _draw_curve(axes, curve, several=len(names) > 1)
        _style_panel(axes, panel, last_step)
        _draw_end_labels(axes, labels, lines, several=len(names) > 1)
        return render_svg(figure, panel.title, prefix)


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], title: str, prefix: str) -> str:
    """Draws a confusion matrix [K, K] of counts, row = true class; the opacity of a cell is its share of the true class.

    With up to 30 classes the counts and class names are shown.
    """
    num_classes, named = len(classes), len(classes) <= LARGEST_LABELED
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(0.4 * num_classes, 1.8) if named else 5.0
    room = 0.46 + (GLYPH_WIDTH * max(map(len, classes)) / 72 if named else 0)
    with mpl.rc_context(STYLE):
        full_side = side + room + 0.05
        figure = Figure(figsize=(full_side, full_side), facecolor="none")
        axes = figure.add_axes((room / full_side, 0.05 / full_side, side / full_side, side / full_side))
        opacity = np.where(counts > 0, 0.08 + 0.6 * shares, 0)  # ink stays readable on the strongest cell
        (_draw_cells if named else _draw_image)(axes, counts, opacity)
        _style_confusion_axes(axes, classes if named else [])
        axes.set(xlim=(0, num_classes), ylim=(num_classes, 0))
        return render_svg(figure, title, prefix)


def _draw_cells(axes: Axes, counts: NDArray[np.int64], opacity: NDArray[np.float64]) -> None:
    for row, column in np.argwhere(counts > 0):
        alpha = float(opacity[row, column])
        axes.add_patch(Rectangle((column, row), 1, 1, facecolor=SERIES[0], alpha=alpha, linewidth=0))
        axes.text(column + 0.5, row + 0.52, f"{counts[row, column]}", ha="center", va="center")


def _draw_image(axes: Axes, counts: NDArray[np.int64], opacity: NDArray[np.float64]) -> None:
    """Draws 100,000 cells as one image, in a blue between those of the light and the dark page."""
    num_classes = len(counts)
    pixels = np.zeros((num_classes, num_classes, 4))
    pixels[...] = (*mpl.colors.to_rgb("#4a8ac9"), 0)
    pixels[..., 3] = np.where(counts > 0, np.minimum(opacity * 1.4, 1), 0)
    axes.imshow(pixels, extent=(0, num_classes, num_classes, 0), interpolation="none", aspect="auto")


def _draw_curve(axes: Axes, curve: Curve, several: bool) -> None:
    color = _choose_color(curve, several)
    style: tuple[float, tuple[float, ...]] | str = (0, (4, 2)) if several and curve.dashed else "-"
    if len(curve.seeds) > 1:
        for points in curve.seeds:
            axes.plot(points[:, 0], points[:, 1], color=color, linewidth=0.8, alpha=0.3, linestyle=style)
    marker = "o" if len(curve.mean) == 1 else ""
    axes.plot(curve.mean[:, 0], curve.mean[:, 1], color=color, linewidth=1.7, linestyle=style, marker=marker)


def _choose_color(curve: Curve, several: bool) -> str:
    """Returns the group's color or, if there is only one group, a color for each of the two roles."""
    return SERIES[(curve.group if several else int(curve.dashed)) % NUM_COLORS]


def _name_curve(curve: Curve, names: Sequence[str]) -> str:
    """Returns the role of the line, after the group's name if there are several groups."""
    if len(names) == 1:
        return curve.role
    short = [name if len(name) <= 22 else name[:21] + "…" for name in names]
    return "\n".join(part for part in (short[curve.group], curve.role.replace("\n", " ")) if part)


def _style_panel(axes: Axes, panel: Panel, last_step: float) -> None:
    style_axes(axes, panel.x_label, panel.unit)
    axes.set_xlim(*(panel.x_limits or (0, last_step)))
    low, high = axes.get_ylim()
    axes.set_ylim(*(given if given is not None else seen for given, seen in zip(panel.limits, (low, high), strict=True)))
    if panel.x_limits is None:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
    if panel.mark is not None:
        axes.axvline(panel.mark, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)


def _draw_end_labels(axes: Axes, labels: Sequence[str], lines: Sequence[Curve], several: bool) -> None:
    """Draws each label beside the last value of its line; labels that would overlap are moved apart."""
    box = axes.get_window_extent()
    dots_per_point = axes.figure.dpi / 72
    heights = [(LINE_HEIGHT * (1 + label.count("\n")) + 4) * dots_per_point for label in labels]
    wanted = [float(axes.transData.transform(_find_last_point(curve))[1]) for curve in lines]
    for curve, label, y in zip(lines, labels, spread_boxes(wanted, heights, box.y0, box.y1), strict=True):
        x_share, y_share = axes.transAxes.inverted().transform((box.x1 + 5 * dots_per_point, y))
        style: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "ha": "left", "linespacing": 1.1}
        axes.text(x_share, y_share, label, color=_choose_color(curve, several), parse_math=False, **style)


def _find_last_point(curve: Curve) -> NDArray[np.float64]:
    finite = curve.mean[np.isfinite(curve.mean[:, 1])]
    last: NDArray[np.float64] = finite[-1]
    return last


def _style_confusion_axes(axes: Axes, classes: Sequence[str]) -> None:
    axes.set_ylabel("true class", loc="top")
    axes.set_xlabel("predicted class", loc="left")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    centers = np.arange(len(classes)) + 0.5
    axes.set_xticks(centers, classes, rotation=90)
    axes.set_yticks(centers, classes)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a class may be named $
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=RULE, linewidth=1))
