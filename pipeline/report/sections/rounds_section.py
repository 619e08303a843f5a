"""The report's section on simulated rounds of labeling: accuracy over labels, and how many labels each strategy needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.analysis.curves import Curve, Panel
from pipeline.analysis.label_rounds import RANDOM, StrategyCurve, compare_with_random, is_rounds, read_curves
from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_record import ReportInput, StudyRecord
from pipeline.report.parts.tables import Cell, Table, format_signed, list_protocols
from pipeline.report.plots.drawing import NUM_COLORS, Drawing
from pipeline.report.plots.line_plots import draw_panel

DASH = "–"


@dataclass(frozen=True)
class RoundsSection:
    """What the page shows of one simulation."""

    study: StudyRecord
    plot: Drawing
    table: Table


def build_rounds_sections(given: ReportInput) -> list[RoundsSection]:
    """Builds a section for each simulation in which a strategy has a round."""
    studies = [study for study in given.studies if is_rounds(study)]
    return [
        RoundsSection(
            study,
            Drawing("Top-1 of both students' mean, by labels", _draw(curves, f"rounds{index}")),
            build_rounds_table(curves, given.list_runs(study)),
        )
        for index, study in enumerate(studies)
        if (curves := read_curves(study))
    ]


def _draw(curves: Sequence[StrategyCurve], prefix: str) -> str:
    """Draws the first curves, as many as there are colors: each seed, and the mean of the seeds."""
    drawn = curves[:NUM_COLORS]
    lines = []
    for index, curve in enumerate(drawn):
        seeds = tuple(np.column_stack([curve.labels, 100 * row]) for row in curve.accuracy)
        mean = np.column_stack([curve.labels, 100 * curve.accuracy.mean(axis=0)])
        lines.append(Curve(index, "", False, seeds, mean))
    first, last = min(c.labels[0] for c in drawn), max(c.labels[-1] for c in drawn)
    panel = Panel(
        "Accuracy over labels", "%", (), limits=(None, None), x_label="labels", x_limits=(first, max(last, first + 1))
    )
    return draw_panel(panel, lines, [curve.strategy for curve in drawn], last, prefix)


def build_rounds_table(curves: Sequence[StrategyCurve], runs: Sequence[RunRecord] = ()) -> Table:
    """Builds the table of strategies: accuracy at the start and the end, gain over random choice, and labels needed. ``runs``
    are those of the study."""
    random = next((curve for curve in curves if curve.strategy == RANDOM), None)
    target = None if random is None else float(random.accuracy.mean(axis=0)[-1])
    rows = []
    for curve in curves:
        gain, needed = compare_with_random(curve, curves), None if target is None else curve.find_labels_for(target)
        interval = DASH
        if gain is not None and gain.low is not None and gain.high is not None:
            interval = f"{format_signed(100 * gain.low)} to {format_signed(100 * gain.high)}"
        rows.append((
            Cell(curve.strategy, curve.strategy),
            Cell(str(len(curve.seeds)), len(curve.seeds)),
            Cell(f"{curve.labels[0]} to {curve.labels[-1]}", curve.labels[-1]),
            *(_format_accuracy(curve, index) for index in (0, -1)),
            Cell(DASH) if gain is None else Cell(format_signed(100 * gain.mean), gain.mean),
            Cell(interval),
            Cell(DASH) if needed is None else Cell(f"{needed:.0f}", needed),
        ))  # fmt: skip
    reached = "" if random is None or target is None else f" ({100 * target:.1f} % at {random.labels[-1]} labels)"
    return Table(
        ("strategy", "n", "labels", "first %", "last %", "over random", "95 % interval", "labels needed"),
        (False, True, True, True, True, True, True, True),
        tuple(rows),
        "Top-1 of the mean of both students, mean ± sd of n seeds. Over random: points above choosing by chance, mean of all "
        "rounds, with Student's t over seeds. Labels needed: how many it takes to reach what random choice reached in its last "
        f"round{reached}, linear between rounds; a dash if that was not reached.{list_protocols(runs)}",
    )


def _format_accuracy(curve: StrategyCurve, index: int) -> Cell:
    values = 100 * curve.accuracy[:, index]
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return Cell(f"{values.mean():.1f}{spread}", float(values.mean()))
