"""The page of a report on runs and studies: its plots, its tables, and the command that makes each run again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from pipeline.analysis import run_description
from pipeline.analysis.comparison import BASELINE, Group
from pipeline.analysis.curves import PANELS, build_curves
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_record import TrialRecord
from pipeline.analysis.response import choose_response
from pipeline.report.pages.report_content import Content
from pipeline.report.parts import sentences
from pipeline.report.parts.html import REPORT_SCRIPT, hash_script, render_page
from pipeline.report.parts.tables import (
    build_differences_table,
    build_other_data_table,
    build_runs_table,
    build_settings_table,
)
from pipeline.report.plots.drawing import NUM_COLORS, Drawing
from pipeline.report.plots.line_plots import LARGEST_LABELED, draw_panel
from pipeline.report.plots.response_plots import draw_response_curve, draw_response_map, draw_response_rows
from pipeline.report.sections.class_section import build_class_section
from pipeline.report.sections.evaluation_section import build_evaluation_section
from pipeline.report.sections.label_count_section import build_label_count_section
from pipeline.report.sections.label_section import build_label_sections
from pipeline.report.sections.other_data_section import build_other_data_sections
from pipeline.report.sections.rounds_section import build_rounds_sections
from pipeline.report.sections.sample_clips import build_samples
from pipeline.report.sections.search_section import build_search_sections
from pipeline.run_folder.contents import PREDICTORS

MAX_WHOLE_CONFIGURATIONS = 40
"""Up to so many runs, the page has each whole configuration, 6 KB each; with more runs it is in their folders only."""


@dataclass(frozen=True)
class RunCommand:
    """The command that made one run, and the keys in which the run differs from the baseline and the defaults."""

    run: RunRecord
    href: str
    command: str
    """The result of ``run_description.build_command``: the command that makes this very run; empty for a model."""
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


def render_report(content: Content, folder: Path, live: Sequence[str] = ()) -> str:
    """Renders the page, which will lie in ``folder``, as one string; the same runs give the same bytes.

    ``live`` are sentences about runs that are under way, for a page that is served and not kept.
    """
    return render_page("report.html.j2", {**_build_context(content, folder), "live": list(live)})


def _build_context(content: Content, folder: Path) -> dict[str, Any]:
    groups, differences, overlaid = content.groups, content.differences, content.overlaid
    judged = groups or content.trials[:1]
    shown = _choose_sample_run(judged)
    return {
        "headline": sentences.build_headline(content.given, groups, differences),
        "caveats": sentences.list_caveats(groups, differences, content.trials),
        "missing": content.missing,
        "content": content,
        "num_runs": len(content.runs),
        "cost": sentences.describe_training_time(content.runs),
        "settings": build_settings_table(groups, differences) if groups else None,
        "differences": build_differences_table(differences) if differences else None,
        "runs": build_runs_table(content.everything, partial(_build_link, folder)),
        "other_data": build_other_data_table(content.runs),
        "responses": _draw_responses(content),
        "response_title": sentences.choose_response_title(choose_response(groups), differences),
        "response_note": sentences.explain_response(choose_response(groups), differences),
        "split": sentences.name_splits(judged),
        "num_settings": len(groups or content.trials),
        "label_counts": build_label_count_section(content.given),
        "rounds": build_rounds_sections(content.given),
        "searches": build_search_sections(content.given, partial(_build_trial_link, folder)),
        "labels": build_label_sections(judged, content.baseline),
        "overlaid": overlaid,
        "num_colors": NUM_COLORS,
        "properties": run_description.build_setting_table(overlaid),
        "curves": _draw_curves(overlaid),
        "classes": build_class_section(judged),
        "largest_open": LARGEST_LABELED,
        "shown": shown,
        "evaluation": build_evaluation_section(shown),
        "other_data_sections": build_other_data_sections([*([shown] if shown else []), *content.runs]),
        "has_training": not all(run.is_model for run in content.runs),
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
    for predictor in PREDICTORS:
        prefix = f"response-{predictor}"
        if response.kind == "curve":
            svg = draw_response_curve(response, groups, predictor, content.baseline, prefix)
        elif response.kind == "map":
            svg = draw_response_map(response, groups, predictor, prefix)
        else:
            svg = draw_response_rows(groups, content.differences, predictor, prefix)
        drawings.append(Drawing(predictor, svg))
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


def _describe_commands(content: Content, folder: Path) -> list[RunCommand]:
    whole = len(content.runs) <= MAX_WHOLE_CONFIGURATIONS
    base = content.baseline.runs[0] if content.baseline else None
    name = content.baseline.label if content.baseline else ""
    return [
        RunCommand(
            run=run,
            href=_build_link(folder, run),
            command="" if run.is_model else run_description.build_command(run),
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
