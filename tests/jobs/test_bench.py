from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import bench
from jobs.command import run


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
    assert figures["ratio"] == pytest.approx(figures["clips_per_second"] / figures["floor_clips_per_second"])
    assert figures["ratio_spread"][0] <= figures["ratio"] <= figures["ratio_spread"][1]


def test_too_short_a_run_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["stream", "--steps", "3", "--config", str(tiny / "tiny.yaml")]) == 2
    assert "at least 8" in capsys.readouterr().err


def test_views_are_measured_in_the_units_of_the_floor(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["views", "--json", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    times, shares = figures["milliseconds_per_clip"], figures["times_floor"]
    assert set(times) == {"floor, resize alone", *bench.VIEWS}
    assert shares["floor, resize alone"] == 1
    assert all(value > 0 for value in times.values())
    assert shares["strong"] == pytest.approx(times["strong"] / times["floor, resize alone"], rel=0.05)
