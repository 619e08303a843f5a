"""``jobs.bench serve``: a real server, real clients and the same work without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import bench
from jobs.command import run


def test_serving_is_measured_beside_a_plain_loop(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How fast they are is printed, not tested."""
    words = ["serve", "--json", "--requests", "4", "--repeats", "1", "--config", str(tiny / "tiny.yaml")]
    assert run(bench.main, words) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(figures["clients"]) == {"1", "4", "16"} and figures["requests"] == 4 and figures["files"] == 8
    for one in figures["clients"].values():
        assert one["ratio"] == pytest.approx(one["requests_a_second"] / figures["loop_a_second"], rel=0.05)
        assert 0 < one["p50_ms"] <= one["p99_ms"] and one["n"] == 1
    assert figures["serve_ratio"] == figures["clients"]["16"]["ratio"]
