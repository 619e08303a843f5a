"""Sample clips: the choice is fair and fixed, thumbnails are frames of the right moment."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.analysis.records.run_reader import read_run_record
from pipeline.analysis.records.run_record import Predictions
from pipeline.manifest.schema import Manifest
from pipeline.report.sections.sample_clips import NUM_FRAMES, SIDE, build_samples, choose_clips, decode_thumbnails


def predictions(primary_right: list[bool], auxiliary_right: list[bool], labels: list[int] | None = None) -> Predictions:
    def scores(right: list[bool]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([[0.9, 0.1] if ok else [0.1, 0.9] for ok in right])

    both = {"primary": scores(primary_right), "auxiliary": scores(auxiliary_right)}
    ids = tuple(f"clip{index}" for index in range(len(primary_right)))
    known = np.array(labels or [0] * len(ids), dtype=np.int64)
    return Predictions(ids, known, {**both, "mean": (both["primary"] + both["auxiliary"]) / 2}, ("a", "b"))


def test_every_outcome_that_occurs_is_shown() -> None:
    primary, auxiliary = [True] * 50 + [False, True, False], [True] * 50 + [True, False, False]
    chosen = choose_clips(predictions(primary, auxiliary), 8)
    assert len(chosen) == len(set(chosen)) == 8
    assert {50, 51, 52} <= set(chosen)


def test_the_choice_is_fixed_and_unlabeled_clips_are_left_out() -> None:
    found = predictions([True, True, False], [True, True, False], labels=[0, -1, 0])
    assert choose_clips(found, 8) == choose_clips(found, 8) == [0, 2]


def test_frames_are_evenly_spaced_and_upright(manifest: Manifest) -> None:
    row = manifest.table["id"].to_pylist().index("right_0.mp4")
    frames = decode_thumbnails(manifest.locate(row))
    assert len(frames) == NUM_FRAMES and all(frame.shape == (SIDE, SIDE * 96 // 64, 3) for frame in frames)
    centers = [float(np.nonzero(frame[..., 0] > 150)[1].mean()) for frame in frames]
    # the square moves 2 of 96 pixels a frame to the right, 4 frames from one thumbnail to the next
    assert np.diff(centers) == pytest.approx([8 * SIDE / 64] * 5, abs=2)


def test_a_part_of_a_video_is_shown_as_that_part(manifest: Manifest) -> None:
    path = manifest.locate(manifest.table["id"].to_pylist().index("right_0.mp4"))
    whole, late = decode_thumbnails(path), decode_thumbnails(path, 0.5, 1.0)
    place = [np.nonzero(frames[0][..., 0] > 150)[1].mean() for frames in (whole, late)]
    assert place[1] > place[0] + 10


def test_no_video_is_an_error_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(av.error.FFmpegError):
        decode_thumbnails(str(tmp_path / "x.mp4"))


def test_samples_carry_both_students_and_real_frames(make_run: Any) -> None:
    run = read_run_record(make_run())
    found = build_samples(run)
    assert len(found) == 8 and {verdict.right for sample in found for verdict in sample.student_predictions} == {True, False}
    for sample in found:
        assert [verdict.student for verdict in sample.student_predictions] == ["primary", "auxiliary"]
        assert all(verdict.right == (verdict.predicted == sample.true_class) for verdict in sample.student_predictions)
        image = Image.open(io.BytesIO(base64.b64decode(sample.frames[0].partition(",")[2])))
        assert len(sample.frames) == NUM_FRAMES and min(image.size) == SIDE
