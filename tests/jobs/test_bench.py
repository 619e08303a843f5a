from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import bench
from jobs.command import run
from pipeline.bench.views import VIEWS
from pipeline.manifest.scale import measure_sizes


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_stream_prints_one_json_object_last(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real stream, real floor; how fast they are is printed, not tested."""
    words = ["stream", "--json", "--steps", "16", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]
    assert run(bench.main, words) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["clips_per_repeat"] == 16 * 2 * 3
    assert figures["clips_per_second"] > 0
    assert figures["stream_ratio"] == pytest.approx(figures["clips_per_second"] / figures["floor_clips_per_second"], rel=1e-3)
    assert figures["spread"][0] <= figures["stream_ratio"] == figures["median"] <= figures["spread"][1] and figures["n"] == 1


def test_too_short_a_run_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["stream", "--steps", "3", "--config", str(tiny / "tiny.yaml")]) == 2
    assert "at least 8" in capsys.readouterr().err


def test_an_option_of_another_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--steps", "8"]) == 2
    assert "bench manifest takes no --steps" in capsys.readouterr().err


def test_views_are_measured_in_the_units_of_the_floor(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["views", "--json", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    views = figures["views"]
    assert set(views) == {"floor, resize alone", *VIEWS}
    assert views["floor, resize alone"]["floor_ratio"] == 1
    assert all(view["milliseconds_per_clip"] > 0 for view in views.values())
    floor = views["floor, resize alone"]["milliseconds_per_clip"]
    assert views["strong"]["floor_ratio"] == pytest.approx(views["strong"]["milliseconds_per_clip"] / floor, rel=0.05)


def test_manifest_prints_a_column_for_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--rows", "4000,8000", "--json"]) == 0
    small, large = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["sizes"]
    assert (small["rows"], large["rows"]) == (4000, 8000)
    stages = {"generate", "split", "table", "write", "fingerprint", "label", "open", "summarize"}
    assert stages < set(small) and small["peak_mb"] > 50


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_million_rows_take_bounded_memory_and_linear_time() -> None:
    small, large = measure_sizes([100_000, 1_000_000])
    assert large["peak_mb"] < 1500
    assert large["seconds"] < 40 * small["seconds"]  # 11 on a quiet machine, 20 on a busy one; quadratic would be 100


@pytest.mark.parametrize("rows", ["many", "100", "10000,"])
def test_sizes_that_cannot_be_measured(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["manifest", "--rows", rows]) == 2
    assert f"--rows {rows}" in capsys.readouterr().err
