from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.clips import decode
from pipeline.clips.decode import DecodeError, UInt8s, Video, decode_clips, decode_moments
from pipeline.clips.isolated_decode import IsolatedDecoder
from pipeline.config import ClipSection, load_config
from pipeline.errors import UserError
from pipeline.files.storage import StorageError
from pipeline.processes.isolation import ProcessLimits
from pipeline.video.frame_cache import MAX_FRAMES, FrameCache, get_frame_cache
from tests.videos import write_numbers

SLOW, FAST = ClipSection(frames=8, fps=8, size=16), ClipSection(frames=8, fps=16, size=16)
PARTS = ClipSection(sampling="segments", frames=8, size=16)
BYTES = 2**24


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    get_frame_cache.cache_clear()


@pytest.fixture
def one(tmp_path: Path) -> Video:
    path = write_numbers(tmp_path / "n.mp4", frames=50, size=(96, 64))
    return Video(str(path), 50, 25.0, False, 96, 64, 0.0, 2.0, "pyav")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The locations of the videos that were opened."""
    locations: list[str] = []

    def read(video: Video, *rest: object) -> decode.Frames:
        locations.append(video.location)
        return decode._read_pyav(video, *rest)  # type: ignore[arg-type]

    monkeypatch.setitem(decode.READERS, "pyav", read)
    return locations


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("cut", [(0.0, 2.0), (0.51, 1.33)])
def test_clips_are_the_same_bytes(one: Video, decoder: str, cut: tuple[float, float]) -> None:
    video = replace(one, decoder=decoder, start=cut[0], end=cut[1])
    for clips in ([SLOW, FAST], [PARTS, PARTS]):
        for moment in (0.0, 0.37, 1.0) if clips[0].fps else (0.0, 0.5, (0.2, 0.7)):
            for position in (0.0, 0.8):
                plain = decode_clips(video, moment, position, clips, 40)
                for kept in (decode_clips(video, moment, position, clips, 40, BYTES) for _ in range(2)):
                    assert all(np.array_equal(a, b) for a, b in zip(plain, kept, strict=True))
    plain_NHWC, shown = decode_moments(video, [0.1, 0.9], [SLOW, FAST], 40)
    kept_NHWC, shown_kept = decode_moments(video, [0.1, 0.9], [SLOW, FAST], 40, BYTES)
    assert np.array_equal(plain_NHWC, kept_NHWC)
    assert all(np.array_equal(a, b) for a, b in zip(shown, shown_kept, strict=True))


def test_a_video_is_opened_once_for_each_size(one: Video, opened: list[str]) -> None:
    for size in (40, 40, 32, 40, 32):
        decode_clips(one, 0.5, 0.5, [SLOW, FAST], size, BYTES)
    assert len(opened) == 2


def test_what_is_not_kept_is_read_every_time(one: Video, tmp_path: Path, opened: list[str]) -> None:
    variable = replace(one, variable_fps=True)
    long_path = write_numbers(tmp_path / "long.mp4", frames=MAX_FRAMES + 1, size=(96, 64))
    long = replace(one, location=str(long_path), frames=MAX_FRAMES + 1, end=(MAX_FRAMES + 1) / 25)
    for video, cache_bytes in ((variable, BYTES), (long, BYTES), (one, 50 * 40 * 60 * 3 - 1)):
        plain = decode_clips(video, 0.5, 0.5, [SLOW, FAST], 40)
        opened.clear()
        for _ in range(2):
            kept = decode_clips(video, 0.5, 0.5, [SLOW, FAST], 40, cache_bytes)
            assert all(np.array_equal(a, b) for a, b in zip(plain, kept, strict=True))
        assert len(opened) == 2


def test_a_video_whose_end_is_damaged_gives_the_frames_that_decode(one: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(video: Video, times: list[np.ndarray], *size: int) -> decode.Frames:
        if max(time.max() for time in times) > 1.9:
            raise DecodeError("frame 49 of 50 cannot be decoded")
        return decode._read_pyav(video, times, *size)

    plain = decode_clips(one, 0.0, 0.5, [FAST, FAST], 40)
    monkeypatch.setitem(decode.READERS, "pyav", read)
    for _ in range(2):
        kept = decode_clips(one, 0.0, 0.5, [FAST, FAST], 40, BYTES)
        assert all(np.array_equal(a, b) for a, b in zip(plain, kept, strict=True))
    with pytest.raises(DecodeError, match="frame 49"):
        decode_clips(one, 1.0, 0.5, [SLOW, SLOW], 40, BYTES)


def test_videos_that_have_found_room_stay() -> None:
    calls: list[str] = []

    def read(cache: FrameCache, name: str, frames: int) -> bool:
        def decode_whole() -> UInt8s:
            calls.append(name)
            return np.zeros((frames, 2, 2, 3), np.uint8)

        return cache.read(name, (frames, 2, 2, 3), decode_whole) is not None

    cache = FrameCache(12 * 10)
    assert [read(cache, *video) for video in (("a", 6), ("b", 5), ("c", 4), ("a", 6), ("d", 1), ("c", 4))] == [
        True, False, True, True, False, True,
    ]  # fmt: skip
    assert calls == ["a", "c"]


def test_a_video_whose_store_did_not_answer_is_kept_the_next_time() -> None:
    cache, answers = FrameCache(12), iter([StorageError("503"), np.zeros((1, 2, 2, 3), np.uint8)])

    def decode_whole() -> UInt8s:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    with pytest.raises(StorageError):
        cache.read("a", (1, 2, 2, 3), decode_whole)
    assert cache.read("a", (1, 2, 2, 3), decode_whole) is cache.read("a", (1, 2, 2, 3), decode_whole)


def test_the_decoding_process_keeps_videos(one: Video) -> None:
    """The file is gone after the first time, and the clips still come."""
    path = Path(one.location)
    plain = decode_clips(one, 0.3, 0.5, [SLOW, FAST], 40)
    out = [np.zeros_like(clip) for clip in plain]
    decoder, forgetful = (IsolatedDecoder(ProcessLimits(), cache_bytes) for cache_bytes in (BYTES, 0))
    for each in (decoder, forgetful):
        each.decode_clips(one, 0.9, 0.5, [SLOW, FAST], 40, out)
    path.unlink()
    decoder.decode_clips(one, 0.3, 0.5, [SLOW, FAST], 40, out)
    assert all(np.array_equal(a, b) for a, b in zip(plain, out, strict=True))
    assert len(decoder.decode_moments(one, [0.3], [SLOW, FAST], 40)[0]) > 0
    with pytest.raises(DecodeError):
        forgetful.decode_clips(one, 0.3, 0.5, [SLOW, FAST], 40, out)


def test_it_must_fit_the_decoding_process() -> None:
    words = ["data.decoded_cache_mb=600", "data.decoder_memory_mb=1024"]
    with pytest.raises(UserError, match="decoded_cache_mb=600 is more than half of decoder_memory_mb=1024"):
        load_config("jobs/configs/demo.yaml", words)
    assert load_config("jobs/configs/demo.yaml", [*words, "data.isolate_decoder=false"]).data.decoded_cache_mb == 600
