"""Smaller copies have the same frames at the same times; no original is overwritten, and an interrupted run continues."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from jobs import prepare
from jobs.command import DONE, USER_ERROR, run
from pipeline.clips.decode import Video, decode_clips
from pipeline.clips.sampling import compute_clip_times, compute_frame_starts, find_frames
from pipeline.config import ClipSection
from pipeline.manifest.schema import read_manifest
from pipeline.prepare.resized_copies import CopyTask, make_copies, make_copy, name_copies
from pipeline.video.probe import probe_file
from tests.video.reference import every_frame, read_index
from tests.videos import number_frame, read_number, write_numbers


def test_frames_and_times_are_kept(tmp_path: Path) -> None:
    steps = np.cumsum([0] + [40, 40, 120] * 9).tolist()
    source = write_numbers(tmp_path / "v.mkv", frames=len(steps), size=(320, 192), steps=steps)
    probe = probe_file(str(source))
    copy = CopyTask(str(source), str(tmp_path / "copies" / "v.mp4"), 96, probe.fps, probe.variable_fps)
    assert make_copy(copy) == ""
    small = probe_file(copy.target)
    assert (small.status, small.frames, small.width, small.height, small.decoder) == ("ok", 28, 160, 96, "decord")
    assert small.variable_fps and small.duration == pytest.approx(probe.duration, abs=1e-3)
    assert [read_number(frame) for frame in every_frame(copy.target)] == list(range(28))
    np.testing.assert_allclose(read_index(copy.target).times, np.array(steps) / 1000, atol=1e-3)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_clips_from_anywhere_in_a_copy_show_the_frames_that_belong_there(tmp_path: Path, decoder: str) -> None:
    """Both decoders seek in the copy; frame numbers are read from the pixels."""
    source = write_numbers(tmp_path / "v.mp4", frames=150, fps="30", size=(320, 320), gop=250)
    copy = CopyTask(str(source), str(tmp_path / "copy.mp4"), 160, 30.0, False)
    assert make_copy(copy) == ""
    video = Video(copy.target, 150, 30.0, False, 160, 160, 0.0, 5.0, decoder)
    windows = [ClipSection(frames=8, fps=8.0), ClipSection(frames=8, fps=16.0)]
    clips = [*windows, ClipSection(sampling="segments", frames=16)]
    for moment in np.linspace(0, 1, 9):
        placed = compute_clip_times(moment, 0.0, 5.0, clips)
        for images, times in zip(decode_clips(video, moment, 0.5, clips, 160), placed, strict=True):
            assert [read_number(image) for image in images] == find_frames(times, compute_frame_starts(150, 30.0)).tolist()


def test_copies_are_encoded_to_be_decoded_fast(shared_data: Path, tmp_path: Path) -> None:
    """The copy of a real clip has GOPs of at most 12 frames, at each of which decoding can begin, and no slow coding tools."""
    source = str(shared_data / "odd" / "h264_longgop.mp4")
    probe = probe_file(source)
    copy = CopyTask(source, str(tmp_path / "v.mp4"), 120, probe.fps, probe.variable_fps)
    assert make_copy(copy) == ""
    index = read_index(copy.target)
    assert len(index.random_access_points) == len(index.key_frames) and max(np.diff([*index.key_frames, probe.frames])) <= 12
    assert len(read_index(source).key_frames) < len(index.key_frames)
    told = Path(copy.target).read_bytes()  # x264 writes its settings into the stream
    assert all(word in told for word in (b"cabac=0", b"deblock=0", b"weightp=0", b"open_gop=0", b"keyint=12", b"mbtree=0"))


@pytest.mark.parametrize("name", ["h264_rot90.mp4", "xvid_b2.avi", "h264_editlist.mp4", "audio_first.mp4", "h264.ts"])
def test_copies_of_unusual_files_are_plain_mp4(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = str(shared_data / "odd" / name)
    probe = probe_file(source)
    assert make_copy(CopyTask(source, str(tmp_path / "v.mp4"), 120, probe.fps, probe.variable_fps)) == ""
    small = probe_file(str(tmp_path / "v.mp4"))
    assert (small.status, small.decoder, small.frames, small.codec) == ("ok", "decord", probe.frames, "h264")
    assert min(small.width, small.height) == 120 and (small.width > small.height) == (probe.width > probe.height)
    assert small.duration == pytest.approx(probe.duration, rel=1e-3)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert len(container.streams) == 1
    for one, other in zip(every_frame(str(tmp_path / "v.mp4"), 64, 64), every_frame(source, 64, 64), strict=True):
        assert np.abs(one.astype(int) - other).mean() < 12


def test_small_videos_are_not_enlarged_and_complete_copies_stay(tmp_path: Path) -> None:
    source = write_numbers(tmp_path / "v.mp4", frames=5, size=(64, 48))
    copies = [CopyTask(str(source), str(tmp_path / "out" / "v.mp4"), 256, 25.0, False)]
    assert make_copies(copies, processes=1) == {}
    small = probe_file(copies[0].target)
    assert (small.width, small.height) == (64, 48)
    before = os.stat(copies[0].target).st_mtime_ns
    assert make_copies(copies, processes=1) == {} and os.stat(copies[0].target).st_mtime_ns == before
    for other in (before + 1, before - 10**12):  # a newer original is copied again, and one restored from long ago
        os.utime(source, ns=(other, other))
        assert make_copies(copies, processes=1) == {} and os.stat(copies[0].target).st_mtime_ns == other
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v.mp4"]


def test_a_damaged_original_leaves_no_copy(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"bad" * 100)
    copies = [CopyTask(str(tmp_path / "bad.mp4"), str(tmp_path / "out" / "bad.mp4"), 64, 25.0, False)]
    assert "no known video format" in make_copies(copies, processes=1)[0]
    assert not list((tmp_path / "out").iterdir())


def test_different_ids_give_different_names_of_copies() -> None:
    assert name_copies(["a/x.avi", "a/x.mkv", "b/y.avi", "/abs/z.avi", "s3://c/w.webm", "../v"]) == [
        "a/x.avi.mp4", "a/x.mkv.mp4", "b/y.mp4", "abs/z.mp4", "s3/c/w.mp4", "v.mp4",
    ]  # fmt: skip


@pytest.mark.usefixtures("in_child_processes")
def test_prepare_writes_the_manifest_of_the_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        for number in range(3):
            write_numbers(tmp_path / "videos" / name / f"{number}.avi", frames=6, size=(128, 96))
    (tmp_path / "videos" / "a" / "bad.avi").write_bytes(b"bad")
    words = ["folder", str(tmp_path / "videos"), str(tmp_path / "out"), "--labeled", "1/class", "--resize", "64"]
    assert run(prepare.main, words) == DONE
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    rows = {row["id"]: row for row in manifest.table.to_pylist()}
    assert manifest.root == str(tmp_path / "out" / "resized-64") and len(rows) == 7
    assert (rows["a/0.avi"]["uri"], rows["a/0.avi"]["height"], rows["a/0.avi"]["codec"]) == ("a/0.mp4", 64, "h264")
    assert rows["a/bad.avi"]["status"] == "not_a_video"
    assert "resized 6/6" in capsys.readouterr().err
    # again: neither originals nor copies are opened, or damage that changes neither time nor size would be found
    originals = tmp_path / "videos" / "a"
    for path in (originals / "0.avi", originals / "1.avi", tmp_path / "out" / "resized-64" / "b" / "1.mp4"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(originals / "1.avi")
    assert run(prepare.main, words) == DONE
    again = {row["id"]: row["status"] for row in read_manifest(tmp_path / "out" / "manifest.parquet").table.to_pylist()}
    assert [name for name, status in again.items() if status != "ok"] == ["a/1.avi", "a/bad.avi"]


def test_an_interrupted_run_continues_where_it_was(tmp_path: Path) -> None:
    """The run is killed while it encodes: complete copies stay, no incomplete one has a final name, and none is made twice."""
    first = write_numbers(tmp_path / "videos" / "a" / "0.mp4", frames=40, size=(480, 360))
    (tmp_path / "videos" / "b").mkdir()
    for name in ("a/1", "a/2", "a/3", "b/0", "b/1", "b/2", "b/3"):
        shutil.copy(first, tmp_path / "videos" / f"{name}.mp4")
    words = ["folder", str(tmp_path / "videos"), str(tmp_path / "out"), "--labeled", "1/class", "--resize", "240"]
    folder = tmp_path / "out" / "resized-240"
    command = [sys.executable, "-m", "jobs.prepare", *words, "--processes", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while len(done := {path: path.stat().st_ino for path in folder.rglob("*.mp4")}) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert len(done) < 8 and all(probe_file(str(path)).frames == 40 for path in folder.rglob("*.mp4"))
    assert run(prepare.main, words) == DONE
    assert {path: path.stat().st_ino for path in done} == done
    assert len(read_manifest(tmp_path / "out" / "manifest.parquet").find_usable_rows("train")) == 6
    assert not list(folder.rglob(".*"))


def test_originals_are_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        for number in range(3):
            write_numbers(tmp_path / "resized-64" / name / f"{number}.mp4", frames=4, size=(128, 96))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")}
    words = ["folder", str(tmp_path / "resized-64"), str(tmp_path), "--labeled", "1/class", "--resize", "64"]
    assert run(prepare.main, words) == USER_ERROR
    assert "would write over the original" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")} == before


def test_numbered_images_become_videos(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / "v").mkdir(exist_ok=True)
        Image.fromarray(number_frame(number, 160, 96)).save(tmp_path / "v" / f"img_{number + 1:05d}.jpg")
    copy = CopyTask(str(tmp_path / "v" / "img_%05d.jpg"), str(tmp_path / "v.mp4"), 48, 12.5, False)
    assert make_copy(copy) == ""
    small = probe_file(copy.target)
    assert (small.status, small.frames, small.width, small.height, small.fps) == ("ok", 6, 80, 48, pytest.approx(12.5))
    assert [read_number(frame) for frame in every_frame(copy.target)] == list(range(6))
