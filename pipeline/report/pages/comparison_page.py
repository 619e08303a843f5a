"""Two models compared: tables for the terminal, and one HTML page with the gap of every class."""

from __future__ import annotations

from pathlib import Path

from pipeline.analysis.paired_models import PairedModels
from pipeline.analysis.statistics import p_text
from pipeline.report.html import SORTING, render_page, script_hash, write_page
from pipeline.report.plots.class_plots import gap_svg
from pipeline.report.plots.drawing import Drawing
from pipeline.report.tables import Cell, Table, interval, percent, signed


def summary_table(pair: PairedModels) -> Table:
    """A row for each model and one for their difference."""
    rows = []
    for model, value in zip((pair.first, pair.second), pair.estimates, strict=True):
        rows.append((Cell(model.name, model.name), percent(value.mean), interval(value), Cell("")))
    difference = pair.difference
    rows.append((Cell("difference"), Cell(signed(difference.mean), difference.mean), interval(difference, difference=True),
                 Cell(f"p {p_text(difference.p)}", difference.p)))  # fmt: skip
    caption = (
        f"Top-1 in percent on {len(pair.ids):,} videos, with the 95 % interval of a bootstrap over videos, paired for the "
        f"difference; p is McNemar's, exact. Both are right on {pair.both:,} videos, only {pair.first.name} on "
        f"{pair.only_first:,}, only {pair.second.name} on {pair.only_second:,}, neither on {pair.neither:,}. Another seed of "
        "either may lie outside: jobs.report compares settings over seeds."
    )
    return Table(("model", "top-1 %", "95 % interval", "McNemar"), (False, True, True, True), tuple(rows), caption)


def class_table(pair: PairedModels) -> Table:
    """A row for each class, by descending gap."""
    rows = [
        (Cell(one.name, one.name), Cell(f"{one.videos:,}", one.videos), percent(one.first), percent(one.second),
         Cell(signed(one.gap), one.gap))
        for one in pair.classes
    ]  # fmt: skip
    columns = ("class", "videos", f"{pair.first.name} %", f"{pair.second.name} %", "gap")
    caption = "Share of each class's videos that is recognized, and the gap in points. Few videos make large gaps by chance."
    return Table(columns, (False, True, True, True, True), tuple(rows), caption)


def write_comparison(pair: PairedModels, path: Path) -> None:
    """Writes the page, whole or not at all. Raises UserError when it cannot be written."""
    first, second = pair.first.name, pair.second.name
    title = f"Gap of each class in points: to the right {first} is better, to the left {second} (number of videos)"
    drawing = Drawing(title, gap_svg(pair.classes, first, second, "gap"))
    context = {
        "pair": pair, "summary": summary_table(pair), "classes": class_table(pair), "drawing": drawing,
        "script": SORTING, "script_hash": script_hash(SORTING),
    }  # fmt: skip
    write_page(render_page("comparison.html.j2", context), path.expanduser().resolve(), "--out")
