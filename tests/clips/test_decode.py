from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.clips import decode
from pipeline.clips.decode import DecodeError, Video, compute_scaled_size, decode_clips
from pipeline.clips.sampling import Moment, compute_clip_times
from pipeline.config import ClipSection
from pipeline.video.exact_reader import FrameConverter
from tests.videos import read_number, write_numbers

SLOW, FAST = ClipSection(frames=8, fps=8, size=16), ClipSection(frames=8, fps=16, size=16)


def video(path: Path, frames: int = 50, fps: float = 25.0, decoder: str = "decord", **changes: object) -> Video:
    base = Video(str(path), frames, fps, False, 160, 96, 0.0, frames / fps, decoder)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("fps", ["15", "25", "30000/1001", "60000/1001"])
def test_the_planned_frames_come_at_any_rate(tmp_path: Path, decoder: str, fps: str) -> None:
    rate = float(Fraction(fps))
    # as wide as high, so that the decoded window shows every bit
    path = write_numbers(tmp_path / "n.mp4", frames=round(2.5 * rate), fps=fps, size=(96, 96))
    one = video(path, round(2.5 * rate), rate, decoder, width=96, height=96, end=2.5)
    for moment in (0.0, 0.37, 1.0):
        clips = decode_clips(one, moment, 0.5, [SLOW, FAST], 64)
        for clip, times in zip(clips, compute_clip_times(moment, 0, 2.5, [SLOW, FAST]), strict=True):
            assert clip.shape == (8, 64, 64, 3)
            assert clip.dtype == np.uint8
            wanted = np.clip(np.floor(times * rate + 1e-4), 0, one.frames - 1)
            assert [read_number(frame) for frame in clip] == wanted.astype(int).tolist()


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_variable_rate_shows_what_was_on_screen(tmp_path: Path, decoder: str) -> None:
    steps = np.cumsum([0] + [20, 20, 20, 200] * 10).tolist()
    path = write_numbers(tmp_path / "v.mp4", frames=len(steps), size=(96, 96), steps=steps)
    seconds = np.array(steps) / 1000
    one = video(path, len(steps), len(steps) / 2.6, decoder, width=96, height=96, end=2.6, variable_fps=True)
    (clip,) = decode_clips(one, 0.5, 0.5, [FAST], 64)
    times = compute_clip_times(0.5, 0, 2.6, [FAST])[0]
    assert [read_number(frame) for frame in clip] == (np.searchsorted(seconds, times + 1e-4, side="right") - 1).tolist()


@pytest.mark.parametrize("moment", [0.0, 0.9, 1.0])
def test_frames_on_the_way_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: float) -> None:
    """FLV tells times only while it is decoded: all frames before the clip would be gigabytes of a long video."""
    steps = np.cumsum([0] + [20, 20, 20, 200] * 40).tolist()
    path = write_numbers(tmp_path / "v.flv", frames=len(steps), size=(96, 96), steps=steps)
    seconds, end = np.array(steps) / 1000, steps[-1] / 1000 + 0.065
    one = video(path, len(steps), len(steps) / end, "pyav", width=96, height=96, end=end, variable_fps=True)
    converted: list[object] = []
    convert = decode.FrameConverter.__call__
    monkeypatch.setattr(decode.FrameConverter, "__call__", lambda self, frame: converted.append(frame) or convert(self, frame))
    slow, fast = decode_clips(one, moment, 0.5, [SLOW, FAST], 64)
    for clip, times in zip((slow, fast), compute_clip_times(moment, 0, end, [SLOW, FAST]), strict=True):
        assert [read_number(frame) for frame in clip] == (np.searchsorted(seconds, times + 1e-4, side="right") - 1).tolist()
    assert 2 < len(converted) <= 16


def test_without_decord_its_files_are_read_by_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none for ARM, and the manifest may come from elsewhere."""
    path = write_numbers(tmp_path / "n.mp4", size=(96, 96))
    one = video(path, width=96, height=96)
    usual = decode_clips(one, 0.3, 0.5, [FAST], 64)[0]
    monkeypatch.setattr(decode, "decord", None)
    numbers = [[read_number(frame) for frame in clip] for clip in (usual, decode_clips(one, 0.3, 0.5, [FAST], 64)[0])]
    assert numbers[0] == numbers[1]


def test_the_window_moves_along_the_longer_side(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    left, center, right = (decode_clips(video(path), 0.5, place, [SLOW], 48)[0] for place in (0.0, 0.5, 1.0))
    assert left.shape == right.shape == (8, 48, 48, 3)
    whole = np.concatenate([left, right], axis=2)
    assert np.abs(whole[:, :, 16:64].astype(int) - center.astype(int)).mean() > 0.5
    # 160x96 scaled to 80x48: left and right share the middle 16 columns
    assert np.array_equal(left[:, :, 32:], right[:, :, :16])
    assert np.array_equal(left[:, :, 16:], center[:, :, :32])


def test_both_decoders_give_the_same_picture(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    one, other = (decode_clips(video(path, decoder=name), 0.4, 0.3, [SLOW], 48)[0].astype(int) for name in ("decord", "pyav"))
    assert np.abs(one - other).mean() < 3


@pytest.mark.parametrize("size", [*range(8, 40), 47, 48, 49, 56, 64, 71, 72, 73, 96, 112, 120, 128])
def test_any_size_can_be_asked_for(tmp_path: Path, size: int) -> None:
    """decord fails at some widths, the exact reader stands in for it there."""
    path = write_numbers(tmp_path / "n.mp4", size=(96, 96))
    (asked,) = decode_clips(video(path, width=96, height=96), 0.5, 0.5, [SLOW], size)
    (exact,) = decode_clips(video(path, width=96, height=96, decoder="pyav"), 0.5, 0.5, [SLOW], size)
    assert np.abs(asked.astype(int) - exact.astype(int)).mean() < 3


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4", frames=100, size=(96, 96))
    (clip,) = decode_clips(video(path, 100, width=96, height=96, start=2.0, end=3.0), 0.5, 0.5, [SLOW], 64)
    numbers = [read_number(frame) for frame in clip]
    assert numbers[0] == 51
    assert numbers[-1] == 73


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.0, (0.0, 1.0)])
def test_no_frame_is_of_another_part(tmp_path: Path, moment: Moment) -> None:
    """A list's next part is another action; the longer clip is four times as long as this part."""
    path = write_numbers(tmp_path / "n.mp4", frames=100, size=(96, 96))
    clips = decode_clips(video(path, 100, width=96, height=96, start=2.0, end=2.24), moment, 0.5, [SLOW, FAST], 64)
    for clip in clips:
        numbers = [read_number(frame) for frame in clip]
        assert numbers[0] == 50 and numbers[-1] == 55 and sorted(numbers) == numbers


def test_short_videos_repeat_their_ends(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4", frames=4, size=(96, 96))
    (clip,) = decode_clips(video(path, 4, width=96, height=96), 0.5, 0.5, [SLOW], 64)
    assert [read_number(frame) for frame in clip] == [0, 0, 0, 0, 3, 3, 3, 3]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_rotated_files_stand_upright(shared_data: Path, decoder: str) -> None:
    path = shared_data / "odd" / "h264_rot90.mp4"
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height, frames, rate = stream.height, stream.width, stream.frames, float(stream.average_rate or 25)
    one = Video(str(path), frames, rate, False, width, height, 0.0, frames / rate, decoder)
    (clip,) = decode_clips(one, 0.5, 0.5, [SLOW], 64)
    other = decode_clips(replace(one, decoder="pyav"), 0.5, 0.5, [SLOW], 64)[0]
    assert clip.shape == (8, 64, 64, 3)
    assert np.abs(clip.astype(int) - other.astype(int)).mean() < 6


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    good = write_numbers(tmp_path / "n.mp4")
    with pytest.raises(DecodeError, match="50 frames, the manifest says 60"):
        decode_clips(video(good, 60), 0.5, 0.5, [SLOW], 48)
    text = tmp_path / "text.mp4"
    text.write_text("no video", encoding="utf-8")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    for path in (text, cut, tmp_path / "absent.mp4"):
        for decoder in ("decord", "pyav"):
            with pytest.raises(DecodeError):
                decode_clips(video(path, decoder=decoder), 0.5, 0.5, [SLOW], 48)


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(160, 96, (80, 48)), (96, 160, (48, 80)), (7, 7, (48, 48)), (101, 100, (48, 48))]
)
def test_scaled_size(width: int, height: int, expected: tuple[int, int]) -> None:
    assert compute_scaled_size(width, height, 48) == expected


@pytest.mark.parametrize("size", [(None, None), (36, 36), (48, 64)])
def test_frames_are_those_of_a_scaler_made_for_each(tmp_path: Path, size: tuple[int | None, int | None]) -> None:
    path = write_numbers(tmp_path / "n.mp4", size=(96, 96))
    convert = FrameConverter(*size)
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            np.testing.assert_array_equal(convert(frame), frame.reformat(*size, format="rgb24").to_ndarray())
