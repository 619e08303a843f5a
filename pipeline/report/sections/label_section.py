"""The report's section on the quality of pseudo-labels: a sentence, curves and tables for each setting whose runs saved
scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.analysis.comparison import Group, select_best_groups
from pipeline.analysis.label_quality import (
    FILE,
    LABELERS,
    SOURCES,
    SavedScores,
    Thresholds,
    compare_sources,
    join_scores,
    read_saved_scores,
)
from pipeline.analysis.records.run_record import RunRecord
from pipeline.config import STUDENTS
from pipeline.manifest.schema import OTHER_CLASS
from pipeline.report.parts.tables import Table
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.line_plots import draw_panel
from pipeline.report.sections import label_tables
from pipeline.run_folder.contents import list_score_files

MAX_SECTIONS = 4
"""The number of settings on a page at most."""
DEFAULT_THRESHOLD = 0.8
"""The paper's threshold, for runs whose configuration is lost."""


@dataclass(frozen=True)
class LearnerSection:
    """The labels that one student learns from."""

    name: str
    answer: str
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class LabelQualitySection:
    """What the page shows of one setting."""

    title: str
    basis: str
    """The number of clips and the steps that the section is based on."""
    learners: tuple[LearnerSection, ...]
    thresholds: Table
    classes: Table
    problems: tuple[str, ...]


@dataclass(frozen=True)
class LabelQualitySections:
    """Sections of some of the settings that saved scores."""

    shown: tuple[LabelQualitySection, ...]
    note: str
    """Which settings are shown; empty if all are."""


def build_label_sections(groups: Sequence[Group], baseline: Group | None) -> LabelQualitySections:
    """Builds the sections of the baseline and of the best settings that saved scores; the runs of one setting are joined."""
    saved = [group for group in groups if any(list_score_files(run.folder) for run in group.runs)]
    chosen = select_best_groups(saved, baseline, MAX_SECTIONS)
    note = f"{len(chosen)} of the {len(saved)} settings that saved scores: the baseline, and those with the highest mean."
    sections = [build_label_section(group.label, group.runs, f"labels{index}") for index, group in enumerate(chosen)]
    return LabelQualitySections(tuple(filter(None, sections)), note if len(chosen) < len(saved) else "")


def build_label_section(title: str, runs: Sequence[RunRecord], prefix: str) -> LabelQualitySection | None:
    """Builds the section of one setting; None if none of its runs saved a score. ``prefix`` begins the ids of its drawings."""
    read = [read_saved_scores(run.folder) for run in runs]
    parts = [scores for scores, _ in read if scores is not None]
    if not parts:
        return None
    scores, thresholds = join_scores(parts), read_own_thresholds(runs[0])
    if not len(scores.steps):
        return None
    steps, videos = sorted(set(scores.steps.tolist())), len(set(scores.videos.tolist()))
    known, others = (scores.labels != -1).mean(), (scores.labels == OTHER_CLASS).mean()
    basis = (
        f"{len(scores.steps):,} weak views of {videos:,} unlabeled videos in {len(steps):,} saved steps "
        f"({steps[0]:,} to {steps[-1]:,})"
        f"{f' of {len(parts)} runs' if len(parts) > 1 else ''}; the hidden class is known for {100 * known:.0f} % of them"
        f"{f', and {100 * others:.0f} % show none of the classes' if others else ''}."
    )  # fmt: skip
    learners = tuple(_build_learner_section(scores, name, thresholds, f"{prefix}-{name}") for name in STUDENTS)
    problems = tuple(f"{run.name}: {problem}" for run, (_, texts) in zip(runs, read, strict=True) for problem in texts)
    threshold_table = label_tables.build_thresholds_table(scores, thresholds)
    class_table = label_tables.build_classes_table(scores, thresholds, read_class_names(runs[0], scores))
    return LabelQualitySection(title, basis, learners, threshold_table, class_table, problems)


def _build_learner_section(scores: SavedScores, name: str, thresholds: Thresholds, prefix: str) -> LearnerSection:
    last = float(scores.steps.max())
    drawings = []
    for index, (panel, lines) in enumerate(label_tables.build_panels(scores, name, thresholds)):
        svg = draw_panel(replace(panel, title=f"{panel.title}, {name}"), lines, SOURCES, last, f"{prefix}-{index}")
        drawings.append(Drawing(panel.title, svg))
    answer = label_tables.describe_comparison(compare_sources(scores, name, thresholds))
    return LearnerSection(name, answer, tuple(drawings))


def read_own_thresholds(run: RunRecord) -> dict[str, float]:
    """Reads the confidence thresholds that the run was trained with, by labeler."""
    shared = run.config.get("method.confidence_threshold", DEFAULT_THRESHOLD)
    thresholds = {name: run.config.get(f"method.labels.{name}_threshold") for name in LABELERS}
    if run.config.get("method.file_label.weight"):
        thresholds[FILE] = run.config.get("method.file_label.threshold")
    return {name: float(shared if limit is None else limit) for name, limit in thresholds.items()}


def read_class_names(run: RunRecord, scores: SavedScores) -> list[str]:
    """Reads the names of the K classes; their numbers if facts.json is lost."""
    names = run.facts.get("classes") or run.evaluation.get("classes") or []
    return list(names) if len(names) == scores.num_classes else [str(number) for number in range(scores.num_classes)]
