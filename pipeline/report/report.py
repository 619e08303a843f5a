"""Run folders and studies -> one self-contained HTML page, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
    compare,
    find,
    foremost,
    group_runs,
    in_order,
)
from pipeline.analysis.curves import PANELS, curves
from pipeline.analysis.response import response
from pipeline.analysis.run_reader import VIEWS, Run
from pipeline.analysis.study_reader import Given, Study, Trial, read_given
from pipeline.errors import UserError
from pipeline.report import formats, sentences
from pipeline.report.html import SORTING, render_page, script_hash, write_page, write_whole
from pipeline.report.plots.drawing import NUM_COLORS, Drawing
from pipeline.report.plots.line_plots import LARGEST_LABELED, confusion_svg, panel_svg
from pipeline.report.plots.response_plots import curve_svg, map_svg, rows_svg
from pipeline.report.sample_clips import samples
from pipeline.report.sections.label_section import label_sections
from pipeline.report.sections.search_section import search_sections, trial_groups
from pipeline.report.tables import differences_table, other_data_table, runs_table, settings_table, trials_table

Format = Literal["html", "md", "csv", "tex"]
FORMATS: tuple[Format, ...] = ("html", "md", "csv", "tex")
MAX_CONFUSIONS = 4
"""Confusion matrices on a page, one per setting."""
MAX_OVERLAID = NUM_COLORS
"""Settings whose training curves are laid over each other: as many as there are colors."""
MAX_WHOLE_CONFIGURATIONS = 40
"""Runs whose whole configuration is on the page, 6 KB each; of more runs it is in their folders."""


@dataclass(frozen=True)
class Report:
    """Where the page lies (or would), the files that were written, and what the terminal shows."""

    path: Path
    files: tuple[Path, ...]
    table: str


@dataclass(frozen=True)
class Content:
    """What was read and compared."""

    given: Given
    groups: tuple[Group, ...]
    """Settings to be compared; trials of searches are none."""
    trials: tuple[Group, ...]
    """Trials of searches that left a run folder, the best first."""
    found: tuple[Difference, ...]
    baseline: Group | None

    @property
    def everything(self) -> list[Group]:
        """Settings, then trials."""
        return [*self.groups, *self.trials]

    @property
    def searches(self) -> list[Study]:
        """With a trial."""
        return [study for study in self.given.studies if study.is_search and study.trials]

    @property
    def missing(self) -> list[tuple[str, tuple[str, ...]]]:
        """(study or run, sentences) of what is not there."""
        runs = [(run.name, run.missing) for run in self.runs if run.folder not in self.stopped]
        return [(name, found) for name, found in [*((s.name, s.missing) for s in self.given.studies), *runs] if found]

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.everything for run in (*group.runs, *group.repeats)]

    @property
    def stopped(self) -> set[Path]:
        """Run folders of trials that are not complete: that they lack an evaluation is no wonder."""
        trials = [trial for study in self.given.studies if study.is_search for trial in study.trials]
        return {trial.folder for trial in trials if trial.folder is not None and trial.state != "complete"}

    @property
    def overlaid(self) -> list[Group]:
        """The settings whose curves are drawn."""
        return foremost(self.groups or self.trials, self.baseline, MAX_OVERLAID)


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
    given = read_given(folders)
    path = _target(given, out)
    content = collect(given, baseline)
    texts = {"html": partial(render, content, path.parent), "md": partial(_markdown, content), "tex": partial(_latex, content),
             "csv": partial(formats.as_csv, content.everything, content.found, _chosen(content))}  # fmt: skip
    files = []
    for name in wanted:
        file = path if name == "html" else path.with_suffix(f".{name}")
        (write_page if name == "html" else write_whole)(texts[name](), file, "--out")
        files.append(file)
    return Report(path, tuple(files), _text(content))


def collect(given: Given, baseline: Mapping[str, Any] | None = None) -> Content:
    """Settings, their differences, and the trials of searches."""
    searched = [run for run in given.runs if (study := given.study_of(run)) and study.is_search]
    groups = in_order(group_runs([run for run in given.runs if all(run is not one for one in searched)]))
    groups = [_named(group, given) for group in groups]
    trials = trial_groups([study for study in given.studies if study.is_search], searched)
    wanted = baseline or _baseline_of(given, groups)
    return Content(given, tuple(groups), tuple(trials), tuple(compare(groups, wanted)), choose_baseline(groups, wanted))


def _baseline_of(given: Given, groups: Sequence[Group]) -> Group | None:
    """The one that the only study names, if it has a run: that of the cell which changes just these keys, for another cell may
    have the same values of them and change others, too."""
    params = given.studies[0].baseline if len(given.studies) == 1 else None
    if not params:
        return None
    cells = [{key: trial.params[key] for key in trial.params if key != "run.seed"} for trial in given.studies[0].trials]
    folders = {trial.folder for trial, cell in zip(given.studies[0].trials, cells, strict=True) if cell == params}
    exact = [group for group in groups if any(run.folder in folders for run in group.runs)]
    return next(iter(exact or find(groups, params)), None)


def _named(group: Group, given: Given) -> Group:
    """With the name of its cell, where a study gives its cells names."""
    cells = {
        trial.folder: trial.cell for study in given.studies if study.named for trial in study.trials if trial.folder is not None
    }  # fmt: skip
    runs = (*group.runs, *group.repeats)
    names = dict.fromkeys(cells[run.folder] for run in runs if run.folder in cells)
    return replace(group, label=" = ".join(names)) if names and all(run.folder in cells for run in runs) else group


def render(content: Content, folder: Path) -> str:
    """The page, which will lie in ``folder``, as one string; the same runs give the same bytes."""
    return render_page("report.html.j2", _context(content, folder))


def _target(given: Given, out: str | Path | None) -> Path:
    if out is None:
        inside = [run for run in given.runs if given.study_of(run) is None]
        places = [study.folder for study in given.studies] + [
            run.folder if len(given.runs) == 1 else run.folder.parent for run in inside
        ]
        return Path(os.path.commonpath(places)) / "report.html"
    path = Path(out).expanduser().resolve()
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    if path.suffix in {f".{name}" for name in FORMATS[1:]}:
        raise UserError(f"--out {path} is the page's name: end it in .html; the tables lie beside it")
    return path


def _chosen(content: Content) -> dict[Path, Mapping[str, Any]]:
    """By run folder, what a search tried there."""
    return {trial.folder: trial.params for study in content.searches for trial in study.trials if trial.folder is not None}


def _text(content: Content) -> str:
    """For the terminal: runs, then settings, then the answer."""
    parts = [formats.as_text(runs_table(content.everything))]
    if any(len(group.runs) > 1 for group in content.groups) or content.found:
        parts.append(formats.as_text(settings_table(content.groups, content.found)))
        parts.append(settings_table(content.groups, content.found).caption)
    if (others := other_data_table(content.runs)) is not None:
        parts += [formats.as_text(others), others.caption]
    line = sentences.headline(content.given, content.groups, content.found)
    return "\n\n".join([*parts, line.answer.replace(sentences.NBSP, " ")])


def _tables(content: Content) -> list[Any]:
    tables = [settings_table(content.groups, content.found)] if content.groups else []
    return [
        *tables,
        *([differences_table(content.found)] if content.found else []),
        *map(trials_table, content.searches),
        runs_table(content.everything),
        *([others] if (others := other_data_table(content.runs)) else []),
    ]


def _markdown(content: Content) -> str:
    line = sentences.headline(content.given, content.groups, content.found)
    notes = "".join(f"- {note}\n" for note in sentences.caveats(content.groups, content.found, content.trials))
    missing = "".join(f"- {name}: {sentence}\n" for name, absences in content.missing for sentence in absences)
    missing = f"What is missing:\n\n{missing}\n" if missing else ""
    head = f"# {line.title}\n\n{line.question}\n\n{line.answer}\n\n{notes}\n{missing}".replace(sentences.NBSP, " ")
    return head + "\n".join(map(formats.as_markdown, _tables(content)))


def _latex(content: Content) -> str:
    missing = "".join(f"% missing: {name}: {sentence}\n" for name, absences in content.missing for sentence in absences)
    return missing + "\n".join(map(formats.as_latex, _tables(content)))


# -------------------------------------------------------------------------------------------------------- the page


def _context(content: Content, folder: Path) -> dict[str, Any]:
    groups, found, overlaid = content.groups, content.found, content.overlaid
    judged = groups or content.trials[:1]
    columns, classes = sentences.per_class_table(judged)
    shown = _shown(judged)
    return {
        "headline": sentences.headline(content.given, groups, found),
        "caveats": sentences.caveats(groups, found, content.trials),
        "missing": content.missing,
        "content": content,
        "num_runs": len(content.runs),
        "cost": sentences.cost(content.runs),
        "settings": settings_table(groups, found) if groups else None,
        "differences": differences_table(found) if found else None,
        "runs": runs_table(content.everything, partial(_link, folder)),
        "other_data": other_data_table(content.runs),
        "responses": _responses(content),
        "response_title": sentences.response_title(response(groups), found),
        "response_note": sentences.response_note(response(groups), found),
        "judged": judged,
        "split": sentences.judged_on(judged),
        "num_settings": len(groups or content.trials),
        "searches": search_sections(content.given, partial(_trial_link, folder)),
        "labels": label_sections(judged, content.baseline),
        "overlaid": overlaid,
        "num_colors": NUM_COLORS,
        "properties": run_description.setting_table(overlaid),
        "curves": _curves(overlaid),
        "class_columns": columns,
        "classes": classes,
        "largest_open": LARGEST_LABELED,
        "confusions": _confusions(judged),
        "shown": shown,
        "samples": samples(shown) if shown else [],
        "signatures": sentences.signatures(content.runs),
        "quarantined": sentences.quarantined(content.runs),
        "commands": _commands(content, folder),
        "script": SORTING,
        "script_hash": script_hash(SORTING),
    }


def _link(folder: Path, run: Run) -> str:
    return quote(os.path.relpath(run.folder, folder)) + "/"


def _trial_link(folder: Path, trial: Trial) -> str:
    return quote(os.path.relpath(trial.folder, folder)) + "/" if trial.folder is not None and trial.folder.is_dir() else ""


def _shown(groups: Sequence[Group]) -> Run | None:
    """The run whose clips are shown: the first with predictions, the supervised one last."""
    ordered = sorted(groups, key=lambda group: group.method == BASELINE)
    return next((run for group in ordered for run in group.runs if run.predictions is not None), None)


def _responses(content: Content) -> list[Drawing]:
    """For each way to score, the picture that fits what was varied."""
    groups, found = content.groups, response(content.groups)
    if found is None:
        return []
    if found.kind == "curve":
        return [Drawing(view, curve_svg(found, groups, view, content.baseline, f"response-{view}")) for view in VIEWS]
    if found.kind == "map":
        return [Drawing(view, map_svg(found, groups, view, f"response-{view}")) for view in VIEWS]
    return [Drawing(view, rows_svg(groups, content.found, view, f"response-{view}")) for view in VIEWS]


def _curves(groups: Sequence[Group]) -> list[Drawing]:
    """A figure for each panel of which any run has values."""
    names = [group.label for group in groups]
    last_step = max((run.lines[-1]["step"] for group in groups for run in group.runs if run.lines), default=1)
    drawn = [(panel, curves(panel, groups)) for panel in PANELS]
    return [
        Drawing(panel.title, panel_svg(panel, lines, names, last_step, f"curve{index}"))
        for index, (panel, lines) in enumerate(drawn)
        if lines
    ]


def _confusions(groups: Sequence[Group]) -> list[tuple[Drawing, list[tuple[str, str, int, int]]]]:
    found = [(group, result) for group in groups if (result := sentences.confusion(group))]
    return [
        (Drawing(group.label, confusion_svg(*result, f"Confusion matrix of {group.label}", f"confusion{index}")),
         sentences.most_confused(*result))
        for index, (group, result) in enumerate(found[:MAX_CONFUSIONS])
    ]  # fmt: skip


@dataclass(frozen=True)
class Command:
    """How one run was made, and in what it differs."""

    run: Run
    href: str
    command: str
    """``run_description.command``: what makes this very run."""
    study: str
    """The command of the study or search that it is of, if any."""
    against: str
    """Name of the baseline, empty for itself."""
    differing: list[tuple[str, Any, Any]]
    """(key, value, the baseline's) of the setting."""
    changed: list[tuple[str, Any, Any]]
    """(key, value, default)."""
    whole: str
    """The configuration, unless there are too many runs."""


def _commands(content: Content, folder: Path) -> list[Command]:
    whole = len(content.runs) <= MAX_WHOLE_CONFIGURATIONS
    base = content.baseline.runs[0] if content.baseline else None
    name = content.baseline.label if content.baseline else ""
    return [
        Command(
            run=run,
            href=_link(folder, run),
            command=run_description.command(run),
            study=study.command if (study := content.given.study_of(run)) else "",
            against="" if run is base else name,
            differing=run_description.differing_keys(run, base) if base is not None else [],
            changed=run_description.changed_keys(run),
            whole=_yaml(run) if whole else "",
        )
        for run in content.runs
    ]


def _yaml(run: Run) -> str:
    """The configuration with one dotted key a line, as the command line takes them."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for key, value in run.config.items()}
    return "".join(f"{key}: {text}\n" for key, text in texts.items())
