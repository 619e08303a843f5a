"""A short soak of a real server: what its judge finds, and that a server lasts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jobs import export, train
from jobs.command import DONE, run
from tests.chaos.soak import Report, soak
from tests.run_folders import write_video

GOOD = Report(Counter(), [], [1000 * 2**20] * 10, [40] * 10, [], 0)


def test_what_a_server_that_does_not_last_shows_is_found() -> None:
    assert GOOD.find_problems() == []
    grown = Report(memory=[1000 * 2**20] * 5 + [1400 * 2**20] * 5, exit_code=0)
    assert grown.find_problems() == ["memory grew from 1000 to 1400 MiB"]
    assert Report(files=[40] * 5 + [90] * 5, exit_code=0).find_problems() == ["open files grew from 40 to 90"]
    assert Report(left=["upload"], exit_code=0).find_problems() == ["left behind: upload"]
    assert Report(wrong=["good: 500"], exit_code=0).find_problems() == ["good: 500"]
    assert Report(exit_code=-9).find_problems() == ["the server ended with exit code -9"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_server_lasts_for_half_a_minute(tiny: Path, tmp_path: Path) -> None:
    """``python -m tests.chaos.soak`` takes minutes."""
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=2", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    assert run(export.main, [str(tmp_path / "tiny"), str(tmp_path / "model")]) == DONE
    videos = []
    for action in ("left", "up"):
        write_video(tmp_path / f"{action}.mp4", action)
        videos.append((tmp_path / f"{action}.mp4").read_bytes())
    report = soak(tmp_path / "model", videos, 30.0, 4, [])
    assert report.find_problems() == []
    kinds = {name.partition(":")[0] for name in report.answers}
    assert kinds >= {"good", "text", "truncated", "garbage", "playlist", "too large", "uri", "broken off", "flipped"}
    assert report.answers["good: 200"] > 20
