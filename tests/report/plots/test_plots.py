"""Curves and drawings: thinning keeps means and gaps, labels keep apart, nothing depends on the clock."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.comparison import group_runs
from pipeline.analysis.curves import MAX_POINTS, MAX_POINTS_OF_PANEL, PANELS, build_curves, thin_points
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.report.plots.drawing import format_tick, spread_boxes
from pipeline.report.plots.line_plots import draw_confusion, draw_panel

BOXES = st.lists(st.tuples(st.floats(-50, 250), st.floats(1, 30)), min_size=1, max_size=6)


@given(st.integers(1, 3000))
def test_thinning_keeps_the_ends_order_and_mean(n: int) -> None:
    points = np.stack([np.arange(n), np.arange(n) ** 2.0], axis=1)
    few = thin_points(points)
    assert len(few) == min(n, MAX_POINTS)
    assert (np.diff(few[:, 0]) > 0).all()
    sizes = [len(part) for part in np.array_split(points, len(few))]
    assert np.average(few[:, 1], weights=sizes) == pytest.approx(points[:, 1].mean())


def test_a_bin_of_nothing_stays_a_gap() -> None:
    points = np.array([[1, 1.0], [2, np.nan], [3, np.nan], [4, np.nan], [5, 3.0], [6, 5.0]])
    assert thin_points(points, 3)[:, 1] == pytest.approx([1.0, np.nan, 4.0], nan_ok=True)


@given(BOXES)
def test_labels_do_not_overlap_and_stay_inside_when_they_fit(boxes: list[tuple[float, float]]) -> None:
    wanted, heights = [y for y, _ in boxes], [height for _, height in boxes]
    centers = spread_boxes(wanted, heights, 0, 200)
    for low, high in pairwise(np.argsort(centers)):
        assert centers[high] - centers[low] >= (heights[low] + heights[high]) / 2 - 1e-6
    for center, height in zip(centers, heights, strict=True):
        assert center - height / 2 >= -1e-6 and center + height / 2 <= 200 + 1e-6


def test_a_label_with_room_stays_beside_its_line() -> None:
    assert spread_boxes([10.0, 100.0], [10, 10], 0, 200) == [10.0, 100.0]


def test_the_mean_is_over_the_seeds_that_reached_the_step(make_run: Any) -> None:
    folders = [make_run(seed=seed) for seed in (0, 1)]
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines()
    (folders[1] / "metrics.jsonl").write_text("\n".join(lines[:50]))
    groups = group_runs(read_report_input(folders).runs)
    (curve,) = build_curves(PANELS[0], groups)
    assert [len(points) for points in curve.seeds] == [100, 50] and len(curve.mean) == 100
    assert curve.mean[0, 1] == pytest.approx(np.mean([points[0, 1] for points in curve.seeds]))
    assert curve.mean[99, 1] == curve.seeds[0][99, 1]


def test_panels_without_values_are_not_drawn(make_run: Any) -> None:
    groups = group_runs(read_report_input([make_run(method="supervised")]).runs)
    drawn = [panel.title for panel in PANELS if build_curves(panel, groups)]
    assert drawn == ["Total loss", "Supervised loss", "Gradient norm", "Learning rate", "Throughput"]


def test_a_panel_is_text_in_the_pages_colors(make_run: Any) -> None:
    groups = group_runs(read_report_input([make_run()]).runs)
    panel = PANELS[1]
    svg = draw_panel(panel, build_curves(panel, groups), ["actnetformer"], 1000, "x1")
    words = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"primary", "auxiliary", "cross-entropy, nats", "optimizer step", "1,000"} <= set(words)
    assert "var(--series-0)" in svg and "var(--series-1)" in svg and 'aria-label="Supervised loss"' in svg
    assert svg == draw_panel(panel, build_curves(panel, groups), ["actnetformer"], 1000, "x1")
    assert all(name.startswith("x1-") for name in re.findall(r'\bid="([^"]+)"', svg))


def test_many_settings_leave_the_names_to_the_legend_and_stay_small(make_run: Any) -> None:
    folders = [make_run(seed=seed, overrides=(f"method.contrast.weight={w}", f"run.name=w{w}-{seed}"))
               for w in range(8) for seed in range(3)]  # fmt: skip
    groups = group_runs(read_report_input(folders).runs)
    lines = build_curves(PANELS[1], groups)
    assert sum(len(points) for curve in lines for points in (*curve.seeds, curve.mean)) <= MAX_POINTS_OF_PANEL
    svg = draw_panel(PANELS[1], lines, [group.label for group in groups], 1000, "x")
    assert "primary" not in re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_one_point_is_visible(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    groups = group_runs(read_report_input([folder]).runs)
    assert "<use" in draw_panel(PANELS[0], build_curves(PANELS[0], groups), ["unknown"], 1, "x")


def test_class_names_are_no_markup_and_no_formulas() -> None:
    svg = draw_confusion(np.array([[3, 1], [0, 2]]), ["$a$ & <b>", 'say "hi"'], 'of "x" <y>', "c")
    assert "$a$ &amp; &lt;b&gt;" in svg and "<b>" not in svg
    counts = [word for word in re.findall(r"<text[^>]*>([^<]+)</text>", svg) if word.isdigit()]
    assert sorted(counts) == ["1", "2", "3"]


def test_ticks_read_as_people_write_them() -> None:
    assert [format_tick(value) for value in (0.025, 1500, -0.5, 20)] == ["0.025", "1,500", "−0.5", "20"]
