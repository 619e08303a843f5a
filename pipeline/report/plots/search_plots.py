"""A search's history, its trials as parallel coordinates, what mattered, and the front of two objectives, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.analysis.importance import Importance, is_number, judged, searched_keys
from pipeline.analysis.study_reader import Objective, Study, Trial
from pipeline.report.plots.drawing import GLYPH_WIDTH, MUTED, RULE, SERIES, SIZE, STYLE, as_svg, plain_axes, tick_text
from pipeline.report.plots.response_plots import LOGARITHMIC
from pipeline.report.tables import best_first, number, short_key

TOP_SHARE = 0.1
"""Of the judged trials, those that stand out in parallel coordinates; at least one."""
MAX_AXES = 10
MAX_SCHEDULES = 6
WIDE = (12.2, 3.9)
"""Inches of the parallel coordinates."""
ROW = 0.36


def history_svg(study: Study, prefix: str) -> str:
    """Each trial's value in the order of their numbers, and the best so far; hollow: stopped early."""
    trials, lead = judged(study), study.objectives[0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        plain_axes(axes, "trial", lead.label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        complete = [trial for trial in trials if trial.state == "complete"]
        best = np.maximum.accumulate if lead.maximize else np.minimum.accumulate
        if complete:
            xs = [trial.number for trial in complete]
            axes.step([*xs, max(xs[-1], trials[-1].number)], [*(path := best([_value(t, lead) for t in complete])), path[-1]],
                      where="post", color=SERIES[1], linewidth=1.5)  # fmt: skip
        for trial in trials:
            face = SERIES[0] if trial.state == "complete" else "none"
            axes.plot(
                [trial.number], [_value(trial, lead)], "o", markersize=5, color=SERIES[0], markerfacecolor=face, alpha=0.85
            )
        axes.margins(x=0.05, y=0.1)
        return as_svg(figure, f"History of {study.name}", prefix)


def parallel_svg(study: Study, prefix: str) -> str:
    """A line for each judged trial through its knobs to its value; the best tenth stands out."""
    lead, keys = study.objectives[0], searched_keys(study)[:MAX_AXES]
    trials = sorted(judged(study), key=lambda trial: _value(trial, lead), reverse=not lead.maximize)
    count = max(1, round(TOP_SHARE * len(trials)))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=WIDE, facecolor="none")
        axes = figure.add_axes((0.01, 0.06, 0.98, 0.76), facecolor="none")
        scales = [_Scale([trial.params.get(key) for trial in trials], study.space.get(key)) for key in keys]
        last = _Scale([_value(trial, lead) for trial in trials], None)
        for place, trial in enumerate(trials):
            top = place >= len(trials) - count
            heights = [scale.height(trial.params.get(key)) for scale, key in zip(scales, keys, strict=True)]
            style: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.95} if top else {"linewidth": 0.9, "alpha": 0.35}
            axes.plot(
                [*heights, last.height(_value(trial, lead))], color=SERIES[1 if top else 0], zorder=2 if top else 1, **style
            )
        for place, (scale, key) in enumerate(zip([*scales, last], [*keys, lead.label], strict=True)):
            _upright(axes, place, scale, short_key(key, keys), crowded=len(keys) > 5)
        axes.set(xlim=(-0.05, len(keys) + 0.35), ylim=(-0.03, 1.03), frame_on=False)
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(NullLocator())
        return as_svg(figure, f"Trials of {study.name} as parallel coordinates", prefix)


class _Scale:
    """From a knob's values to heights in 0..1: linear, logarithmic, or evenly spaced words."""

    def __init__(self, values: Sequence[Any], space: Any) -> None:
        self.words = [] if all(map(is_number, values)) else sorted({str(value) for value in values})
        numbers = [1.0] if self.words else [float(value) for value in values]
        self.low, self.high = min(numbers), max(numbers)
        asked = isinstance(space, dict) and bool(space.get("log"))
        self.logarithmic = self.low > 0 and (asked or self.high / self.low >= LOGARITHMIC)

    def height(self, value: Any) -> float:
        """In 0..1; the middle where all values are one."""
        if self.words:
            return (self.words.index(str(value)) + 0.5) / len(self.words)
        low, high, at = (np.log(x) if self.logarithmic else x for x in (self.low, self.high, float(value)))
        return float((at - low) / (high - low)) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        """Heights and texts."""
        if self.words:
            return [(self.height(word), word) for word in self.words]
        ends = [self.low, self.high] if self.high > self.low else [self.low]
        return [(self.height(end), number(end)) for end in ends]


def _upright(axes: Axes, place: int, scale: _Scale, name: str, crowded: bool) -> None:
    first = place == 0
    axes.plot([place, place], [0, 1], color=RULE, linewidth=1.0, zorder=0)
    short = name if len(name) <= 24 else name[:23] + "…"
    above = (0, 33 if crowded and place % 2 else 18)
    axes.annotate(short, (place, 1), xytext=above, textcoords="offset points", ha="left" if first else "center",
                  va="bottom", fontsize=9.5)  # fmt: skip
    for height, text in scale.marks():
        axes.annotate(text[:16], (place, height), xytext=(4, 0 if scale.words else (-8 if height < 0.5 else 8)), va="center",
                      textcoords="offset points", fontsize=8.5, color=MUTED)  # fmt: skip


def importance_svg(found: Sequence[Importance], prefix: str) -> str:
    """A bar for each knob; the upright mark is what chance alone reaches in 95 of 100 cases."""
    keys = [one.key for one in found]
    names = [short_key(key, keys) for key in keys]
    with mpl.rc_context(STYLE):
        height = ROW * len(found) + 0.8
        figure = Figure(figsize=(SIZE[0], height), facecolor="none")
        left = min(0.45, (GLYPH_WIDTH * max(map(len, names)) + 10) / (72 * SIZE[0]))
        axes = figure.add_axes((left, 0.42 / height, 0.94 - left, ROW * len(found) / height), facecolor="none")
        plain_axes(axes, "% of the variance of ranks", "")
        axes.grid(visible=False)
        for place, one in enumerate(found):
            solid = one.share > one.chance
            axes.barh([place], [100 * one.share], height=0.5, color=SERIES[0], alpha=0.85 if solid else 0.3, linewidth=0)
            axes.plot([100 * one.chance] * 2, [place - 0.38, place + 0.38], color=MUTED, linewidth=1.2)
        axes.set_yticks(range(len(found)), names)
        for text in axes.get_yticklabels():
            text.set_parse_math(False)
        axes.set(xlim=(0, 100), ylim=(len(found) - 0.4, -0.6))
        return as_svg(figure, "Importance of the knobs", prefix)


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Trials that no other one equals or beats in both of the first two objectives, by the first one."""

    def at_least(one: Trial, other: Trial) -> bool:
        signs = [1 if objective.maximize else -1 for objective in objectives[:2]]
        pairs = [(s * _value(one, o), s * _value(other, o)) for s, o in zip(signs, objectives, strict=False)]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    kept = [trial for trial in trials if not any(at_least(other, trial) for other in trials)]
    return sorted(kept, key=lambda trial: _value(trial, objectives[0]))


def front_svg(study: Study, prefix: str) -> str:
    """The first two objectives of complete trials against each other; the front of the best is joined."""
    one, other = study.objectives[:2]
    trials = [
        t for t in study.trials if t.state == "complete" and None not in (t.values.get(one.name), t.values.get(other.name))
    ]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        plain_axes(axes, other.label, one.label)
        best = front(trials, study.objectives)
        axes.plot(
            [_value(t, other) for t in best], [_value(t, one) for t in best], "o-", color=SERIES[1], linewidth=1.4, markersize=6
        )
        rest = [trial for trial in trials if all(trial is not kept for kept in best)]
        axes.plot(
            [_value(t, other) for t in rest], [_value(t, one) for t in rest], "o", color=SERIES[0], markersize=5, alpha=0.7
        )
        axes.margins(0.08)
        return as_svg(figure, f"{one.name} against {other.name}", prefix)


def scheduled_keys(study: Study) -> list[str]:
    """Numbers that a population changed on its way, the first six."""
    parts = [part.params for trial in study.trials for part in trial.lineage]
    keys = dict.fromkeys(key for params in parts for key in params)
    varied = [key for key in keys if len({repr(params.get(key)) for params in parts}) > 1]
    return [key for key in varied if all(is_number(params.get(key)) for params in parts)][:MAX_SCHEDULES]


def schedule_svg(study: Study, key: str, prefix: str) -> str:
    """A knob over the steps of each member, from its first ancestor on."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, facecolor="none")
        axes = figure.add_axes((0.13, 0.185, 0.83, 0.71), facecolor="none")
        plain_axes(axes, "optimizer step", "")
        members = [trial for trial in best_first(study) if trial.lineage]
        end = study.steps or 2 * max(1, *(part.first for trial in members for part in trial.lineage))
        for place, trial in reversed(list(enumerate(members))):
            steps = [part.first for part in trial.lineage] + [end]
            values = [float(part.params[key]) for part in trial.lineage]
            style: dict[str, Any] = {"linewidth": 1.8, "alpha": 0.95} if place == 0 else {"linewidth": 1.0, "alpha": 0.4}
            axes.step(steps, [*values, values[-1]], where="post", color=SERIES[1 if place == 0 else 0], **style)
        space = study.space.get(key)
        if isinstance(space, dict) and space.get("log"):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0, end)
        return as_svg(figure, f"{key} over the training of the members of {study.name}", prefix)


def _value(trial: Trial, objective: Objective) -> float:
    value = trial.values.get(objective.name)
    assert value is not None, f"trial {trial.number} has no {objective.name}"
    return objective.shown(value)
