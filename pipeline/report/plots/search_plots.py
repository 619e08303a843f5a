"""Draws a search as inline SVG: history, parallel coordinates, importances, the Pareto front and a population's schedules.

These are not the plots of ``optuna.visualization``: those need Optuna and its study, while a report is made from the files of a
study folder, also where Optuna is not installed, and they know neither a population's schedules nor the ranges of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.analysis.importance import Importance, find_searched_keys, is_number, select_judged_trials
from pipeline.analysis.records.study_record import Objective, StudyRecord, TrialRecord
from pipeline.report.parts.tables import format_number, shorten_key, sort_best_first
from pipeline.report.plots.drawing import GLYPH_WIDTH, MUTED, RULE, SERIES, SIZE, STYLE, format_tick, render_svg, style_axes
from pipeline.report.plots.response_plots import LOGARITHMIC

TOP_SHARE = 0.1
"""The share of the judged trials that stand out in parallel coordinates; at least one does."""
MAX_AXES = 10
MAX_SCHEDULES = 6
WIDE = (12.2, 3.9)
"""The width and height of the parallel coordinates in inches."""
ROW = 0.36


def draw_history(study: StudyRecord, prefix: str) -> str:
    """Draws each trial's value in the order of their numbers (hollow if it was stopped early), and the best value so far."""
    trials, lead = select_judged_trials(study), study.objectives[0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        style_axes(axes, "trial", lead.label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        complete = [trial for trial in trials if trial.state == "complete"]
        best = np.maximum.accumulate if lead.maximize else np.minimum.accumulate
        if complete:
            numbers = [trial.number for trial in complete]
            best_so_far = best([_get_value(trial, lead) for trial in complete])
            xs, ys = [*numbers, max(numbers[-1], trials[-1].number)], [*best_so_far, best_so_far[-1]]
            axes.step(xs, ys, where="post", color=SERIES[1], linewidth=1.5)
        for trial in trials:
            face = SERIES[0] if trial.state == "complete" else "none"
            axes.plot(
                [trial.number], [_get_value(trial, lead)], "o", markersize=5, color=SERIES[0], markerfacecolor=face, alpha=0.85
            )
        axes.margins(x=0.05, y=0.1)
        return render_svg(figure, f"History of {study.name}", prefix)


def draw_parallel_coordinates(study: StudyRecord, prefix: str) -> str:
    """Draws a line for each judged trial through its knobs to its value; the best tenth stands out."""
    lead, keys = study.objectives[0], find_searched_keys(study)[:MAX_AXES]
    trials = sort_worst_first(study)
    count = max(1, round(TOP_SHARE * len(trials)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=WIDE, facecolor="none")
        axes = figure.add_axes((0.01, 0.06, 0.98, 0.76), facecolor="none")
        scales = [_Scale([trial.params.get(key) for trial in trials], study.space.get(key)) for key in keys]
        last = _Scale([_get_value(trial, lead) for trial in trials], None)
        for index, trial in enumerate(trials):
            top = index >= len(trials) - count
            heights = [scale.compute_height(trial.params.get(key)) for scale, key in zip(scales, keys, strict=True)]
            style: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.95} if top else {"linewidth": 0.9, "alpha": 0.35}
            heights.append(last.compute_height(_get_value(trial, lead)))
            axes.plot(heights, color=SERIES[1 if top else 0], zorder=2 if top else 1, **style)
        for index, (scale, key) in enumerate(zip([*scales, last], [*keys, lead.label], strict=True)):
            _draw_axis(axes, index, scale, shorten_key(key, keys), crowded=len(keys) > 5)
        axes.set(xlim=(-0.05, len(keys) + 0.35), ylim=(-0.03, 1.03), frame_on=False)
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(NullLocator())
        return render_svg(figure, f"Trials of {study.name} as parallel coordinates", prefix)


def sort_worst_first(study: StudyRecord) -> list[TrialRecord]:
    """Sorts the judged trials by the first objective; of equal ones the first is last, as the best that the page names."""
    lead = study.objectives[0]
    return sorted(select_judged_trials(study), key=lambda trial: _get_value(trial, lead), reverse=lead.maximize)[::-1]


class _Scale:
    """Maps a knob's values to heights in 0..1: linearly, logarithmically, or as evenly spaced words."""

    def __init__(self, values: Sequence[Any], space: Any) -> None:
        self.words = [] if all(map(is_number, values)) else sorted({str(value) for value in values})
        numbers = [1.0] if self.words else [float(value) for value in values]
        self.low, self.high = min(numbers), max(numbers)
        asked = isinstance(space, dict) and bool(space.get("log"))
        self.logarithmic = self.low > 0 and (asked or self.high / self.low >= LOGARITHMIC)

    def compute_height(self, value: Any) -> float:
        """Returns the height in 0..1 of a value; the middle if all values are equal."""
        if self.words:
            return (self.words.index(str(value)) + 0.5) / len(self.words)
        low, high, at = (np.log(x) if self.logarithmic else x for x in (self.low, self.high, float(value)))
        return float((at - low) / (high - low)) if high > low else 0.5

    def list_marks(self) -> list[tuple[float, str]]:
        """Lists the heights and texts of the axis's marks."""
        if self.words:
            return [(self.compute_height(word), word) for word in self.words]
        ends = [self.low, self.high] if self.high > self.low else [self.low]
        return [(self.compute_height(end), format_number(end)) for end in ends]


def _draw_axis(axes: Axes, index: int, scale: _Scale, name: str, crowded: bool) -> None:
    first = index == 0
    axes.plot([index, index], [0, 1], color=RULE, linewidth=1.0, zorder=0)
    short = name if len(name) <= 24 else name[:23] + "…"
    above = (0, 33 if crowded and index % 2 else 18)
    axes.annotate(short, (index, 1), xytext=above, textcoords="offset points", ha="left" if first else "center",
                  va="bottom", fontsize=9.5)  # fmt: skip
    for height, text in scale.list_marks():
        axes.annotate(text[:16], (index, height), xytext=(4, 0 if scale.words else (-8 if height < 0.5 else 8)), va="center",
                      textcoords="offset points", fontsize=8.5, color=MUTED)  # fmt: skip


def draw_importances(importances: Sequence[Importance], prefix: str) -> str:
    """Draws a bar for each knob; the vertical mark is what chance alone stays below in 95 of 100 cases."""
    keys = [importance.key for importance in importances]
    names = [shorten_key(key, keys) for key in keys]
    with mpl.rc_context(STYLE):
        height = ROW * len(importances) + 0.8
        figure = Figure(figsize=(SIZE[0], height), facecolor="none")
        left = min(0.45, (GLYPH_WIDTH * max(map(len, names)) + 10) / (72 * SIZE[0]))
        axes = figure.add_axes((left, 0.42 / height, 0.94 - left, ROW * len(importances) / height), facecolor="none")
        style_axes(axes, "% of the variance of ranks", "")
        axes.grid(visible=False)
        for row, importance in enumerate(importances):
            solid = importance.share > importance.chance
            axes.barh([row], [100 * importance.share], height=0.5, color=SERIES[0], alpha=0.85 if solid else 0.3, linewidth=0)
            axes.plot([100 * importance.chance] * 2, [row - 0.38, row + 0.38], color=MUTED, linewidth=1.2)
        axes.set_yticks(range(len(importances)), names)
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
        axes.set(xlim=(0, 100), ylim=(len(importances) - 0.4, -0.6))
        return render_svg(figure, "Importance of the knobs", prefix)


def find_pareto_front(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Finds the trials that no other trial beats in one of the first two objectives and equals or beats in the other.

    They are sorted by the first objective.
    """

    def dominates(one: TrialRecord, other: TrialRecord) -> bool:
        signs = [1 if objective.maximize else -1 for objective in objectives[:2]]
        pairs = [(s * _get_value(one, o), s * _get_value(other, o)) for s, o in zip(signs, objectives, strict=False)]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    front = [trial for trial in trials if not any(dominates(other, trial) for other in trials)]
    return sorted(front, key=lambda trial: _get_value(trial, objectives[0]))


def draw_pareto_front(study: StudyRecord, prefix: str) -> str:
    """Draws the complete trials by their first two objectives; the trials of the Pareto front are joined by a line."""
    first, second = study.objectives[:2]
    trials = [
        t for t in study.trials if t.state == "complete" and None not in (t.values.get(first.name), t.values.get(second.name))
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        style_axes(axes, second.label, first.label)
        best = find_pareto_front(trials, study.objectives)
        xs, ys = ([_get_value(trial, objective) for trial in best] for objective in (second, first))
        axes.plot(xs, ys, "o-", color=SERIES[1], linewidth=1.4, markersize=6)
        rest = [trial for trial in trials if all(trial is not other for other in best)]
        xs, ys = ([_get_value(trial, objective) for trial in rest] for objective in (second, first))
        axes.plot(xs, ys, "o", color=SERIES[0], markersize=5, alpha=0.7)
        axes.margins(0.08)
        return render_svg(figure, f"{first.name} against {second.name}", prefix)


def find_scheduled_keys(study: StudyRecord) -> list[str]:
    """Finds the first six numeric keys that a population changed during training."""
    parts = [part.params for trial in study.trials for part in trial.lineage]
    keys = dict.fromkeys(key for params in parts for key in params)
    varied = [key for key in keys if len({repr(params.get(key)) for params in parts}) > 1]
    return [key for key in varied if all(is_number(params.get(key)) for params in parts)][:MAX_SCHEDULES]


def draw_schedule(study: StudyRecord, key: str, prefix: str) -> str:
    """Draws the value of a knob over the steps of each member, from the member's first ancestor on."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        style_axes(axes, "optimizer step", "")
        members = [trial for trial in sort_best_first(study) if trial.lineage]
        end = study.steps or 2 * max(1, *(part.first for trial in members for part in trial.lineage))
        for rank, trial in reversed(list(enumerate(members))):
            steps = [part.first for part in trial.lineage] + [end]
            values = [float(part.params[key]) for part in trial.lineage]
            style: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.95} if rank == 0 else {"linewidth": 1.0, "alpha": 0.4}
            axes.step(steps, [*values, values[-1]], where="post", color=SERIES[1 if rank == 0 else 0], **style)
        space = study.space.get(key)
        if isinstance(space, dict) and space.get("log"):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0, end)
        return render_svg(figure, f"{key} over the training of the members of {study.name}", prefix)


def _get_value(trial: TrialRecord, objective: Objective) -> float:
    value = trial.values.get(objective.name)
    assert value is not None, f"trial {trial.number} has no {objective.name}"
    return objective.convert_to_shown_unit(value)
