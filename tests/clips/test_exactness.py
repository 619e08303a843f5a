"""For every file that the probe calls ok: frames by random index sets are those of a decode from the first frame on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pipeline.clips.decode import Video, compute_scaled_size, decode_clips
from pipeline.clips.sampling import compute_clip_times, compute_frame_starts, find_frames
from pipeline.config import ClipSection
from pipeline.video.exact_reader import FrameConverter, read_frames
from pipeline.video.probe import Probe, ProbeOptions, probe_file
from tests.video.reference import every_frame, read_index

SIZE = 64
ODD = [
    "audio_first.mp4", "av1.mp4", "gifanim.gif", "h263.3gp", "h264.flv", "h264.ts", "h264_10bit.mp4", "h264_444_322x242.mp4",
    "h264_closed_b3.mp4", "h264_editlist.mp4", "h264_frag.mp4", "h264_intra.mp4", "h264_longgop.mp4", "h264_noidx.avi",
    "h264_odd_321x241.mp4", "h264_opengop.ts", "h264_opengop_b3.mp4", "h264_rot90.mp4", "h264_start5.mkv", "h264_vfr.mkv",
    "h264_vfr.mp4", "hevc_opengop.mp4", "interlaced.mp4", "mjpeg.avi", "mpeg1.mpg", "mpeg2.mpg", "portrait.mp4", "raw.h264",
    "sar43.mp4", "vp9.webm", "wmv_msmpeg4.wmv", "xvid_b2.avi",
]  # fmt: skip


@lru_cache(maxsize=4)
def truth(path: str) -> tuple[Probe, np.ndarray, np.ndarray]:
    """Probe, every frame at decode size, and when each starts."""
    probe = probe_file(path)
    assert probe.status == "ok", probe
    frames = np.stack(every_frame(path, *compute_scaled_size(probe.width, probe.height, SIZE)))
    assert len(frames) == probe.frames
    starts = read_index(path).times if probe.variable_fps else compute_frame_starts(probe.frames, probe.fps)
    return probe, frames, starts


def check_clips(path: str, moment: float, window: float, clips: list[ClipSection]) -> None:
    """Every frame of every clip resembles the frame that belongs there, and no neighbor clearly more."""
    probe, frames, starts = truth(path)
    numbers = (probe.frames, probe.fps, probe.variable_fps, probe.width, probe.height)
    video = Video(path, *numbers, 0.0, probe.duration, probe.decoder)
    width, height = compute_scaled_size(probe.width, probe.height, SIZE)
    left, top = round(window * (width - SIZE)), round(window * (height - SIZE))
    square = frames[:, top : top + SIZE, left : left + SIZE].astype(np.int16)
    for clip, times in zip(
        decode_clips(video, moment, window, clips, SIZE), compute_clip_times(moment, 0.0, probe.duration, clips), strict=True
    ):
        for image, place in zip(clip, find_frames(times, starts), strict=True):
            if probe.decoder == "pyav":
                assert np.array_equal(image, square[place])
            else:  # another scaler: the same frame, not the same bytes
                near = {n: float(np.abs(square[n] - image).mean()) for n in range(place - 3, place + 4) if 0 <= n < len(square)}
                assert near[place] <= min(near.values()) + 0.5 and near[place] < 12, (place, near)


clips_of = st.lists(
    st.one_of(
        st.builds(ClipSection, frames=st.integers(1, 9), fps=st.sampled_from([3.0, 8.0, 30.0]), size=st.just(32)),
        st.builds(ClipSection, sampling=st.just("segments"), frames=st.integers(1, 16), size=st.just(32)),
    ),
    min_size=1,
    max_size=2,
)


@pytest.mark.parametrize("name", ODD)
def test_odd_files(shared_data: Path, name: str) -> None:
    path = str(shared_data / "odd" / name)

    @settings(max_examples=8)
    @given(st.floats(0, 1), st.floats(0, 1), clips_of)
    def check(moment: float, window: float, clips: list[ClipSection]) -> None:
        check_clips(path, moment, window, clips)

    check()


@pytest.mark.parametrize("name", ODD)
def test_the_window_reader_on_odd_files(shared_data: Path, name: str) -> None:
    """Any set of places, to the bit; also where the probe leaves the file to decord."""
    path = str(shared_data / "odd" / name)
    frames, index = every_frame(path, 48, 48), read_index(path)
    assert len(frames) == len(index.times)

    @settings(max_examples=10)
    @given(st.sets(st.integers(0, len(frames) - 1), min_size=1, max_size=6))
    def check(places: set[int]) -> None:
        found = read_frames(path, index, sorted(places), FrameConverter(48, 48))
        assert all(np.array_equal(found[place], frames[place]) for place in places)

    check()


@dataclass(frozen=True)
class Recipe:
    """How a random file is made."""

    codec: str
    suffix: str
    frames: int
    fps: str
    size: tuple[int, int]
    gop: int
    b_frames: int
    options: tuple[tuple[str, str], ...]
    variable: bool
    start: int
    cut: int
    """Packets left out at the beginning when the file is copied: 0 is no copy; decoding must begin without its key frame."""


H264 = st.sampled_from(["", "open-gop=1", "intra-refresh=1", "b-pyramid=normal:scenecut=0", "bframes=0:rc-lookahead=0"]).map(
    lambda words: (("x264-params", words),)
)
KINDS = st.one_of(
    st.tuples(st.just("libx264"), st.sampled_from([".mp4", ".mkv", ".mov", ".ts", ".avi", ".flv"]), H264),
    st.tuples(st.just("libx265"), st.sampled_from([".mp4", ".mkv"]), st.just((("x265-params", "log-level=none"),))),
    st.tuples(st.just("mpeg4"), st.sampled_from([".avi", ".mp4", ".mkv"]), st.just(())),
    st.tuples(st.just("mpeg2video"), st.sampled_from([".mpg", ".ts", ".mkv"]), st.just(())),
    st.tuples(st.just("libvpx"), st.just(".webm"), st.just((("deadline", "realtime"), ("auto-alt-ref", "1")))),
    st.tuples(st.just("libvpx-vp9"), st.just(".webm"), st.just((("deadline", "realtime"), ("cpu-used", "8")))),
    st.tuples(st.just("mjpeg"), st.sampled_from([".avi", ".mkv"]), st.just(())),
)
recipes = st.builds(
    lambda kind, **rest: Recipe(kind[0], kind[1], options=kind[2], **rest),
    kind=KINDS,
    frames=st.integers(2, 70),
    fps=st.sampled_from(["25", "30000/1001", "60", "12"]),
    size=st.sampled_from([(64, 64), (96, 64), (66, 98), (128, 72)]),
    gop=st.sampled_from([1, 2, 7, 12, 250]),
    b_frames=st.sampled_from([0, 1, 2]),
    variable=st.booleans(),
    start=st.sampled_from([0, 0, 777]),
    cut=st.sampled_from([0, 0, 0, 3, 20]),
)


def make(recipe: Recipe, path: Path) -> Path:
    """A moving picture with a texture, so that every frame differs from its neighbors."""
    rate = Fraction(recipe.fps)
    steps = np.cumsum([0, *(1 + (number * 7 % 5 == 0) * 3 * recipe.variable for number in range(recipe.frames))])
    y, x = np.mgrid[0 : recipe.size[1], 0 : recipe.size[0]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(recipe.codec, rate=rate)
        stream.width, stream.height = recipe.size
        stream.pix_fmt = "yuvj420p" if recipe.codec == "mjpeg" else "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames = (
            recipe.gop,
            0 if recipe.codec in ("mjpeg", "libvpx", "libvpx-vp9") else recipe.b_frames,
        )
        context.time_base = 1 / rate
        context.options = {"preset": "ultrafast", "crf": "24"} if recipe.codec in ("libx264", "libx265") else {}
        context.options |= dict(recipe.options)
        for number in range(recipe.frames):
            phase = number * 5
            image = 128 + 60 * np.sin((x + phase) / 7) + 60 * np.sin((y - 2 * phase) / 11)
            frame = av.VideoFrame.from_ndarray(np.repeat(image[:, :, None], 3, 2).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(steps[number]) + recipe.start, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return cut(path, recipe.cut) if recipe.cut else path


def cut(path: Path, packets: int) -> Path:
    """Copy without the first packets, as careless cutters do."""
    short = path.with_name(f"cut{path.suffix}")
    with av.open(str(path)) as source, av.open(str(short), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= packets:
                packet.stream = stream
                target.mux(packet)
    return short


def examples(count: int) -> settings:
    return settings(max_examples=count, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def check_random_file(recipe: Recipe, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = str(make(recipe, Path(folder) / f"video{recipe.suffix}"))
        except (av.FFmpegError, OSError):
            event("the container does not take it")
            return
        probe = probe_file(path)
        event(f"{probe.status}, {probe.decoder}")
        full = probe_file(path, ProbeOptions(depth="full"))
        if probe.status != "ok":
            assert probe.reason
            return
        frames = every_frame(path, 48, 48)
        assert full.status == "ok" and (full.frames, full.decoder) == (probe.frames, probe.decoder)
        assert probe.frames == len(frames)
        index = read_index(path)
        for _ in range(3):
            places = data.draw(st.sets(st.integers(0, len(frames) - 1), min_size=1, max_size=6))
            found = read_frames(path, index, sorted(places), FrameConverter(48, 48))
            assert all(np.array_equal(found[place], frames[place]) for place in places)
        truth.cache_clear()
        for _ in range(2):
            check_clips(path, data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1)), data.draw(clips_of))


@examples(25)
@given(recipes, st.data())
def test_random_files(recipe: Recipe, data: st.DataObject) -> None:
    check_random_file(recipe, data)


@pytest.mark.long
@pytest.mark.timeout(1800)
@examples(600)
@given(recipes, st.data())
def test_many_random_files(recipe: Recipe, data: st.DataObject) -> None:
    check_random_file(recipe, data)
