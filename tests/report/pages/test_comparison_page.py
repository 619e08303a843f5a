"""The page of two models: what stands in its tables and what its picture draws."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import compare as command
from pipeline.analysis.paired_models import compare_models
from pipeline.report.pages.comparison_page import build_summary_table
from tests.analysis.test_paired_models import model
from tests.study_folders import SaveRun


def test_each_models_checkpoint_and_step_stand_in_its_row() -> None:
    knobs = {"clips": 10, "crops": 3}
    told = [{"step": 1000, "protocol": knobs}, {"step": 400, "protocol": knobs | {"checkpoint": "best"}}, {}]
    first, second, third = (replace(model(name, "++-+"), evaluation=own) for name, own in zip("ABC", told, strict=True))
    weights = [row[1].text for row in build_summary_table(compare_models(first, second)).rows]
    assert weights == ["last checkpoint (step 1000)", "checkpoint best on held-out videos (step 400)", ""]
    assert build_summary_table(compare_models(first, third)).rows[1][1].text == "unknown"


def test_the_page_draws_the_gap_of_each_class_between_both_students_of_a_run(make_run: SaveRun, tmp_path: Path) -> None:
    """The longest bar is that of the largest gap; the others are compared with it."""
    run, page = make_run(), tmp_path / "page.html"
    assert command.main([f"{run}:primary", f"{run}:auxiliary", "--out", str(page)]) == 0
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    gaps = {}
    for name in {row["class"] for row in rows}:
        hits = [[int(np.argmax(row[one]) == row["label"]) for one in ("primary", "auxiliary")] for row in rows
                if row["class"] == name]  # fmt: skip
        gaps[f"{name} ({len(hits)})"] = 100 * float(np.mean([one - other for one, other in hits]))
    order = sorted(gaps, key=lambda name: (-gaps[name], name))
    assert len({*gaps.values()}) > 1, "these scores show nothing"
    html = page.read_text(encoding="utf-8")
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert 'aria-label="Gap of each class: actnetformer-0:primary minus actnetformer-0:auxiliary, in points of top-1"' in svg
    assert re.findall(r">([a-z]+ \(\d+\))</text>", svg) == order
    bar = r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" clip-path="[^"]*" style="fill: var\(--series-(\d)\)'
    bars = [(float(end) - float(start), color) for start, end, color in re.findall(bar, svg)]
    assert [color for _, color in bars] == ["0" if gaps[name] >= 0 else "1" for name in order]
    scale = max(abs(length) for length, _ in bars) / max(map(abs, gaps.values()))
    assert [length / scale for length, _ in bars] == pytest.approx([gaps[name] for name in order], abs=0.01)
