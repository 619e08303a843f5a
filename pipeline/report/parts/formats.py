"""Formats tables for the terminal, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.analysis.comparison import Difference, Group
from pipeline.report.parts.tables import Table, join_protocols, sum_hours
from pipeline.run_folder.contents import PREDICTORS

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$",
    "→": r"$\to$", "“": "``", "”": "\'\'", "’": "\'", "…": r"\dots{}", "×": r"$\times$",
}  # fmt: skip


def format_text(table: Table) -> str:
    """Formats a table for a terminal: words to the left, numbers to the right."""
    rows = [table.columns, *(tuple(cell.text for cell in row) for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    columns = list(zip(widths, table.numeric, strict=True))
    lines = [
        "  ".join(text.rjust(width) if right else text.ljust(width) for text, (width, right) in zip(row, columns, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def format_markdown(table: Table) -> str:
    """Formats a table as a Markdown pipe table, followed by its caption."""
    marks = ["---:" if right else "---" for right in table.numeric]
    rows = [table.columns, marks, *(tuple(cell.text for cell in row) for row in table.rows)]
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join([*lines, "", table.caption, ""])


def format_latex(table: Table) -> str:
    """Formats a table as a LaTeX ``table`` with a ``tabular`` in the style of booktabs."""
    columns = "".join("r" if right else "l" for right in table.numeric)
    texts = [table.columns, *(tuple(cell.text for cell in row) for row in table.rows)]
    rows = [" & ".join(map(escape_latex, row)) + r" \\" for row in texts]
    top = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape_latex(table.caption)}}}", r"\end{table}"]
    return "\n".join([*top, rows[0], r"\midrule", *rows[1:], *end]) + "\n"


def escape_latex(text: str) -> str:
    """Escapes a text so that LaTeX prints it as it is."""
    return "".join(LATEX.get(character, character) for character in text)


CSV_FIELDS = (
    "setting", "scored_by", "n", "top1", "sd", "low", "high", "interval_over",
    "baseline", "pairs", "difference", "difference_sd", "difference_low", "difference_high", "difference_over", "p", "p_holm",
    "verdict", "protocol", "hours", "clips", "folders",
)  # fmt: skip


def format_csv(
    groups: Sequence[Group], differences: Sequence[Difference], searched_params: Mapping[Path, Mapping[str, object]]
) -> str:
    """Formats a line for each setting and way to score, in percent and percentage points, unrounded; empty where unknown.

    ``searched_params`` are the values that a search tried, by run folder; each of their keys has a column.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(dict.fromkeys(key for params in searched_params.values() for key in params))
    writer.writerow((*CSV_FIELDS, *keys))
    for group in groups:
        difference = next((one for one in differences if one.group is group), None)
        clips = [run.clips for run in group.runs if run.clips is not None]
        cost = (
            join_protocols(group.runs),
            sum_hours(group),
            sum(clips) if clips else None,
            " ".join(str(run.folder) for run in group.runs),
        )
        params = [searched_params.get(group.runs[0].folder, {}).get(key) for key in keys]
        for predictor in PREDICTORS:
            value = group.get_top1(predictor)
            own = (value.seeds, value.mean, value.sd, value.low, value.high, value.over) if value else (0, *[None] * 5)
            against: tuple[object, ...] = (None,) * 10
            if difference is not None:
                d, p = difference.estimates[predictor], difference.adjusted[predictor]
                against = (difference.baseline.label, d.seeds, d.mean, d.sd, d.low, d.high, d.over, d.p, p)
                against = (*against, difference.describe_verdict(predictor))
            writer.writerow("" if cell is None else cell for cell in (group.label, predictor, *own, *against, *cost, *params))
    return text.getvalue()
