"""Builds the tables of a report as plain cells, each with the value by which it is sorted.

``formats`` formats them for the terminal, Markdown, CSV and LaTeX; the page's template shows them as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.analysis.comparison import Difference, Group
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_record import Objective, StudyRecord, TrialRecord
from pipeline.analysis.run_description import describe_labels, describe_steps
from pipeline.analysis.statistics import Estimate, format_p
from pipeline.config import find_short_name
from pipeline.evaluation.protocol import describe_protocol
from pipeline.run_folder.contents import PREDICTORS

DASH = "–"
MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """A text, and what it is sorted by: a number, a text, or None for an unknown value, which comes last."""

    text: str
    sort: float | str | None = None
    href: str = ""
    """The folder that the text links to, relative to the page."""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Whether a column has numbers, which are aligned to the right."""
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    """One or two sentences about what the numbers are."""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) == len(self.numeric) for row in self.rows), "rows and columns differ"


def build_settings_table(groups: Sequence[Group], differences: Sequence[Difference]) -> Table:
    """Builds a table of settings: the number of seeds, mean and standard deviation of each predictor, the interval of the mean,
    the verdict."""
    accuracies = [f"{predictor} %" for predictor in PREDICTORS]
    columns = ["setting", "n", *accuracies, "95 % interval", "difference", "p (Holm)", "verdict", "hours"]
    numeric = [False, True, *(True for _ in PREDICTORS), True, True, True, False, True]
    rows = []
    for group in groups:
        difference = next((one for one in differences if one.group is group), None)
        hours = sum_hours(group)
        rows.append((
            Cell(group.label, group.label), Cell(str(_count_evaluated(group)), _count_evaluated(group)),
            *(build_mean_cell(group.get_top1(predictor)) for predictor in PREDICTORS),
            build_interval_cell(group.get_top1("mean")),
            *_build_difference_cells(group, difference, differences),
            Cell(DASH if hours is None else format_hours(hours), hours),
        ))  # fmt: skip
    return Table(tuple(columns), tuple(numeric), tuple(rows), describe_settings_table(groups, differences))


def _build_difference_cells(
    group: Group, difference: Difference | None, differences: Sequence[Difference]
) -> tuple[Cell, Cell, Cell]:
    if difference is None:
        word = "baseline" if any(one.baseline is group for one in differences) else DASH
        return Cell(DASH), Cell(DASH), Cell(word, "")
    points, p = difference.estimates["mean"], difference.adjusted["mean"]
    return (
        Cell(format_signed(points.mean), points.mean),
        Cell(format_p_cell(p), p),
        Cell(difference.describe_verdict("mean"), difference.describe_verdict("mean")),
    )


def describe_settings_table(groups: Sequence[Group], differences: Sequence[Difference]) -> str:
    """Describes the numbers of ``build_settings_table``."""
    videos = sorted({run.evaluation["videos"] for group in groups for run in group.runs if run.evaluation.get("videos")})
    count = f" on {videos[0]:,} videos" if len(videos) == 1 else ""
    protocols = list_protocols([run for group in groups for run in group.runs])
    over = _join_sorted({value.over for group in groups if (value := group.get_top1("mean"))})
    text = f"Top-1{count}: mean ± sd (n) over seeds; “mean” scores a video by the mean of both students’ softmax.{protocols}"
    if over and over != "nothing":
        text += f" Interval of the mean column, over {over}."
    if differences:
        base = _join_sorted({one.baseline.label for one in differences})
        text += f" Difference of the mean column from {base} in points, on the same seeds and videos; p is corrected for "
        text += f"{len(differences)} comparison{'s' * (len(differences) > 1)}."
    return text


def build_differences_table(differences: Sequence[Difference]) -> Table:
    """Builds a table of each setting and predictor: the difference from the baseline with its interval, and p before and after
    correction."""
    columns = ("setting", "scored by", "n", "difference", "sd", "95 % interval", "over", "p", "p (Holm)", "verdict")
    rows = [
        (_build_text_cell(difference.group.label), _build_text_cell(predictor), Cell(str(value.seeds), value.seeds),
         Cell(format_signed(value.mean), value.mean), Cell(DASH if value.sd is None else f"{value.sd:.1f}", value.sd),
         build_interval_cell(value, difference=True), _build_text_cell(value.over), Cell(format_p_cell(value.p), value.p),
         Cell(format_p_cell(difference.adjusted[predictor]), difference.adjusted[predictor]),
         _build_text_cell(difference.describe_verdict(predictor)))
        for difference in differences for predictor in PREDICTORS for value in [difference.estimates[predictor]]
    ]  # fmt: skip
    base = _join_sorted({difference.baseline.label for difference in differences})
    text = f"Points of top-1 over {base}, paired by seed and by video. Each of the three ways to score is corrected for itself."
    text += list_protocols([run for difference in differences for pair in difference.pairs for run in pair])
    return Table(columns, (False, False, True, True, True, True, False, True, True, False), tuple(rows), text)


def build_runs_table(groups: Iterable[Group], link: Any = lambda run: "") -> Table:
    """Builds a table of runs. ``link`` returns a run's folder relative to the page."""
    groups = list(groups)
    columns = ("run", "setting", "labels", "steps", "seed", *(f"{predictor} %" for predictor in PREDICTORS), "hours", "clips")
    rows = [
        (Cell(run.name, run.name, link(run)), Cell(group.label, group.label), Cell(describe_labels(run), describe_labels(run)),
         Cell(describe_steps(run), run.last_step), Cell("?" if run.seed is None else str(run.seed), run.seed),
         *(build_percent_cell(run.get_top1(predictor)) for predictor in PREDICTORS),
         Cell(DASH if run.seconds is None else format_hours(run.seconds / 3600), run.seconds),
         Cell(DASH if run.clips is None else f"{run.clips:,.0f}", run.clips))
        for group in groups for run in (*group.runs, *group.repeats)
    ]  # fmt: skip
    protocols = list_protocols([run for group in groups for run in group.runs])
    text = f"Top-1 in percent.{protocols} Hours and clips of the logged training steps; starts, evaluation, repeated steps "
    text += "come on top."
    return Table(columns, (False, False, False, True, True, *(True for _ in PREDICTORS), True, True), tuple(rows), text)


def build_other_data_table(runs: Iterable[RunRecord]) -> Table | None:
    """Builds a table of the evaluations of runs on other data than their own; None if there is none."""
    shares_columns = [f"{predictor} %" for predictor in PREDICTORS]
    columns = ("run", "other data", "fingerprint", "split", "videos", *shares_columns, "not counted", "protocol")
    rows = []
    for run in runs:
        for evaluation in run.other_data:
            data, unknown = evaluation.get("data") or {}, (evaluation.get("other_data") or {}).get("unknown_classes") or {}
            left_out = ", ".join(f"{name} ({count})" for name, count in unknown.items()) or DASH
            shares = [(evaluation.get(predictor) or {}).get("top1") for predictor in PREDICTORS]
            rows.append((
                Cell(run.name, run.name), *(_build_text_cell(data.get(key)) for key in ("manifest", "fingerprint")),
                _build_text_cell(evaluation.get("split")),
                Cell(f"{evaluation.get('videos', 0):,}", evaluation.get("videos", 0)),
                *(build_percent_cell(None if share is None else 100 * share) for share in shares),
                Cell(left_out, sum(unknown.values())), _build_text_cell(describe_protocol(evaluation) or None),
            ))  # fmt: skip
    text = "Evaluated on other data: top-1 in percent, classes matched by name. Not counted: videos of classes that the run "
    text += "does not know. Whether the run learned from any of these videos is not checked."
    numeric = (False, False, False, False, True, *(True for _ in PREDICTORS), False, False)
    return Table(columns, numeric, tuple(rows), text) if rows else None


def list_protocols(runs: Iterable[RunRecord]) -> str:
    """Returns `` Protocol: ....``, with every protocol by which one of the runs was evaluated, or ""."""
    known = join_protocols(runs)
    return f" Protocol{'s' * ('; ' in known)}: {known}." if known else ""


def join_protocols(runs: Iterable[RunRecord]) -> str:
    """Joins every protocol by which one of the runs was evaluated by a semicolon; "" if none was."""
    return "; ".join(filter(None, dict.fromkeys(run.describe_protocol(with_step=False) for run in runs)))


def _build_text_cell(value: Any) -> Cell:
    return Cell("?" if value is None else str(value), None if value is None else str(value))


def build_trials_table(study: StudyRecord, runs: Iterable[RunRecord] = (), link: Any = lambda trial: "") -> Table:
    """Builds a table of a search's trials: their state, what they chose, and the result. ``runs`` are those of the study."""
    keys = list(dict.fromkeys(key for trial in study.trials for key in trial.params))
    keys = [key for key in keys if len({repr(trial.params.get(key)) for trial in study.trials}) > 1 or key in study.space]
    objectives = study.objectives
    labels = [objective.label for objective in objectives]
    columns = ("trial", "state", *(shorten_key(key, keys) for key in keys), *labels, "minutes")
    rows = [
        (Cell(str(trial.number), trial.number, link(trial)), Cell(trial.state, trial.state),
         *(_build_param_cell(trial.params.get(key)) for key in keys),
         *(_build_value_cell(trial, objective) for objective in objectives),
         Cell(DASH if trial.seconds is None else f"{trial.seconds / 60:.1f}", trial.seconds))
        for trial in sort_best_first(study)
    ]  # fmt: skip
    numeric = (True, False, *(_is_numeric_key(study.trials, key) for key in keys), *(True for _ in objectives), True)
    text = f"Trials of {study.name}, the best first by {objectives[0].name}. A pruned trial was stopped early by its scheduler."
    text += list_protocols(runs)
    return Table(columns, numeric, tuple(rows), text)


def sort_best_first(study: StudyRecord) -> list[TrialRecord]:
    """Sorts trials: complete ones by the first objective, then those stopped early, then those without a value."""
    lead = study.objectives[0]
    sign = -1 if lead.maximize else 1

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        return _rank_trial(trial), sign * (trial.values.get(lead.name) or 0.0), trial.number

    return sorted(study.trials, key=key)


def _rank_trial(trial: TrialRecord) -> int:
    known = any(value is not None for value in trial.values.values())
    return {"complete": 0}.get(trial.state, 1) if known else 2


def shorten_key(key: str, keys: Sequence[str]) -> str:
    """Shortens a dotted key to its last parts: as many as distinguish it from the other keys and say what it belongs to."""
    parts = key.split(".")
    for count in range(find_short_name(key).count(".") + 1, len(parts) + 1):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in keys) <= 1:
            return short
    return key


def _build_param_cell(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = DASH if value is None else str(value)
        return Cell(text, None if value is None else text)
    return Cell(format_number(value), float(value))


def _build_value_cell(trial: TrialRecord, objective: Objective) -> Cell:
    value = trial.values.get(objective.name)
    return Cell(DASH if value is None else f"{objective.convert_to_shown_unit(value):.4g}", value)


def _is_numeric_key(trials: Iterable[TrialRecord], key: str) -> bool:
    values = [trial.params[key] for trial in trials if trial.params.get(key) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _count_evaluated(group: Group) -> int:
    return sum(run.get_top1("mean") is not None for run in group.runs)


def _join_sorted(words: set[str]) -> str:
    return ", ".join(sorted(words))


# ------------------------------------------------------------------------------------------------------------- words


def format_number(value: float) -> str:
    """Formats a number as ``0.025``, ``1,500`` or ``1.2e-05``, with a true minus sign."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", MINUS)


def format_signed(points: float) -> str:
    """Formats a difference with one decimal and always a sign; never as a negative zero."""
    return f"{round(points, 1) + 0.0:+.1f}".replace("-", MINUS)


def build_percent_cell(value: float | None) -> Cell:
    """Builds a cell like ``71.2``, or a dash for None."""
    return Cell(DASH if value is None else f"{value:.1f}", value)


def build_mean_cell(value: Estimate | None) -> Cell:
    """Builds a cell like ``71.2 ± 1.1``, without the standard deviation for a single run, or a dash for None."""
    if value is None:
        return Cell(DASH)
    return Cell(f"{value.mean:.1f}" + ("" if value.sd is None else f" ± {value.sd:.1f}"), value.mean)


def build_interval_cell(value: Estimate | None, difference: bool = False) -> Cell:
    """Builds a cell like ``69.0 to 73.4``, cut to the possible values, or a dash if the spread is unknown."""
    if value is None or value.low is None or value.high is None:
        return Cell(DASH)
    low, high = max(value.low, -100.0 if difference else 0.0), min(value.high, 100.0)
    show = format_signed if difference else "{:.1f}".format
    return Cell(f"{show(low)} to {show(high)}", value.mean)


def format_p_cell(p: float | None) -> str:
    """Formats a p-value as ``0.032`` or ``< 0.001``, or as a dash if it is None."""
    return format_p(p).removeprefix("= ")


def sum_hours(group: Group) -> float | None:
    """Sums the training hours of all runs of a group; None if they are unknown."""
    seconds = [run.seconds for run in group.runs if run.seconds is not None]
    return sum(seconds) / 3600 if seconds else None


def format_hours(hours: float) -> str:
    """Formats hours as ``12.3``, ``0.045`` or ``0.0012``."""
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}"
