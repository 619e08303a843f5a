"""The page of timelines, where a video is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.prediction.input_videos import InputVideo
from pipeline.report.pages import timeline_page


def test_a_video_that_vanished_after_it_was_predicted_has_a_reason_on_the_page(tmp_path: Path) -> None:
    source: Any = SimpleNamespace(manifest=SimpleNamespace(classes=("a",)))
    gone = str(tmp_path / "gone.mp4")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timeline_page, "replace", lambda source, **_: source)
        frames, _, _, problem = timeline_page.read_small_frames(source, InputVideo(gone, gone))
    assert frames == [] and problem.startswith("no frames: ") and "no such file" in problem
