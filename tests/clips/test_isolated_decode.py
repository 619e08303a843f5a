"""Decoders that hang, crash, leak and eat memory: the stream goes on, in order, and what replaced what is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from jobs import prepare, train
from pipeline.clips import isolated_decode
from pipeline.clips.decode import DecodeError, Video, decode_clips, decode_moments
from pipeline.clips.isolated_decode import IsolatedDecoder
from pipeline.clips.source import open_source, read_quarantine_records
from pipeline.config import ClipSection, Config, load_config
from pipeline.processes.isolation import ProcessLimits
from pipeline.ray_cluster.resources import Resources
from pipeline.stream.in_process import load_batches
from pipeline.stream.on_ray import build_ray_stream
from tests.clips import misbehaving
from tests.conftest import TINY
from tests.videos import write_numbers

CLIP = [ClipSection(frames=4, fps=8, size=16)]


def decode(
    here: IsolatedDecoder, video: Video, moment: float, window: float, clips: list[ClipSection], size: int
) -> list[np.ndarray]:
    out = [np.zeros((clip.frames, size, size, 3), np.uint8) for clip in clips]
    here.decode_clips(video, moment, window, clips, size, out)
    return out


REASONS = {
    "hang": "decoder: no result after 5 s",
    "segfault": "decoder: the process crashed (SIGSEGV)",
    "abort": "decoder: the process crashed (SIGABRT)",
    "eat": "decoder: more than 512 MB of memory",
}


@pytest.fixture
def misbehave() -> Iterator[None]:
    """Decoding in this process's children misbehaves on request."""
    misbehaving.install()
    yield
    isolated_decode.decode_clips, isolated_decode.decode_moments = decode_clips, decode_moments
    isolated_decode.get_isolated_decoder.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 good videos, four of which will be decoded badly and two of which make the decoder leak."""
    path = tmp_path_factory.mktemp("misbehaving")
    one = write_numbers(path / "one.mp4", frames=12, size=(48, 48))
    for name in ("a", "b"):
        words = [
            "leak",
            "0",
            "1",
            "2",
            "3",
            "4",
            "5",
            "6",
            "7",
            "8",
            *(["hang", "segfault"] if name == "a" else ["abort", "eat"]),
        ]
        (path / "videos" / name).mkdir(parents=True)
        for word in words:
            shutil.copy(one, path / "videos" / name / f"{word}-{name}.mp4")
    assert prepare.main(["folder", str(path / "videos"), str(path), "--labeled", "2/class", "--processes", "1"]) == 0
    (path / "tiny.yaml").write_text(TINY.format(folder=path), encoding="utf-8")
    return path


def config_of(folder: Path, *words: str) -> Config:
    limits = ["data.video_timeout_seconds=5", "data.decoder_memory_mb=256", "data.max_quarantined_share=1"]
    return load_config(folder / "tiny.yaml", [*limits, *words])


@pytest.mark.usefixtures("misbehave")
@pytest.mark.parametrize("word", REASONS)
def test_each_is_an_error_of_its_video_and_the_next_one_decodes(tmp_path: Path, word: str) -> None:
    good = write_numbers(tmp_path / "good.mp4", frames=12, size=(48, 48))
    bad = shutil.copy(good, tmp_path / f"{word}.mp4")
    one, other = (Video(str(path), 12, 25.0, False, 48, 48, 0.0, 0.48, "decord") for path in (good, bad))
    here = IsolatedDecoder(ProcessLimits(5.0, 256 * 2**20))
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            decode(here, other, 0.5, 0.5, CLIP, 32)
        assert REASONS[word] in str(caught.value)
        clips = decode(here, one, 0.5, 0.5, CLIP, 32)
        assert np.array_equal(clips[0], decode_clips(one, 0.5, 0.5, CLIP, 32)[0])


@pytest.mark.usefixtures("misbehave")
def test_a_leaking_process_is_replaced_and_no_clip_is_lost(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "leak.mp4", frames=12, size=(48, 48))
    video = Video(str(path), 12, 25.0, False, 48, 48, 0.0, 0.48, "decord")
    here = IsolatedDecoder(ProcessLimits(10.0, 256 * 2**20))
    expected = decode_clips(video, 0.5, 0.5, CLIP, 32)[0]
    most = []
    for _ in range(6):
        assert np.array_equal(decode(here, video, 0.5, 0.5, CLIP, 32)[0], expected)
        most.append(max(child.measure_memory() for child in here._idle))
    assert max(most) < 256 * 2**20 and most.count(0) >= 2  # replaced at least twice; it has no memory before it starts again


def test_clips_of_the_child_are_the_same_bytes(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "n.mp4")
    video = Video(str(path), 50, 25.0, False, 160, 96, 0.0, 2.0, "decord")
    here = IsolatedDecoder(ProcessLimits())
    first, second = (decode(here, video, moment, 0.5, CLIP, 48)[0] for moment in (0.2, 0.7))
    assert np.array_equal(first, decode_clips(video, 0.2, 0.5, CLIP, 48)[0])
    assert np.array_equal(second, decode_clips(video, 0.7, 0.5, CLIP, 48)[0])
    assert here._idle[0].call(misbehaving.find_modules, {"pipeline.config", "pydantic", "pyarrow", "torch"}) == set()
    with pytest.raises(DecodeError, match="50 frames, the manifest says 60"):
        decode(here, Video(str(path), 60, 25.0, False, 160, 96, 0.0, 2.4, "decord"), 0.5, 0.5, CLIP, 48)


def check(rows: list[int], videos: np.ndarray, failures: list[dict[str, object]], config: Config) -> None:
    """In order, every slot filled, every misbehaving video recorded with its reason and its replacement by the plan."""
    source, _ = open_source(config)
    assert rows == list(range(config.train.steps * config.data.labeled_per_step))
    planned = source.plan.choose_videos(np.arange(len(rows)))
    names = np.array([Path(source.manifest.locate(row)).name.partition("-")[0] for row in range(len(source.manifest.table))])
    bad = np.isin(names, list(REASONS))
    assert bad[planned].any() and not bad[videos].any()
    assert np.array_equal(planned[~bad[planned]], videos[~bad[planned]])
    assert (names[videos] == "leak").any()
    first = {(int(str(one["row"])), int(str(one["slot"]))): one for one in reversed(failures)}
    assert set(first) == {(int(row), int(slot)) for row, slot in zip(*np.nonzero(bad[planned]), strict=True)}
    for (row, slot), one in first.items():
        assert REASONS[names[planned[row, slot]]] in str(one["reason"])
        candidates = (source.plan.substitute(row, slot, attempt) for attempt in range(1, 33))
        assert videos[row, slot] == next(video for video in candidates if not bad[video])


@pytest.mark.usefixtures("misbehave")
def test_a_pass_over_several_moments_that_hangs_says_nothing_of_a_single_one(tmp_path: Path) -> None:
    """One moment is remembered, so that the third attempt costs no time; frames are the same as in this process."""
    good = write_numbers(tmp_path / "good.mp4", frames=12, size=(48, 48))
    bad = shutil.copy(good, tmp_path / "hang.mp4")
    one, other = (Video(str(path), 12, 25.0, False, 48, 48, 0.0, 0.48, "decord") for path in (good, bad))
    here = IsolatedDecoder(ProcessLimits(2.0, 256 * 2**20))
    for moments, known in (([0.2, 0.8], False), ([0.2], True), ([0.2, 0.8], True)):
        with pytest.raises(DecodeError, match="no result after 2 s"):
            here.decode_moments(other, moments, CLIP, 32)
        assert (other in here._lost) == known
        frames, shown = here.decode_moments(one, [0.2, 0.8], CLIP, 32)
        expected, (places,) = decode_moments(one, [0.2, 0.8], CLIP, 32)
        assert np.array_equal(frames, expected) and np.array_equal(shown[0], places)


@pytest.mark.usefixtures("misbehave")
def test_threads_of_one_process_go_on(folder: Path) -> None:
    config = config_of(folder, "train.steps=5")  # as few as have a bad video and one that leaks, see check
    batches = list(load_batches(open_source(config)[0], config, 0))
    rows = [int(row) for batch in batches for row in batch.rows]
    videos = np.concatenate([batch.videos.numpy() for batch in batches])
    check(rows, videos, [record for batch in batches for record in batch.quarantined], config)


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_the_ray_stream_goes_on(folder: Path) -> None:
    """Real decode tasks, whose worker processes live on: none is started again, and the plan is kept."""
    config = config_of(folder, "train.steps=5")
    source = open_source(config)[0]

    class Misbehaving(type(source)):  # type: ignore[misc]
        def decode_rows(self, *words: object) -> object:
            misbehaving.install()
            return super().decode_rows(*words)

    dataset = build_ray_stream(Misbehaving(**vars(source)), config, 0, Resources(1, 0.5, 0.5, gpu=False))
    dataset.context.execution_options.preserve_order = True
    blocks = dataset.iter_batches(batch_size=None, batch_format="numpy")
    parts = [{name: values[0] for name, values in block.items()} for block in blocks]
    rows = [int(row) for part in parts for row in part["row"]]
    videos = np.concatenate([part["video"] for part in parts])
    check(rows, videos, [record for part in parts for record in read_quarantine_records(part)], config)
    assert ray.is_initialized()


@pytest.mark.usefixtures("misbehave")
def test_a_run_records_them(folder: Path, tmp_path: Path) -> None:
    words = [f"run.storage_path={tmp_path}", "train.steps=4", "data.video_timeout_seconds=5", "data.max_quarantined_share=1"]
    words += ["evaluation.clips=1"]
    assert train.main(["--config", str(folder / "tiny.yaml"), *words, "data.decoder_memory_mb=256"]) == 0
    records = pq.read_table(tmp_path / "tiny" / "quarantine.parquet").to_pylist()
    assert records and all(record["reason"].startswith("decoder: ") and record["replaced_by"] >= 0 for record in records)
