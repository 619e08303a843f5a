"""Tables for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.analysis.comparison import Difference, Group
from pipeline.analysis.run_reader import VIEWS
from pipeline.report.tables import Table, group_hours

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
    "→": r"$\to$", "“": "``", "”": "\'\'", "’": "\'", "…": r"\dots{}", "×": r"$\times$",
}  # fmt: skip


def as_text(table: Table) -> str:
    """For a terminal: words to the left, numbers to the right."""
    rows = [table.columns, *(tuple(cell.text for cell in row) for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    places = list(zip(widths, table.numeric, strict=True))
    lines = [
        "  ".join(text.rjust(width) if right else text.ljust(width) for text, (width, right) in zip(row, places, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def as_markdown(table: Table) -> str:
    """A pipe table and its caption."""
    marks = ["---:" if right else "---" for right in table.numeric]
    rows = [table.columns, marks, *(tuple(cell.text for cell in row) for row in table.rows)]
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([*lines, "", table.caption, ""])


def as_latex(table: Table) -> str:
    """A ``table`` with a ``tabular`` of booktabs; nothing is bold."""
    columns = "".join("r" if right else "l" for right in table.numeric)
    texts = [table.columns, *(tuple(cell.text for cell in row) for row in table.rows)]
    rows = [" & ".join(map(latex, row)) + r" \\" for row in texts]
    top = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{latex(table.caption)}}}", r"\end{table}"]
    return "\n".join([*top, rows[0], r"\midrule", *rows[1:], *end]) + "\n"


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


CSV_FIELDS = (
    "setting", "scored_by", "n", "top1", "sd", "low", "high", "interval_over",
    "baseline", "pairs", "difference", "difference_sd", "difference_low", "difference_high", "difference_over", "p", "p_holm",
    "verdict", "hours", "clips", "folders",
)  # fmt: skip


def as_csv(groups: Sequence[Group], found: Sequence[Difference], chosen: Mapping[Path, Mapping[str, object]]) -> str:
    """A line for each setting and way to score, in percent and points, unrounded; empty where unknown. ``chosen`` by run folder
    is what a search tried there: a column for each key."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(dict.fromkeys(key for params in chosen.values() for key in params))
    writer.writerow((*CSV_FIELDS, *keys))
    for group in groups:
        difference = next((one for one in found if one.group is group), None)
        clips = [run.clips for run in group.runs if run.clips is not None]
        cost = (group_hours(group), sum(clips) if clips else None, " ".join(str(run.folder) for run in group.runs))
        params = [chosen.get(group.runs[0].folder, {}).get(key) for key in keys]
        for view in VIEWS:
            value = group.top1(view)
            own = (value.seeds, value.mean, value.sd, value.low, value.high, value.over) if value else (0, *[None] * 5)
            against: tuple[object, ...] = (None,) * 10
            if difference is not None:
                d, p = difference.estimates[view], difference.adjusted[view]
                against = (difference.baseline.label, d.seeds, d.mean, d.sd, d.low, d.high, d.over, d.p, p)
                against = (*against, difference.verdict(view))
            writer.writerow("" if cell is None else cell for cell in (group.label, view, *own, *against, *cost, *params))
    return text.getvalue()
