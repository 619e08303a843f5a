"""Renders plots as inline SVG whose colors are the page's CSS variables, so that one drawing fits light, dark and printed
pages.

Matplotlib draws with placeholder colors, and ``render_svg`` replaces these by ``var(--...)``. Text remains text. Identifiers
are salted and prefixed, so the same data gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator


@dataclass(frozen=True)
class Drawing:
    """A titled SVG."""

    title: str
    svg: str


NUM_COLORS = 8
SERIES = [f"#0000{index + 16:02x}" for index in range(NUM_COLORS)]
TEXT, MUTED, RULE = "#010101", "#020202", "#030303"
VARIABLES = {TEXT: "--ink", MUTED: "--muted", RULE: "--rule"} | {color: f"--series-{i}" for i, color in enumerate(SERIES)}
SIZE = (4.8, 2.9)
"""The width and height of a panel in inches. The page shows a point as about a pixel, even on a phone 390 pixels wide."""
FONT_SIZE = 11.0
LINE_HEIGHT = 1.2 * FONT_SIZE
GLYPH_WIDTH = 0.55 * FONT_SIZE
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "actnetformer", "font.family": "sans-serif", "font.size": FONT_SIZE,
    "text.color": TEXT, "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "xtick.major.size": 3.0,
    "ytick.major.size": 0.0, "xtick.major.width": 0.8, "axes.linewidth": 0.8, "lines.solid_capstyle": "round",
    "axes.unicode_minus": True, "path.simplify_threshold": 0.3,
}  # fmt: skip


def render_svg(figure: Figure, title: str, prefix: str) -> str:
    """Renders the figure as an SVG element of the page; ``title`` is for screen readers, and ``prefix`` begins every id."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(title)} style="max-width: {width * 1.25:.0f}px" ', 1)


def style_axes(axes: Axes, x_label: str, unit: str) -> None:
    """Gives axes a plain frame: few ticks, grid lines for the y values, the unit above, and the x label at the right end."""
    axes.set_xlabel(x_label, loc="right", labelpad=2)
    axes.text(0, 1.03, unit, transform=axes.transAxes, ha="left", va="bottom", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def format_tick(value: float) -> str:
    """Formats a number as ``0.025`` or ``1,500``, with a true minus sign."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")


def spread_boxes(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Moves boxes from their wanted centers only as far as needed so that they do not overlap and, if possible, stay in
    low..high.

    ``heights`` are the boxes' heights; returns their centers, in the given order.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    centers = list(wanted)
    edge = low
    for index in order:
        centers[index] = max(wanted[index], edge + heights[index] / 2)
        edge = centers[index] + heights[index] / 2
    edge = max(high, low + sum(heights))
    for index in reversed(order):
        centers[index] = min(centers[index], edge - heights[index] / 2)
        edge = centers[index] - heights[index] / 2
    return centers
