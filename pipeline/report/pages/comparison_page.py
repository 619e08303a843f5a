"""The comparison of two models: tables for the terminal, and one HTML page with the gap of every class."""

from __future__ import annotations

from pathlib import Path

from pipeline.analysis.paired_models import PairedModels
from pipeline.analysis.statistics import format_p
from pipeline.evaluation.protocol import describe_checkpoint
from pipeline.report.parts.html import SORTING, hash_script, render_page, write_page
from pipeline.report.parts.tables import Cell, Table, build_interval_cell, build_percent_cell, format_signed
from pipeline.report.plots.class_plots import draw_class_gaps
from pipeline.report.plots.drawing import Drawing


def build_summary_table(pair: PairedModels) -> Table:
    """Builds a table with a row for each model and one for their difference."""
    rows = []
    for model, value in zip((pair.first, pair.second), pair.estimates, strict=True):
        weights = describe_checkpoint(model.evaluation) or "unknown"
        row = (Cell(model.name, model.name), Cell(weights, weights), build_percent_cell(value.mean), build_interval_cell(value))
        rows.append((*row, Cell("")))
    difference = pair.difference
    rows.append((
        Cell("difference"), Cell(""), Cell(format_signed(difference.mean), difference.mean),
        build_interval_cell(difference, difference=True), Cell(f"p {format_p(difference.p)}", difference.p),
    ))  # fmt: skip
    caption = (
        f"Top-1 in percent on {len(pair.ids):,} videos, with the 95 % interval of a bootstrap over videos, paired for the "
        f"difference; p is McNemar's, exact. Both are right on {pair.both:,} videos, only {pair.first.name} on "
        f"{pair.only_first:,}, only {pair.second.name} on {pair.only_second:,}, neither on {pair.neither:,}. Another seed of "
        f"either may lie outside: jobs.report compares settings over seeds. {pair.protocol}".rstrip()
    )
    columns = ("model", "weights", "top-1 %", "95 % interval", "McNemar")
    return Table(columns, (False, False, True, True, True), tuple(rows), caption)


def build_class_gaps_table(pair: PairedModels) -> Table:
    """Builds a table with a row for each class, by descending gap."""
    rows = [
        (Cell(gap.name, gap.name), Cell(f"{gap.videos:,}", gap.videos),
         build_percent_cell(gap.first), build_percent_cell(gap.second), Cell(format_signed(gap.gap), gap.gap))
        for gap in pair.classes
    ]  # fmt: skip
    columns = ("class", "videos", f"{pair.first.name} %", f"{pair.second.name} %", "gap")
    caption = "Share of each class's videos that is recognized, and the gap in points. Few videos make large gaps by chance."
    return Table(columns, (False, True, True, True, True), tuple(rows), caption)


def write_comparison_page(pair: PairedModels, path: Path) -> None:
    """Writes the page completely or not at all. Raises UserError if it cannot be written."""
    first, second = pair.first.name, pair.second.name
    title = f"Gap of each class in points: to the right {first} is better, to the left {second} (number of videos)"
    drawing = Drawing(title, draw_class_gaps(pair.classes, first, second, "gap"))
    context = {
        "pair": pair, "summary": build_summary_table(pair), "classes": build_class_gaps_table(pair), "drawing": drawing,
        "script": SORTING, "script_hash": hash_script(SORTING),
    }  # fmt: skip
    write_page(render_page("comparison.html.j2", context), path.expanduser().resolve(), "--out")
