"""Saved scores of runs -> a CSV of all counts in each run folder, a page of its own, and text for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.analysis.comparison import choose_baseline, group_runs
from pipeline.analysis.label_quality import read_said
from pipeline.analysis.run_reader import Run
from pipeline.analysis.study_reader import read_given
from pipeline.errors import UserError
from pipeline.report import formats
from pipeline.report.html import SORTING, render_page, script_hash, write_page, write_whole
from pipeline.report.sections import label_tables
from pipeline.report.sections.label_section import LabelSection, class_names, label_sections, own_thresholds


@dataclass(frozen=True)
class LabelReport:
    """The files that were written, the page last, and what the terminal shows."""

    files: tuple[Path, ...]
    text: str


def write_label_report(folders: Sequence[str | Path], out: Path | None = None) -> LabelReport:
    """Raises UserError for folders without runs, and when no run has saved scores yet, saying why."""
    runs = read_given(folders).runs
    scored = {run.folder: found for run in runs if (found := read_said(run.folder)[0]) is not None}
    if not scored:
        raise UserError("no saved scores, so there is nothing to say of pseudo-labels:", [_why_none(run) for run in runs])
    places = list(scored)
    path = out or Path(os.path.commonpath([places[0] if len(places) == 1 else folder.parent for folder in places]))
    page = path if out is not None else path / "label_quality.html"
    groups = group_runs([run for run in runs if run.folder in scored])
    sections = label_sections(groups, choose_baseline(groups))
    context = {
        "labels": sections, "num_runs": len(scored), "missing": [_why_none(run) for run in runs if run.folder not in scored],
        "script": SORTING, "script_hash": script_hash(SORTING),
    }  # fmt: skip
    write_page(render_page("label_quality.html.j2", context), page.expanduser().resolve(), "--out")
    files = []
    for run in runs:
        if (said := scored.get(run.folder)) is not None:
            files.append(run.folder / "label_quality.csv")
            write_whole(label_tables.as_csv(said, own_thresholds(run), class_names(run, said)), files[-1], "run folder")
    texts = [*map(_text, sections.shown), *([sections.note] if sections.note else [])]
    return LabelReport((*files, page.expanduser().resolve()), "\n\n".join(texts) + "\n")


def _text(section: LabelSection) -> str:
    answers = [f"{learner.name}: {learner.answer}" for learner in section.learners]
    return "\n\n".join([f"{section.title}: {section.basis}", *answers, formats.as_text(section.thresholds), *section.problems])


def _why_none(run: Run) -> str:
    config = run.config
    if config.get("train.save_scores_every") == 0:
        return f"{run.name}: train.save_scores_every is 0; train it again under another run.name with 10"
    if run.method == "supervised":
        return f"{run.name}: its method sees no unlabeled video"
    start, first = config.get("method.supervised_steps", 0), config.get("train.checkpoint_every")
    if run.last_step <= start:
        return f"{run.name}: it stands at step {run.last_step:,}, and unlabeled videos count from step {start + 1:,} on"
    return f"{run.name}: none in its folder; they are written with each checkpoint, every {first} steps"
