"""What the page says of pseudo-labels: a sentence, curves and tables for each setting whose runs saved scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.analysis.comparison import Group, foremost
from pipeline.analysis.label_quality import LABELERS, SOURCES, STUDENTS, Said, Thresholds, compare, join, read_said
from pipeline.analysis.run_reader import Run
from pipeline.report.plots.drawing import Drawing
from pipeline.report.plots.line_plots import panel_svg
from pipeline.report.sections import label_tables
from pipeline.report.tables import Table
from pipeline.run_folder.contents import score_parts

MAX_SECTIONS = 4
"""Settings on a page."""
DEFAULT_THRESHOLD = 0.8
"""The paper's, for runs whose configuration is lost."""


@dataclass(frozen=True)
class Learner:
    """One student as the learner."""

    name: str
    answer: str
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class LabelSection:
    """One setting."""

    title: str
    basis: str
    """On how many clips, of which steps."""
    learners: tuple[Learner, ...]
    thresholds: Table
    classes: Table
    problems: tuple[str, ...]


@dataclass(frozen=True)
class LabelSections:
    """Some settings of all that saved scores."""

    shown: tuple[LabelSection, ...]
    note: str
    """Which ones, where not all are."""


def label_sections(groups: Sequence[Group], baseline: Group | None) -> LabelSections:
    """For the baseline and the best settings that saved scores; the runs of one setting are taken together."""
    saved = [group for group in groups if any(score_parts(run.folder) for run in group.runs)]
    chosen = foremost(saved, baseline, MAX_SECTIONS)
    note = f"{len(chosen)} of the {len(saved)} settings that saved scores: the baseline, and those with the highest mean."
    sections = [label_section(group.label, group.runs, f"labels{place}") for place, group in enumerate(chosen)]
    return LabelSections(tuple(one for one in sections if one), note if len(chosen) < len(saved) else "")


def label_section(title: str, runs: Sequence[Run], prefix: str) -> LabelSection | None:
    """None where no run saved a score."""
    read = [read_said(run.folder) for run in runs]
    parts = [said for said, _ in read if said is not None]
    if not parts:
        return None
    said, own = join(parts), own_thresholds(runs[0])
    if not len(said.steps):
        return None
    steps, videos = sorted(set(said.steps.tolist())), len(set(said.videos.tolist()))
    known = (said.labels >= 0).mean()
    basis = (
        f"{len(said.steps):,} weak views of {videos:,} unlabeled videos in {len(steps):,} saved steps "
        f"({steps[0]:,} to {steps[-1]:,})"
        f"{f' of {len(parts)} runs' if len(parts) > 1 else ''}; the hidden class is known for {100 * known:.0f} % of them."
    )  # fmt: skip
    learners = tuple(_learner(said, name, own, f"{prefix}-{name}") for name in STUDENTS)
    problems = tuple(f"{run.name}: {problem}" for run, (_, found) in zip(runs, read, strict=True) for problem in found)
    tables = label_tables.thresholds_table(said, own), label_tables.classes_table(said, own, class_names(runs[0], said))
    return LabelSection(title, basis, learners, *tables, problems)


def _learner(said: Said, name: str, own: Thresholds, prefix: str) -> Learner:
    names, last = [f"{source}" for source in SOURCES], float(said.steps.max())
    drawings = tuple(
        Drawing(panel.title, panel_svg(replace(panel, title=f"{panel.title}, {name}"), lines, names, last, f"{prefix}-{place}"))
        for place, (panel, lines) in enumerate(label_tables.panels(said, name, own))
    )
    return Learner(name, label_tables.answer(compare(said, name, own)), drawings)


def own_thresholds(run: Run) -> dict[str, float]:
    """The confidence thresholds that the run was trained with, by labeler."""
    shared = run.config.get("method.confidence_threshold", DEFAULT_THRESHOLD)
    own = {name: run.config.get(f"method.labels.{name}_threshold") for name in LABELERS}
    return {name: float(shared if limit is None else limit) for name, limit in own.items()}


def class_names(run: Run, said: Said) -> list[str]:
    """K names, numbers where facts.json is lost."""
    names = run.facts.get("classes") or run.evaluation.get("classes") or []
    return list(names) if len(names) == said.num_classes else [str(number) for number in range(said.num_classes)]
