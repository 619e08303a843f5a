"""Reports on run folders and studies: one self-contained HTML page, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipeline.analysis.records.study_reader import read_report_input
from pipeline.analysis.records.study_record import ReportInput
from pipeline.errors import UserError
from pipeline.report.pages.report_content import Content, collect_content
from pipeline.report.pages.report_page import render_report
from pipeline.report.parts import formats, sentences
from pipeline.report.parts.html import write_file, write_page
from pipeline.report.parts.tables import (
    build_differences_table,
    build_other_data_table,
    build_runs_table,
    build_settings_table,
    build_trials_table,
    list_protocols,
)
from pipeline.report.sections.rounds_section import build_rounds_sections

Format = Literal["html", "md", "csv", "tex"]
FORMATS: tuple[Format, ...] = ("html", "md", "csv", "tex")


@dataclass(frozen=True)
class Report:
    """The path of the page (even if none was written), the files that were written, and the text for the terminal."""

    path: Path
    files: tuple[Path, ...]
    table: str


def write_report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    wanted: Sequence[Format] = FORMATS,
    baseline: Mapping[str, Any] | None = None,
) -> Report:
    """Reads the runs, writes each file whole or not at all, and returns the paths and the tables.

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
    for one in build_rounds_sections(content.given):
        parts += [formats.format_text(one.table), one.table.caption]
    if (others := build_other_data_table(content.runs)) is not None:
        parts += [formats.format_text(others), others.caption]
    line = sentences.build_headline(content.given, content.groups, content.differences)
    protocols = list_protocols(content.runs).strip()
    if protocols and not any(protocols in part for part in parts):  # a caption may have named them
        parts.append(protocols)
    return "\n\n".join([*parts, line.answer.replace(sentences.NBSP, " ")])


def _build_tables(content: Content) -> list[Any]:
    tables = [build_settings_table(content.groups, content.differences)] if content.groups else []
    return [
        *tables,
        *([build_differences_table(content.differences)] if content.differences else []),
        *(one.table for one in build_rounds_sections(content.given)),
        *(build_trials_table(study, content.given.list_runs(study)) for study in content.searches),
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
