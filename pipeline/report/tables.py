"""The tables of a report as plain cells, each with what it is sorted by: settings, differences, runs, trials.

``formats`` writes them for the terminal, Markdown, CSV and LaTeX; the page's template has them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.comparison import Difference, Group
from pipeline.analysis.run_description import labels_text, steps_text
from pipeline.analysis.run_reader import VIEWS, Run
from pipeline.analysis.statistics import Estimate, p_text
from pipeline.analysis.study_reader import Objective, Study, Trial
from pipeline.config import short_name

DASH = "–"
MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """What is shown, and what it is sorted by: a number, a text, or None for what is unknown, which comes last."""

    text: str
    sort: float | str | None = None
    href: str = ""
    """A folder relative to the page."""


@dataclass(frozen=True)
class Table:
    """Columns and rows. The first column names the row."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Whether a column is set to the right."""
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    """What the numbers are, one or two sentences."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) == len(self.numeric) for row in self.rows), "rows and columns differ"


def settings_table(groups: Sequence[Group], found: Sequence[Difference]) -> Table:
    """A row for each setting: how many seeds, mean +- sd of each view, the interval of their mean, and the verdict."""
    columns = ["setting", "n", *(f"{view} %" for view in VIEWS), "95 % interval", "difference", "p (Holm)", "verdict", "hours"]
    numeric = [False, True, *(True for _ in VIEWS), True, True, True, False, True]
    rows = []
    for group in groups:
        difference = next((one for one in found if one.group is group), None)
        hours = group_hours(group)
        rows.append((
            Cell(group.label, group.label), Cell(str(_evaluated(group)), _evaluated(group)),
            *(with_sd(group.top1(view)) for view in VIEWS), interval(group.top1("mean")),
            *_against(group, difference, found), Cell(DASH if hours is None else hours_text(hours), hours),
        ))  # fmt: skip
    return Table(tuple(columns), tuple(numeric), tuple(rows), caption(groups, found))


def _against(group: Group, difference: Difference | None, found: Sequence[Difference]) -> tuple[Cell, Cell, Cell]:
    if difference is None:
        word = "baseline" if any(one.baseline is group for one in found) else DASH
        return Cell(DASH), Cell(DASH), Cell(word, "")
    points, p = difference.estimates["mean"], difference.adjusted["mean"]
    return (
        Cell(signed(points.mean), points.mean),
        Cell(p_words(p), p),
        Cell(difference.verdict("mean"), difference.verdict("mean")),
    )


def caption(groups: Sequence[Group], found: Sequence[Difference]) -> str:
    """What the numbers of ``settings_table`` are."""
    videos = sorted({run.evaluation["videos"] for group in groups for run in group.runs if run.evaluation.get("videos")})
    count = f" on {videos[0]:,} videos" if len(videos) == 1 else ""
    over = _joined({value.over for group in groups if (value := group.top1("mean"))})
    text = f"Top-1{count}: mean ± sd (n) over seeds; “mean” scores a video by the mean of both students’ softmax."
    if over and over != "nothing":
        text += f" Interval of the mean column, over {over}."
    if found:
        base = _joined({one.baseline.label for one in found})
        text += f" Difference of the mean column from {base} in points, on the same seeds and videos; p is corrected for "
        text += f"{len(found)} comparison{'s' * (len(found) > 1)}."
    return text


def differences_table(found: Sequence[Difference]) -> Table:
    """A row for each setting and view: the difference from the baseline with its interval, p before and after correction."""
    columns = ("setting", "scored by", "n", "difference", "sd", "95 % interval", "over", "p", "p (Holm)", "verdict")
    rows = [
        (Cell(one.group.label, one.group.label), Cell(view, view), Cell(str(value.seeds), value.seeds),
         Cell(signed(value.mean), value.mean), Cell(DASH if value.sd is None else f"{value.sd:.1f}", value.sd),
         interval(value, difference=True), Cell(value.over, value.over), Cell(p_words(value.p), value.p),
         Cell(p_words(one.adjusted[view]), one.adjusted[view]), Cell(one.verdict(view), one.verdict(view)))
        for one in found for view in VIEWS for value in [one.estimates[view]]
    ]  # fmt: skip
    base = _joined({one.baseline.label for one in found})
    text = f"Points of top-1 over {base}, paired by seed and by video. Each of the three ways to score is corrected for itself."
    return Table(columns, (False, False, True, True, True, True, False, True, True, False), tuple(rows), text)


def runs_table(groups: Iterable[Group], link: Any = lambda run: "") -> Table:
    """A row for each run. ``link`` gives its folder relative to the page."""
    columns = ("run", "setting", "labels", "steps", "seed", *(f"{view} %" for view in VIEWS), "hours", "clips")
    rows = [
        (Cell(run.name, run.name, link(run)), Cell(group.label, group.label), Cell(labels_text(run), labels_text(run)),
         Cell(steps_text(run), run.last_step), Cell("?" if run.seed is None else str(run.seed), run.seed),
         *(percent(run.top1(view)) for view in VIEWS),
         Cell(DASH if run.seconds is None else hours_text(run.seconds / 3600), run.seconds),
         Cell(DASH if run.clips is None else f"{run.clips:,.0f}", run.clips))
        for group in groups for run in (*group.runs, *group.repeats)
    ]  # fmt: skip
    text = "Top-1 in percent. Hours and clips of the logged training steps; starts, evaluation, repeated steps come on top."
    return Table(columns, (False, False, False, True, True, *(True for _ in VIEWS), True, True), tuple(rows), text)


def other_data_table(runs: Iterable[Run]) -> Table | None:
    """A row for each evaluation of a run on other data than its own; None without one."""
    columns = ("run", "other data", "fingerprint", "split", "videos", *(f"{view} %" for view in VIEWS), "not counted")
    rows = []
    for run in runs:
        for found in run.other_data:
            data, unknown = found.get("data") or {}, (found.get("other_data") or {}).get("unknown_classes") or {}
            left_out = ", ".join(f"{name} ({count})" for name, count in unknown.items()) or DASH
            shares = [(found.get(view) or {}).get("top1") for view in VIEWS]
            rows.append((
                Cell(run.name, run.name), *(_text(data.get(key)) for key in ("manifest", "fingerprint")),
                _text(found.get("split")),
                Cell(f"{found.get('videos', 0):,}", found.get("videos", 0)),
                *(percent(None if share is None else 100 * share) for share in shares),
                Cell(left_out, sum(unknown.values())),
            ))  # fmt: skip
    text = "Evaluated on other data: top-1 in percent, classes matched by name. Not counted: videos of classes that the run "
    text += "does not know. Whether the run learned from any of these videos is not checked."
    numeric = (False, False, False, False, True, *(True for _ in VIEWS), False)
    return Table(columns, numeric, tuple(rows), text) if rows else None


def _text(value: Any) -> Cell:
    return Cell("?" if value is None else str(value), None if value is None else str(value))


def trials_table(study: Study, link: Any = lambda trial: "") -> Table:
    """A row for each trial of a search: state, what it chose, what came out."""
    keys = list(dict.fromkeys(key for trial in study.trials for key in trial.params))
    keys = [key for key in keys if len({repr(trial.params.get(key)) for trial in study.trials}) > 1 or key in study.space]
    objectives = study.objectives
    columns = ("trial", "state", *(short_key(key, keys) for key in keys), *(one.label for one in objectives), "minutes")
    rows = [
        (Cell(str(trial.number), trial.number, link(trial)), Cell(trial.state, trial.state),
         *(_param(trial.params.get(key)) for key in keys), *(_value(trial.values.get(one.name), one) for one in objectives),
         Cell(DASH if trial.seconds is None else f"{trial.seconds / 60:.1f}", trial.seconds))
        for trial in best_first(study)
    ]  # fmt: skip
    numeric = (True, False, *(_numbers(study.trials, key) for key in keys), *(True for _ in objectives), True)
    text = f"Trials of {study.name}, the best first by {objectives[0].name}. A pruned trial was stopped early by its scheduler."
    return Table(columns, numeric, tuple(rows), text)


def best_first(study: Study) -> list[Trial]:
    """Complete trials by the leading objective, then those stopped early, then those without a value."""
    lead = study.objectives[0]
    sign = -1 if lead.maximize else 1
    return sorted(study.trials, key=lambda trial: (_rank(trial), sign * (trial.values.get(lead.name) or 0.0), trial.number))


def _rank(trial: Trial) -> int:
    known = any(value is not None for value in trial.values.values())
    return {"complete": 0}.get(trial.state, 1) if known else 2


def short_key(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key, with those before as far as it takes to tell it from others, and to say what it is of."""
    parts = key.split(".")
    for count in range(short_name(key).count(".") + 1, len(parts) + 1):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in keys) <= 1:
            return short
    return key


def _param(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = DASH if value is None else str(value)
        return Cell(text, None if value is None else text)
    return Cell(number(value), float(value))


def _value(value: float | None, objective: Objective) -> Cell:
    return Cell(DASH if value is None else f"{objective.shown(value):.4g}", value)


def _numbers(trials: Iterable[Trial], key: str) -> bool:
    values = [trial.params[key] for trial in trials if trial.params.get(key) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _evaluated(group: Group) -> int:
    return sum(run.top1("mean") is not None for run in group.runs)


def _joined(words: set[str]) -> str:
    return ", ".join(sorted(words))


# ------------------------------------------------------------------------------------------------------------- words


def number(value: float) -> str:
    """``0.025``, ``1,500``, ``1.2e-05``, with a true minus sign."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", MINUS)


def signed(points: float) -> str:
    """One decimal, always with a sign, for differences; never a negative zero."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("-", MINUS)


def percent(value: float | None) -> Cell:
    """``71.2``."""
    return Cell(DASH if value is None else f"{value:.1f}", value)


def with_sd(value: Estimate | None) -> Cell:
    """``71.2 ± 1.1``; no spread for a single run, a dash for none."""
    if value is None:
        return Cell(DASH)
    return Cell(f"{value.mean:.1f}" + ("" if value.sd is None else f" ± {value.sd:.1f}"), value.mean)


def interval(value: Estimate | None, difference: bool = False) -> Cell:
    """``69.0 to 73.4``; a dash where the spread is unknown. Nothing lies beyond what is possible."""
    if value is None or value.low is None or value.high is None:
        return Cell(DASH)
    low, high = max(value.low, -100.0 if difference else 0.0), min(value.high, 100.0)
    show = signed if difference else "{:.1f}".format
    return Cell(f"{show(low)} to {show(high)}", value.mean)


def p_words(p: float | None) -> str:
    """``0.032`` or ``< 0.001``."""
    return p_text(p).removeprefix("= ")


def group_hours(group: Group) -> float | None:
    """Training hours of all its runs."""
    seconds = [run.seconds for run in group.runs if run.seconds is not None]
    return sum(seconds) / 3600 if seconds else None


def hours_text(hours: float) -> str:
    """``12.3``, ``0.045``, ``0.0012``."""
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"
