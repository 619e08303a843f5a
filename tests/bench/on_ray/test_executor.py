from __future__ import annotations

import json

import pytest

from jobs import bench
from jobs.command import run
from pipeline.bench.on_ray import executor


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_the_executor_is_measured_in_its_own_thread(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executor, "WORKERS", 2)  # each is a process that imports torch
    assert run(bench.main, ["executor", "--tasks", "2", "--seconds", "3", "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["tasks"]
    assert figures["decode_tasks"] == 2 and 0 < figures["blocks_per_second"] < 4  # of tasks of a second
    cpu = figures["executor_ms_per_block"] / 1e3
    assert 0 < cpu < 1 and figures["most_blocks_per_second"] == pytest.approx(1 / cpu, rel=0.05, abs=1)
    assert run(bench.main, ["executor", "--tasks", "none"]) == 2
    assert "--tasks" in capsys.readouterr().err
