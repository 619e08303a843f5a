"""Reports on run folders and studies: one self-contained HTML page, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import yaml

from pipeline.analysis import run_description
from pipeline.analysis.comparison import (
    BASELINE,
    Difference,
    Group,
    choose_baseline,
    compare_groups,
    find_groups,
    group_runs,
    select_best_groups,
    sort_groups,
)
from pipeline.analysis.curves import PANELS, build_curves
from pipeline.analysis.response import choose_response
from pipeline.analysis.run_reader import VIEWS, RunRecord
from pipeline.analysis.study_reader import ReportInput, StudyRecord, TrialRecord, read_report_input
from pipeline.errors import UserError
from pipeline.report import formats, sentences
from pipeline.report.html import REPORT_SCRIPT, hash_script, render_page, write_file, write_page
from pipeline.report.plots.confusion_order import list_cells, order_by_confusion
from pipeline.report.plots.drawing import NUM_COLORS, Drawing
from pipeline.report.plots.line_plots import LARGEST_LABELED, draw_confusion, draw_panel
from pipeline.report.plots.response_plots import draw_response_curve, draw_response_map, draw_response_rows
from pipeline.report.sample_clips import build_samples
from pipeline.report.sections.evaluation_section import build_evaluation_section
from pipeline.report.sections.label_section import build_label_sections
from pipeline.report.sections.search_section import build_search_sections, group_trials
from pipeline.report.tables import (
    build_differences_table,
    build_other_data_table,
    build_runs_table,
    build_settings_table,
    build_trials_table,
    describe_protocols,
)

Format = Literal["html", "md", "csv", "tex"]
FORMATS: tuple[Format, ...] = ("html", "md", "csv", "tex")
MAX_CONFUSIONS = 4
"""The number of confusion matrices on a page at most, one per setting."""
MAX_ERRORS = 30
"""The number of most frequent errors that are listed if a confusion matrix cannot name its classes."""
MAX_OVERLAID = NUM_COLORS
"""The number of settings whose training curves share a plot at most: as many as there are colors."""
MAX_WHOLE_CONFIGURATIONS = 40
"""Up to so many runs, the page has each whole configuration, 6 KB each; with more runs it is in their folders only."""


@dataclass(frozen=True)
class Report:
    """The path of the page (even if none was written), the files that were written, and the text for the terminal."""

    path: Path
    files: tuple[Path, ...]
    table: str


@dataclass(frozen=True)
class Content:
    """The runs that were read, in groups, and their comparison."""

    given: ReportInput
    groups: tuple[Group, ...]
    """The settings that are compared; trials of searches are not among them."""
    trials: tuple[Group, ...]
    """The trials of searches that left a run folder, the best first."""
    differences: tuple[Difference, ...]
    baseline: Group | None

    @property
    def everything(self) -> list[Group]:
        """The settings, then the trials."""
        return [*self.groups, *self.trials]

    @property
    def searches(self) -> list[StudyRecord]:
        """The searches that have a trial."""
        return [study for study in self.given.studies if study.is_search and study.trials]

    @property
    def missing(self) -> list[tuple[str, tuple[str, ...]]]:
        """Pairs of a study or run, and sentences about what it lacks."""
        runs = [(run.name, run.missing) for run in self.runs if run.folder not in self.stopped]
        studies = [(study.name, study.missing) for study in self.given.studies]
        return [(name, sentences) for name, sentences in [*studies, *runs] if sentences]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, repeated ones included."""
        return [run for group in self.everything for run in (*group.runs, *group.repeats)]

    @property
    def stopped(self) -> set[Path]:
        """The run folders of trials that are not complete, which have no evaluation for this reason."""
        trials = [trial for study in self.given.studies if study.is_search for trial in study.trials]
        return {trial.folder for trial in trials if trial.folder is not None and trial.state != "complete"}

    @property
    def overlaid(self) -> list[Group]:
        """The settings whose training curves are drawn."""
        return select_best_groups(self.groups or self.trials, self.baseline, MAX_OVERLAID)


def write_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    wanted: Sequence[Format] = FORMATS,
    baseline: Mapping[str, Any] | None = None,
) -> Report:
    """Read the runs, write each file whole or not at all, return the paths and the tables.

    Args:
        folders: Run folders, and folders of studies; what they lack is said on the page.
        out: Path of the page; by default report.html in the run's or study's folder, or in the common parent of several. The
            tables lie beside it under the same name.
        wanted: Which files.
        baseline: Configuration keys of the setting that all others are compared with; by default the study's own, a
            supervised one, the one at the program's defaults, or the first.

    Raises:
        UserError: a folder holds no run, no setting has the baseline's keys, or ``out`` cannot be written.
    """
    given = read_report_input(folders)
    path = _choose_path(given, out)
    content = collect_content(given, baseline)
    writers: dict[Format, Callable[[], str]] = {
        "html": partial(render_report, content, path.parent),
        "md": partial(_format_markdown, content),
        "tex": partial(_format_latex, content),
        "csv": partial(formats.format_csv, content.everything, content.differences, _read_searched_params(content)),
    }
    files = []
    for name in wanted:
        file = path if name == "html" else path.with_suffix(f".{name}")
        (write_page if name == "html" else write_file)(writers[name](), file, "--out")
        files.append(file)
    return Report(path, tuple(files), _format_for_terminal(content))


def collect_content(given: ReportInput, baseline: Mapping[str, Any] | None = None) -> Content:
    """Groups the runs by setting, compares the settings, and collects the trials of searches."""
    searched = [run for run in given.runs if (study := given.find_study(run)) and study.is_search]
    groups = sort_groups(group_runs([run for run in given.runs if all(run is not other for other in searched)]))
    groups = [_name_after_cell(group, given) for group in groups]
    trials = group_trials([study for study in given.studies if study.is_search], searched)
    wanted = baseline or _find_planned_baseline(given, groups)
    return Content(given, tuple(groups), tuple(trials), tuple(compare_groups(groups, wanted)), choose_baseline(groups, wanted))


def _find_planned_baseline(given: ReportInput, groups: Sequence[Group]) -> Group | None:
    """Finds the group of the baseline that the only study names, if it has a run.

    It is the group of the cell that changes just the baseline's keys: another cell may have the same values of them and change
    further keys.
    """
    params = given.studies[0].baseline if len(given.studies) == 1 else None
    if not params:
        return None
    cells = [{key: trial.params[key] for key in trial.params if key != "run.seed"} for trial in given.studies[0].trials]
    folders = {trial.folder for trial, cell in zip(given.studies[0].trials, cells, strict=True) if cell == params}
    exact = [group for group in groups if any(run.folder in folders for run in group.runs)]
    return next(iter(exact or find_groups(groups, params)), None)


def _name_after_cell(group: Group, given: ReportInput) -> Group:
    """Renames a group after its cell if a study names its cells."""
    trials = [trial for study in given.studies if study.has_named_cells for trial in study.trials]
    cells = {trial.folder: trial.cell for trial in trials if trial.folder is not None}
    runs = (*group.runs, *group.repeats)
    names = dict.fromkeys(cells[run.folder] for run in runs if run.folder in cells)
    return replace(group, label=" = ".join(names)) if names and all(run.folder in cells for run in runs) else group


def render_report(content: Content, folder: Path) -> str:
    """Renders the page, which will lie in ``folder``, as one string; the same runs give the same bytes."""
    return render_page("report.html.j2", _build_context(content, folder))


def _choose_path(given: ReportInput, out: str | Path | None) -> Path:
    if out is None:
        inside = [run for run in given.runs if given.find_study(run) is None]
        folders = [study.folder for study in given.studies] + [
            run.folder if len(given.runs) == 1 else run.folder.parent for run in inside
        ]
        return Path(os.path.commonpath(folders)) / "report.html"
    path = Path(out).expanduser().resolve()
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    if path.suffix in {f".{name}" for name in FORMATS[1:]}:
        raise UserError(f"--out {path} is the page's name: end it in .html; the tables lie beside it")
    return path


def _read_searched_params(content: Content) -> dict[Path, Mapping[str, Any]]:
    """Returns the values that a search tried in each run folder."""
    return {trial.folder: trial.params for study in content.searches for trial in study.trials if trial.folder is not None}


def _format_for_terminal(content: Content) -> str:
    """Formats the tables of runs and settings, and the answer."""
    parts = [formats.format_text(build_runs_table(content.everything))]
    if any(len(group.runs) > 1 for group in content.groups) or content.differences:
        parts.append(formats.format_text(build_settings_table(content.groups, content.differences)))
        parts.append(build_settings_table(content.groups, content.differences).caption)
    if (others := build_other_data_table(content.runs)) is not None:
        parts += [formats.format_text(others), others.caption]
    line = sentences.build_headline(content.given, content.groups, content.differences)
    parts += [protocols] if (protocols := describe_protocols(content.runs).strip()) else []
    return "\n\n".join([*parts, line.answer.replace(sentences.NBSP, " ")])


def _build_tables(content: Content) -> list[Any]:
    tables = [build_settings_table(content.groups, content.differences)] if content.groups else []
    return [
        *tables,
        *([build_differences_table(content.differences)] if content.differences else []),
        *map(build_trials_table, content.searches),
        build_runs_table(content.everything),
        *([others] if (others := build_other_data_table(content.runs)) else []),
    ]


def _format_markdown(content: Content) -> str:
    line = sentences.build_headline(content.given, content.groups, content.differences)
    notes = "".join(f"- {note}\n" for note in sentences.list_caveats(content.groups, content.differences, content.trials))
    missing = "".join(f"- {name}: {sentence}\n" for name, absences in content.missing for sentence in absences)
    missing = f"What is missing:\n\n{missing}\n" if missing else ""
    head = f"# {line.title}\n\n{line.question}\n\n{line.answer}\n\n{notes}\n{missing}".replace(sentences.NBSP, " ")
    return head + "\n".join(map(formats.format_markdown, _build_tables(content)))


def _format_latex(content: Content) -> str:
    missing = "".join(f"% missing: {name}: {sentence}\n" for name, absences in content.missing for sentence in absences)
    return missing + "\n".join(map(formats.format_latex, _build_tables(content)))


# -------------------------------------------------------------------------------------------------------- the page


def _build_context(content: Content, folder: Path) -> dict[str, Any]:
    groups, differences, overlaid = content.groups, content.differences, content.overlaid
    judged = groups or content.trials[:1]
    columns, classes = sentences.build_class_table(judged)
    shown = _choose_sample_run(judged)
    return {
        "headline": sentences.build_headline(content.given, groups, differences),
        "caveats": sentences.list_caveats(groups, differences, content.trials),
        "missing": content.missing,
        "content": content,
        "num_runs": len(content.runs),
        "cost": sentences.describe_cost(content.runs),
        "settings": build_settings_table(groups, differences) if groups else None,
        "differences": build_differences_table(differences) if differences else None,
        "runs": build_runs_table(content.everything, partial(_build_link, folder)),
        "other_data": build_other_data_table(content.runs),
        "responses": _draw_responses(content),
        "response_title": sentences.choose_response_title(choose_response(groups), differences),
        "response_note": sentences.explain_response(choose_response(groups), differences),
        "judged": judged,
        "split": sentences.name_splits(judged),
        "num_settings": len(groups or content.trials),
        "searches": build_search_sections(content.given, partial(_build_trial_link, folder)),
        "labels": build_label_sections(judged, content.baseline),
        "overlaid": overlaid,
        "num_colors": NUM_COLORS,
        "properties": run_description.build_setting_table(overlaid),
        "curves": _draw_curves(overlaid),
        "class_columns": columns,
        "classes": classes,
        "largest_open": LARGEST_LABELED,
        "confusions": _draw_confusions(judged),
        "shown": shown,
        "evaluation": build_evaluation_section(shown),
        "samples": build_samples(shown) if shown else [],
        "signatures": sentences.list_signatures(content.runs),
        "quarantined": sentences.count_quarantined(content.runs),
        "commands": _describe_commands(content, folder),
        "script": REPORT_SCRIPT,
        "script_hash": hash_script(REPORT_SCRIPT),
    }


def _build_link(folder: Path, run: RunRecord) -> str:
    return quote(os.path.relpath(run.folder, folder)) + "/"


def _build_trial_link(folder: Path, trial: TrialRecord) -> str:
    return quote(os.path.relpath(trial.folder, folder)) + "/" if trial.folder is not None and trial.folder.is_dir() else ""


def _choose_sample_run(groups: Sequence[Group]) -> RunRecord | None:
    """Chooses the run whose clips are shown: the first with predictions, a supervised one last."""
    ordered = sorted(groups, key=lambda group: group.method == BASELINE)
    return next((run for group in ordered for run in group.runs if run.predictions is not None), None)


def _draw_responses(content: Content) -> list[Drawing]:
    """Draws, for each way to score, the plot that fits what was varied."""
    groups, response = content.groups, choose_response(content.groups)
    if response is None:
        return []
    drawings = []
    for view in VIEWS:
        prefix = f"response-{view}"
        if response.kind == "curve":
            svg = draw_response_curve(response, groups, view, content.baseline, prefix)
        elif response.kind == "map":
            svg = draw_response_map(response, groups, view, prefix)
        else:
            svg = draw_response_rows(groups, content.differences, view, prefix)
        drawings.append(Drawing(view, svg))
    return drawings


def _draw_curves(groups: Sequence[Group]) -> list[Drawing]:
    """Draws each panel for which any run has values."""
    names = [group.label for group in groups]
    last_step = max((run.lines[-1]["step"] for group in groups for run in group.runs if run.lines), default=1)
    drawn = [(panel, build_curves(panel, groups)) for panel in PANELS]
    return [
        Drawing(panel.title, draw_panel(panel, lines, names, last_step, f"curve{index}"))
        for index, (panel, lines) in enumerate(drawn)
        if lines
    ]


Confusion = tuple[Drawing, list[tuple[str, str, int, int]], dict[str, str] | None]
"""A drawn confusion matrix, its most frequent errors and, if its classes are not named, what names the cells."""


def _draw_confusions(groups: Sequence[Group]) -> list[Confusion]:
    counted = [(group, result) for group in groups if (result := sentences.count_confusions(group))]
    return [_draw_confusion(group.label, *result, index) for index, (group, result) in enumerate(counted[:MAX_CONFUSIONS])]


def _draw_confusion(label: str, counts: Any, classes: Sequence[str], index: int) -> Confusion:
    cells, worst = None, sentences.find_largest_errors(counts, classes)
    if len(classes) > LARGEST_LABELED:
        order = order_by_confusion(counts)
        counts, classes = counts[order][:, order], [classes[place] for place in order]
        cells, worst = list_cells(counts, classes), sentences.find_largest_errors(counts, classes, MAX_ERRORS)
    return Drawing(label, draw_confusion(counts, classes, f"Confusion matrix of {label}", f"confusion{index}")), worst, cells


@dataclass(frozen=True)
class RunCommand:
    """The command that made one run, and the keys in which the run differs from the baseline and the defaults."""

    run: RunRecord
    href: str
    command: str
    """The result of ``run_description.build_command``: the command that makes this very run."""
    study: str
    """The command of the study or search that the run belongs to, if any."""
    baseline: str
    """The name of the baseline; empty for the baseline itself."""
    differing: list[tuple[str, Any, Any]]
    """(key, value, the baseline's value) of the setting."""
    changed: list[tuple[str, Any, Any]]
    """(key, value, default) of all keys that are not at their default."""
    whole_config: str
    """The whole configuration; empty if there are too many runs."""


def _describe_commands(content: Content, folder: Path) -> list[RunCommand]:
    whole = len(content.runs) <= MAX_WHOLE_CONFIGURATIONS
    base = content.baseline.runs[0] if content.baseline else None
    name = content.baseline.label if content.baseline else ""
    return [
        RunCommand(
            run=run,
            href=_build_link(folder, run),
            command=run_description.build_command(run),
            study=study.command if (study := content.given.find_study(run)) else "",
            baseline="" if run is base else name,
            differing=run_description.find_differing_keys(run, base) if base is not None else [],
            changed=run_description.find_changed_keys(run),
            whole_config=_format_config(run) if whole else "",
        )
        for run in content.runs
    ]


def _format_config(run: RunRecord) -> str:
    """Formats the configuration with one dotted key a line, as the command line takes them."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for key, value in run.config.items()}
    return "".join(f"{key}: {text}\n" for key, text in texts.items())
