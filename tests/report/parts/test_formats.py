"""Tables as Markdown, LaTeX and text: what they hold, and nothing that would break them."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.analysis.records.study_record import Objective, StudyRecord, TrialRecord
from pipeline.report.parts.formats import escape_latex, format_latex, format_markdown, format_text
from pipeline.report.parts.tables import Cell, Table, build_trials_table, format_hours, format_number, shorten_key

TABLE = Table(
    ("setting", "mean %"), (False, True),
    ((Cell("a|b & 50% of $x_1$", "a"), Cell("71.2 ± 1.1", 71.2)), (Cell(r"{back\slash}~^#", "b"), Cell("–"))),
    "“Top-1”, n < 3 → few…",
)  # fmt: skip


def test_markdown_escapes_pipes_and_aligns() -> None:
    lines = format_markdown(TABLE).splitlines()
    assert lines[:3] == ["| setting | mean % |", "| --- | ---: |", r"| a\|b & 50% of $x_1$ | 71.2 ± 1.1 |"]
    assert lines[-1] == TABLE.caption


def test_latex_escapes_what_is_special() -> None:
    assert escape_latex("50% & $x_1$ ± −") == r"50\% \& \$x\_1\$ $\pm$ $-$"
    text = format_latex(TABLE)
    assert r"\begin{tabular}{lr}" in text and r"a|b \& 50\% of \$x\_1\$ & 71.2 $\pm$ 1.1 \\" in text and "textbf" not in text
    assert text.isascii()


def test_text_has_numbers_to_the_right() -> None:
    lines = format_text(TABLE).splitlines()
    assert lines[0].startswith("setting ") and lines[0].endswith("    mean %") and lines[3].endswith(" –")
    assert len(set(map(len, lines))) == 1


def test_numbers_and_names_are_short() -> None:
    assert [format_number(value) for value in (0.025, 1500, -0.5, 1e-5, 8.0)] == ["0.025", "1,500", "−0.5", "1e−05", "8"]
    assert [format_hours(value) for value in (123.45, 1.234, 0.0123)] == ["123.5", "1.23", "0.012"]
    keys = ["primary.clip.fps", "auxiliary.clip.fps", "method.contrast.weight"]
    assert [shorten_key(key, keys) for key in keys] == ["primary.clip.fps", "auxiliary.clip.fps", "contrast.weight"]


def test_trials_come_best_first_and_the_unjudged_last() -> None:
    given = ((1, "complete", "a", 0.5), (2, "pruned", "b", 0.9), (3, "failed", "a", None), (4, "complete", "b", 0.7))
    trials = tuple(
        TrialRecord(n, state, {"lr": 0.1 * n, "kind": kind}, {} if value is None else {"mean": value}, 60.0 * n, None)
        for n, state, kind, value in given
    )
    study = StudyRecord(Path("x"), "x", "search", trials=trials)
    table = build_trials_table(study)
    assert [row[0].text for row in table.rows] == ["4", "1", "2", "3"]
    assert table.columns == ("trial", "state", "lr", "kind", "mean top-1, %", "minutes")
    assert table.numeric == (True, False, True, False, True, True)
    assert table.rows[-1][4] == Cell("–", None)
    lowest = build_trials_table(StudyRecord(Path("x"), "x", "search", objectives=(Objective("mean", False),), trials=trials))
    assert [row[0].text for row in lowest.rows] == ["1", "4", "2", "3"]
    assert re.match("Trials of x, the best first by mean", table.caption)
