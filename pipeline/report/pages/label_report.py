"""Reports on the saved scores of runs: a CSV of all counts in each run folder, a page, and text for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.analysis.comparison import choose_baseline, group_runs
from pipeline.analysis.label_quality import read_saved_scores
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.errors import UserError
from pipeline.report.parts import formats
from pipeline.report.parts.html import SORTING, hash_script, render_page, write_file, write_page
from pipeline.report.sections import label_tables
from pipeline.report.sections.label_section import (
    LabelQualitySection,
    build_label_sections,
    read_class_names,
    read_own_thresholds,
)


@dataclass(frozen=True)
class LabelReport:
    """The files that were written, the page last, and the text for the terminal."""

    files: tuple[Path, ...]
    text: str


def write_label_report(folders: Sequence[str | Path], out: Path | None = None) -> LabelReport:
    """Writes label_quality.csv into each run folder, and the page. ``out`` is the page's path, by default beside the runs.

    Raises UserError for folders without runs, and if no run has saved scores yet.
    """
    runs = read_report_input(folders).runs
    scored = {run.folder: scores for run in runs if (scores := read_saved_scores(run.folder)[0]) is not None}
    if not scored:
        reasons = [_explain_no_scores(run) for run in runs]
        raise UserError("no saved scores, so there is nothing to say of pseudo-labels:", reasons)
    run_folders = list(scored)
    beside = run_folders if len(run_folders) == 1 else [folder.parent for folder in run_folders]
    path = out or Path(os.path.commonpath(beside))
    page = path if out is not None else path / "label_quality.html"
    groups = group_runs([run for run in runs if run.folder in scored])
    sections = build_label_sections(groups, choose_baseline(groups))
    missing = [_explain_no_scores(run) for run in runs if run.folder not in scored]
    context = {
        "labels": sections, "num_runs": len(scored), "missing": missing,
        "script": SORTING, "script_hash": hash_script(SORTING),
    }  # fmt: skip
    write_page(render_page("label_quality.html.j2", context), page.expanduser().resolve(), "--out")
    files = []
    for run in runs:
        if (scores := scored.get(run.folder)) is not None:
            files.append(run.folder / "label_quality.csv")
            counts = label_tables.format_counts_csv(scores, read_own_thresholds(run), read_class_names(run, scores))
            write_file(counts, files[-1], "run folder")
    texts = [*map(_format_section, sections.shown), *([sections.note] if sections.note else [])]
    return LabelReport((*files, page.expanduser().resolve()), "\n\n".join(texts) + "\n")


def _format_section(section: LabelQualitySection) -> str:
    answers = [f"{learner.name}: {learner.answer}" for learner in section.learners]
    table = formats.format_text(section.thresholds)
    return "\n\n".join([f"{section.title}: {section.basis}", *answers, table, *section.problems])


def _explain_no_scores(run: RunRecord) -> str:
    config = run.config
    if config.get("train.save_scores_every") == 0:
        return f"{run.name}: train.save_scores_every is 0; train it again under another run.name with 10"
    if run.method == "supervised":
        return f"{run.name}: its method sees no unlabeled video"
    start, first = config.get("method.supervised_steps", 0), config.get("train.checkpoint_every")
    if run.last_step <= start:
        return f"{run.name}: it stands at step {run.last_step:,}, and unlabeled videos count from step {start + 1:,} on"
    return f"{run.name}: none in its folder; they are written with each checkpoint, every {first} steps"
