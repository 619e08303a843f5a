"""Run folders -> one table and one self-contained HTML page without scripts, fonts or links to anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.studies import page, setting
from pipeline.studies.comparison import BASELINE, Group, group_runs
from pipeline.studies.curves import PANELS, curves
from pipeline.studies.html import render_page, write_page
from pipeline.studies.plots import LARGEST_LABELED, NUM_COLORS, confusion_svg, panel_svg
from pipeline.studies.runs import Run, read_runs
from pipeline.studies.samples import samples
from pipeline.studies.table import HEADER, as_text, sections

MAX_CONFUSIONS = 4
"""Confusion matrices on a page, one per setting."""


@dataclass(frozen=True)
class Report:
    """Where the page lies, and the table for the terminal."""

    path: Path
    table: str


@dataclass(frozen=True)
class Figure:
    """A titled SVG."""

    title: str
    svg: str


def write_report(folders: Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Read the runs, write the page (whole or not at all), return its path and the table.

    Args:
        folders: Run folders; what they lack is said on the page.
        out: Path of the page; by default report.html in the run's folder, or in the common parent of several runs.

    Raises:
        UserError: a folder is no run folder, or ``out`` cannot be written.
    """
    runs = read_runs(folders)
    path = _target(runs, out)
    groups = group_runs(runs)
    write_page(render(groups), path, "--out")
    return Report(path, as_text(sections(groups)))


def render(groups: Sequence[Group]) -> str:
    """The page as one string; the same runs give the same bytes."""
    return render_page("report.html.j2", _context(groups))


def _target(runs: Sequence[Run], out: str | Path | None) -> Path:
    if out is None:
        return Path(os.path.commonpath([run.folder if len(runs) == 1 else run.folder.parent for run in runs])) / "report.html"
    path = Path(out).expanduser().resolve()
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file, for example {path / 'report.html'}")
    return path


def _context(groups: Sequence[Group]) -> dict[str, Any]:
    runs = [run for group in groups for run in group.runs]
    shown = _shown(groups)
    columns, classes = page.per_class_table(groups)
    return {
        "headline": page.headline(groups),
        "caveats": page.caveats(groups),
        "missing": [(run.name, run.missing) for run in runs if run.missing],
        "header": HEADER,
        "sections": sections(groups),
        "groups": groups,
        "num_colors": NUM_COLORS,
        "settings": setting.setting_table(groups),
        "curves": _curves(groups),
        "class_columns": columns,
        "classes": classes,
        "largest_open": LARGEST_LABELED,
        "confusions": _confusions(groups),
        "shown": shown,
        "samples": samples(shown) if shown else [],
        "quarantined": page.quarantined(runs),
        "runs": [(run, setting.command(run), setting.changed_keys(run), _yaml(run)) for run in runs],
    }


def _shown(groups: Sequence[Group]) -> Run | None:
    """The run whose clips are shown: the first with predictions, the baseline last."""
    ordered = sorted(groups, key=lambda group: group.method == BASELINE)
    return next((run for group in ordered for run in group.runs if run.predictions is not None), None)


def _curves(groups: Sequence[Group]) -> list[Figure]:
    """A figure for each panel of which any run has values."""
    names = [group.label for group in groups]
    last_step = max((run.lines[-1]["step"] for group in groups for run in group.runs if run.lines), default=1)
    drawn = [(panel, curves(panel, groups)) for panel in PANELS]
    return [
        Figure(panel.title, panel_svg(panel, lines, names, last_step, f"curve{index}"))
        for index, (panel, lines) in enumerate(drawn)
        if lines
    ]


def _confusions(groups: Sequence[Group]) -> list[tuple[Figure, list[tuple[str, str, int, int]]]]:
    found = [(group, result) for group in groups if (result := page.confusion(group))]
    return [
        (Figure(group.label, confusion_svg(*result, f"Confusion matrix of {group.label}", f"confusion{index}")),
         page.most_confused(*result))
        for index, (group, result) in enumerate(found[:MAX_CONFUSIONS])
    ]  # fmt: skip


def _yaml(run: Run) -> str:
    """The configuration with one dotted key a line, as the command line takes them."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for key, value in run.config.items()}
    return "".join(f"{key}: {text}\n" for key, text in texts.items())
