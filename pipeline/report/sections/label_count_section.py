"""The report's plots of accuracy over the number of labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.analysis.accuracy_by_labels import LabelCurve, build_label_curves
from pipeline.analysis.curves import Curve, Panel
from pipeline.analysis.label_rounds import is_rounds
from pipeline.analysis.records.study_record import ReportInput
from pipeline.report.plots.drawing import NUM_COLORS, Drawing
from pipeline.report.plots.line_plots import draw_panel
from pipeline.run_folder.contents import PREDICTORS


@dataclass(frozen=True)
class LabelCountSection:
    """What the page shows of runs with different numbers of labels."""

    names: list[str]
    """Of the lines, in the order of their colors."""
    plots: list[Drawing]
    """One for each way to score."""


def build_label_count_section(given: ReportInput) -> LabelCountSection | None:
    """Builds the section; None if no setting was run with several numbers of labels.

    Simulated rounds of labeling have a section of their own.
    """
    simulated = {run.folder for study in given.studies if is_rounds(study) for run in given.list_runs(study)}
    curves = build_label_curves([run for run in given.runs if run.folder not in simulated])[:NUM_COLORS]
    plots = [Drawing(predictor, _draw(curves, predictor)) for predictor in PREDICTORS] if curves else []
    return LabelCountSection([curve.name for curve in curves], plots) if curves else None


def _draw(curves: list[LabelCurve], predictor: str) -> str:
    """Draws each seed, and the mean of the seeds of each number of labels."""
    lines = []
    for index, curve in enumerate(curves):
        by_count = curve.top1[predictor]
        seeds = sorted({seed for values in by_count.values() for seed in values})
        of_seeds = [[(count, values[seed]) for count, values in by_count.items() if seed in values] for seed in seeds]
        means = [(count, float(np.mean(list(values.values())))) for count, values in by_count.items()]
        lines.append(Curve(index, "", False, tuple(map(np.array, of_seeds)), np.array(means)))
    first, last = min(curve.counts[0] for curve in curves), max(curve.counts[-1] for curve in curves)
    panel = Panel(
        f"Top-1 of the {predictor} over labels", "%", (), limits=(None, None), x_label="labels", x_limits=(first, last)
    )
    return draw_panel(panel, lines, [curve.name for curve in curves], last, f"labels-{predictor}")
