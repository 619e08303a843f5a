"""Draws accuracy against what was varied, with its intervals: curves, maps and rows of settings, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from pipeline.analysis.comparison import Difference, Group
from pipeline.analysis.response import Response
from pipeline.analysis.statistics import Estimate
from pipeline.report.parts.tables import format_number, shorten_key
from pipeline.report.plots.drawing import GLYPH_WIDTH, MUTED, RULE, SERIES, SIZE, STYLE, render_svg, style_axes
from pipeline.run_folder.contents import PREDICTORS

LOGARITHMIC = 16
"""A positive axis is logarithmic if its largest value is at least so many times its smallest."""
CELL = (1.0, 0.62)
"""The width and height of a cell of a map in inches."""
ROW = 0.44
"""The height of a row in inches."""
MAX_ROWS = 40


def draw_response_curve(
    response: Response, groups: Sequence[Group], predictor: str, baseline: Group | None, prefix: str
) -> str:
    """Draws accuracy over one key: means joined by a line, their 95 % intervals, single seeds as small rings, the baseline
    hollow."""
    order = sorted(response.coordinates, key=lambda index: response.coordinates[index][0])
    color = SERIES[PREDICTORS.index(predictor)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.11, 0.185, 0.855, 0.71), facecolor="none")
        style_axes(axes, response.keys[0], "top-1, %")
        xs = [float(response.coordinates[index][0]) for index in order]
        estimates = [_get_estimate(groups[index], predictor) for index in order]
        axes.plot(xs, [value.mean for value in estimates], color=color, linewidth=1.4, zorder=2)
        for index, x, value in zip(order, xs, estimates, strict=True):
            _draw_interval(axes, x, value, color)
            rings = [top1 for run in groups[index].runs if (top1 := run.get_top1(predictor)) is not None]
            if len(rings) > 1:
                axes.plot(
                    [x] * len(rings), rings, "o", markersize=3.5, markerfacecolor="none", markeredgecolor=color, alpha=0.55
                )
            hollow = groups[index] is baseline
            axes.plot(
                [x], [value.mean], "o", markersize=6.5, color=color, markerfacecolor="none" if hollow else color, zorder=3
            )
        _set_ticks(axes, xs)
        _set_limits(axes, [end for value in estimates for end in (value.low, value.high, value.mean) if end is not None])
        return render_svg(figure, f"Top-1 of the {predictor} over {response.keys[0]}", prefix)


def _draw_interval(axes: Axes, x: float, value: Estimate, color: str) -> None:
    if value.low is not None and value.high is not None:
        axes.plot([x, x], [max(value.low, 0), min(value.high, 100)], color=color, linewidth=1.2, alpha=0.75, zorder=1)


def _set_ticks(axes: Axes, xs: Sequence[float]) -> None:
    if min(xs) > 0 and max(xs) / min(xs) >= LOGARITHMIC:
        axes.set_xscale("log")
    ratio = np.log(xs) if axes.get_xscale() == "log" else np.array(xs)
    span, shown = float(ratio.max() - ratio.min()), [0]
    for index in range(1, len(xs)):
        if ratio[index] - ratio[shown[-1]] >= 0.09 * span:
            shown.append(index)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator([xs[index] for index in shown]))
    axes.set_xticks([xs[index] for index in shown], [format_number(xs[index]) for index in shown])
    axes.margins(x=0.05)


def _set_limits(axes: Axes, values: Sequence[float]) -> None:
    """Sets y limits that hold all values, at least 10 points apart and at most a marker beyond 0 and 100."""
    low, high = max(min(values), 0), min(max(values), 100)
    missing = max(0.0, 10 - (high - low)) / 2
    axes.set_ylim(max(low - missing - 1, -1), min(high + missing + 1, 101))


def draw_response_map(response: Response, groups: Sequence[Group], predictor: str, prefix: str) -> str:
    """Draws a cell for each pair of values, with mean and standard deviation; the higher the mean in this map, the stronger
    the color."""
    xs, ys = response.list_values(1), response.list_values(0)
    means = {index: _get_estimate(groups[index], predictor) for index in response.coordinates}
    low, high = (pick(value.mean for value in means.values()) for pick in (min, max))
    left, top = 0.35 + GLYPH_WIDTH * max(len(format_number(y)) for y in ys) / 72, 0.5
    size = (left + CELL[0] * len(xs) + 0.03, top + CELL[1] * len(ys) + 0.03)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, facecolor="none")
        axes = figure.add_axes((left / size[0], 0.03 / size[1], 1 - (left + 0.03) / size[0], 1 - (top + 0.03) / size[1]))
        for index, (y, x) in response.coordinates.items():
            _draw_cell(axes, xs.index(x), ys.index(y), means[index], (means[index].mean - low) / max(high - low, 1e-9))
        axes.set(xlim=(0, len(xs)), ylim=(len(ys), 0), frame_on=False)
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xticks(np.arange(len(xs)) + 0.5, [format_number(x) for x in xs])
        axes.set_yticks(np.arange(len(ys)) + 0.5, [format_number(y) for y in ys])
        axes.tick_params(length=0)
        axes.set_xlabel(shorten_key(response.keys[1], response.keys), loc="left")
        axes.set_ylabel(shorten_key(response.keys[0], response.keys), loc="top")
        return render_svg(figure, f"Top-1 of the {predictor} over {' and '.join(response.keys)}", prefix)


def _draw_cell(axes: Axes, column: int, row: int, value: Estimate, share: float) -> None:
    axes.add_patch(
        Rectangle((column + 0.02, row + 0.03), 0.96, 0.94, facecolor=SERIES[0], alpha=0.06 + 0.5 * share, linewidth=0)
    )
    spread = f"n = {value.seeds}" if value.sd is None else f"± {value.sd:.1f} ({value.seeds})"
    axes.text(column + 0.5, row + 0.4, f"{value.mean:.1f}", ha="center", va="center")
    axes.text(column + 0.5, row + 0.73, spread, ha="center", va="center", fontsize=8.5)


def draw_response_rows(groups: Sequence[Group], differences: Sequence[Difference], predictor: str, prefix: str) -> str:
    """Draws a row for each setting: its difference from the baseline with its interval or, if nothing is compared, its
    accuracy."""
    rows: list[tuple[str, Estimate, list[float]]] = [
        (one.group.label, one.estimates[predictor], list(one.compute_by_seed(predictor).values())) for one in differences
    ] or [
        (group.label, value, [top1 for run in group.runs if (top1 := run.get_top1(predictor)) is not None])
        for group in groups if (value := group.get_top1(predictor))
    ]  # fmt: skip
    rows = rows[:MAX_ROWS]
    bases = list(dict.fromkeys(one.baseline.label for one in differences))
    with mpl.rc_context(STYLE):
        height = ROW * len(rows) + 0.75
        figure = Figure(figsize=(SIZE[0], height), facecolor="none")
        axes = figure.add_axes((0.03, 0.42 / height, 0.94, ROW * len(rows) / height), facecolor="none")
        style_axes(
            axes,
            "points" if differences else "top-1, %",
            f"against {bases[0] if len(bases) == 1 else 'its baseline'}" if differences else "",
        )
        axes.grid(visible=False)
        for row, (label, value, seeds) in enumerate(rows):
            _draw_row(axes, row, label, value, seeds)
        if differences:
            for row in range(len(rows)):  # below the label of the row
                axes.vlines(0, row - 0.12, row + 0.42, color=MUTED, linewidth=0.8, zorder=0)
        axes.set_ylim(len(rows) - 0.55, -0.65)
        axes.yaxis.set_major_locator(NullLocator())
        zero = [0.0] if differences else []
        known = [end for _, value, seeds in rows for end in (value.low, value.high, value.mean, *seeds) if end is not None]
        ends = [*zero, *known]
        span = max(max(ends) - min(ends), 4.0)
        axes.set_xlim(min(ends) - 0.06 * span, max(ends) + 0.06 * span)
        return render_svg(figure, f"{'Differences' if differences else 'Accuracy'} of the {predictor}", prefix)


def _draw_row(axes: Axes, row: int, label: str, value: Estimate, seeds: Sequence[float]) -> None:
    axes.axhline(row + 0.42, color=RULE, linewidth=0.5, zorder=0)
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=SERIES[0], linewidth=1.4)
    if len(seeds) > 1:
        axes.plot(seeds, [row] * len(seeds), "o", markersize=3.5, markerfacecolor="none", markeredgecolor=SERIES[0], alpha=0.6)
    axes.plot([value.mean], [row], "o", markersize=6, color=SERIES[0])
    short = label if len(label) <= 52 else label[:51] + "…"
    transform: Any = axes.get_yaxis_transform()
    style: Any = {"transform": transform, "ha": "left", "va": "bottom", "fontsize": 9.5, "parse_math": False}
    axes.text(0.0, row - 0.16, short, **style)


def _get_estimate(group: Group, predictor: str) -> Estimate:
    estimate = group.get_top1(predictor)
    assert estimate is not None, f"{group.label} is not evaluated"
    return estimate
