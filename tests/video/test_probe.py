"""Probing real files: numbers, refusals, and the choice of the decoder."""

from __future__ import annotations

import hashlib
import os
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest

from pipeline.video.exact_reader import read_rgb_frames
from pipeline.video.probe import Probe, ProbeDepth, ProbeOptions, probe_file, probe_files
from tests.video.reference import read_index
from tests.videos import read_number, write_numbers

ODD = {  # name -> status, decoder, frames, frames per second, size, what the reason says
    "SOURCE.md": ("not_a_video", "pyav", 0, 0, (0, 0), "no known video format"),
    "audio_first.mp4": ("ok", "decord", 90, 30, (426, 240), None),
    "audio_only.m4a": ("no_video_stream", "pyav", 0, 0, (0, 0), "holds only audio"),
    "audio_only.mp4": ("no_video_stream", "pyav", 0, 0, (0, 0), "holds only audio"),
    "av1.mp4": ("ok", "pyav", 60, 30, (320, 180), None),
    "cover.jpg": ("not_a_video", "pyav", 0, 0, (0, 0), "a still image"),
    "gifanim.gif": ("ok", "pyav", 20, 10, (160, 120), None),
    "h264.flv": ("ok", "pyav", 150, 30, (426, 240), None),
    "h264.ts": ("ok", "pyav", 150, 30, (426, 240), None),
    "h264_closed_b3.mp4": ("ok", "decord", 150, 30, (426, 240), None),
    "h264_editlist.mp4": ("ok", "pyav", 79, 30, (426, 240), None),
    "h264_frag.mp4": ("ok", "decord", 150, 30, (426, 240), None),
    "h264_noidx.avi": ("ok", "pyav", 150, 30, (426, 240), None),
    "h264_opengop.ts": ("ok", "pyav", 150, 30, (426, 240), None),
    "h264_opengop_b3.mp4": ("ok", "pyav", 150, 30, (426, 240), None),
    "h264_rot90.mp4": ("ok", "decord", 150, 30, (240, 426), None),
    "h264_start5.mkv": ("ok", "decord", 150, 30, (426, 240), None),
    "h264_vfr.mkv": ("ok", "decord", 90, 17.918, (426, 240), None),
    "h264_vfr.mp4": ("ok", "decord", 90, 17.918, (426, 240), None),
    "hevc_opengop.mp4": ("ok", "pyav", 150, 30, (426, 240), None),
    "mpeg1.mpg": ("ok", "pyav", 127, 25, (352, 240), None),
    "mpeg2.mpg": ("ok", "pyav", 127, 25, (352, 240), None),
    "oneframe.mp4": ("too_short", "pyav", 0, 0, (0, 0), "1 frame"),
    "portrait.mp4": ("ok", "decord", 90, 30, (180, 320), None),
    "raw.h264": ("ok", "pyav", 150, 30, (426, 240), None),
    "reschange.ts": ("undecodable", "pyav", 0, 0, (0, 0), "the frame size changes"),
    "vp9.webm": ("ok", "decord", 150, 30, (426, 240), None),
    "wmv_msmpeg4.wmv": ("ok", "pyav", 150, 30, (320, 240), None),
    "h263.3gp": ("ok", "decord", 150, 30, (352, 288), None),
    "h264_10bit.mp4": ("ok", "decord", 90, 30, (426, 240), None),
    "h264_444_322x242.mp4": ("ok", "decord", 90, 30, (322, 242), None),
    "h264_intra.mp4": ("ok", "decord", 150, 30, (426, 240), None),
    "h264_longgop.mp4": ("ok", "decord", 150, 30, (426, 240), None),
    "h264_odd_321x241.mp4": ("ok", "decord", 90, 30, (321, 241), None),
    "interlaced.mp4": ("ok", "decord", 30, 15, (426, 240), None),
    "mjpeg.avi": ("ok", "decord", 150, 30, (320, 240), None),
    "sar43.mp4": ("ok", "decord", 90, 30, (426, 240), None),
    "xvid_b2.avi": ("ok", "pyav", 148, 30, (320, 240), None),
}


def test_the_table_is_complete(shared_data: Path) -> None:
    assert sorted(ODD) == sorted(path.name for path in (shared_data / "odd").iterdir())


@pytest.mark.parametrize("depth", ["quick", "full"])
@pytest.mark.parametrize("name", ODD)
def test_odd_files(shared_data: Path, name: str, depth: ProbeDepth) -> None:
    probe = probe_file(str(shared_data / "odd" / name), ProbeOptions(depth))
    status, decoder, frames, fps, size, reason = ODD[name]
    assert (probe.status, probe.decoder, probe.frames, (probe.width, probe.height)) == (status, decoder, frames, size)
    assert probe.fps == pytest.approx(fps, rel=1e-3)
    assert probe.variable_fps == ("vfr" in name)
    assert reason is None if probe.reason is None else reason in probe.reason
    assert probe.bytes == (shared_data / "odd" / name).stat().st_size


OPEN_GOP = ("h264_opengop_b3.mp4", "hevc_opengop.mp4")
LEFT_TO_DECORD = ("h264_closed_b3.mp4", "h264_frag.mp4", "h264_rot90.mp4", "h264_vfr.mkv", "h263.3gp", "mjpeg.avi", "vp9.webm")


def test_decord_is_exact_where_it_is_chosen_and_wrong_where_it_is_not(shared_data: Path) -> None:
    wrong = {name: wrong_frames(shared_data / "odd" / name) for name in (*OPEN_GOP, *LEFT_TO_DECORD)}
    assert all(wrong[name] > 0 for name in OPEN_GOP), wrong  # so this test can fail
    assert not any(wrong[name] for name in LEFT_TO_DECORD), wrong
    assert all(probe_file(str(shared_data / "odd" / name)).decoder == "decord" for name in LEFT_TO_DECORD)


def wrong_frames(path: Path) -> int:
    """Counts the frames, of some that are read by seeking, that resemble another frame of the file more than their own."""
    index = read_index(str(path))
    every = np.stack([f[::4, ::4].astype(np.int16) for f in read_rgb_frames(str(path), index, range(len(index.times)))])
    frame_indices = {len(every) // 3, len(every) - 1, *(key + step for key in index.key_frames[1:3] for step in (-1, 1))}
    wrong = 0
    for i in frame_indices:
        frame = decord.VideoReader(str(path), num_threads=1)[i].asnumpy()[::4, ::4].astype(np.int16)
        distance = np.abs(every - frame).mean((1, 2, 3))
        wrong += bool(distance[i] > distance.min() + 0.3)
    return wrong


def test_every_field_of_a_probe(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "v.mp4", frames=40, fps="24000/1001", size=(96, 160))
    probe = probe_file(str(path), ProbeOptions(hash=True))
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert probe == Probe(40, probe.fps, False, probe.duration, 96, 160, "h264", len(data), digest, "decord", stamp=probe.stamp)
    assert probe.fps == pytest.approx(24000 / 1001)
    assert probe.duration == pytest.approx(40 * 1001 / 24000)
    assert probe_file(str(path)).hash is None


def test_variable_rate(tmp_path: Path) -> None:
    steps = [40 * i for i in range(15)] + [600 + 200 * i for i in range(15)]
    probe = probe_file(str(write_numbers(tmp_path / "v.mp4", frames=30, steps=steps)))
    assert probe.status == "ok" and probe.variable_fps
    assert probe.fps == pytest.approx(29 / 3.4, rel=1e-3)


def test_frames_are_decoded_exactly_across_key_frames(tmp_path: Path) -> None:
    path = str(write_numbers(tmp_path / "v.mp4", frames=60, gop=10))
    index = read_index(path)
    assert index.key_frames == (0, 10, 20, 30, 40, 50)
    frame_indices = [0, 9, 10, 11, 35, 36, 59]
    assert [read_number(frame) for frame in read_rgb_frames(path, index, frame_indices)] == frame_indices


def test_missing_and_empty_files_and_texts_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("not a video\n" * 50, encoding="utf-8")
    (tmp_path / "zeros.mp4").write_bytes(bytes(5000))
    names = ("none.mp4", "empty.mp4", "notes.txt", "zeros.mp4", ".")
    probes = [probe_file(str(tmp_path / name)) for name in names]
    assert [probe.status for probe in probes] == ["missing", "empty", "not_a_video", "not_a_video", "not_a_video"]
    assert all(probe.reason for probe in probes)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_mp4_files_are_detected(tmp_path: Path, share: float) -> None:
    """The index is at the end of one file, where it is cut off, and at the start of the other."""
    late, early = write_numbers(tmp_path / "late.mp4"), tmp_path / "early.mp4"
    with av.open(str(late)) as source, av.open(str(early), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert probe_file(str(early)).frames == 50
    for path in (late, early):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        probe = probe_file(str(path))
        assert probe.status == "truncated" and probe.reason, probe


def test_damaged_pictures_are_detected_or_change_only_the_hash(tmp_path: Path) -> None:
    data = bytearray(write_numbers(tmp_path / "v.mp4").read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    (tmp_path / "bad.mp4").write_bytes(data)
    good, bad = (
        probe_file(str(tmp_path / "v.mp4"), ProbeOptions(hash=True)),
        probe_file(str(tmp_path / "bad.mp4"), ProbeOptions(hash=True)),
    )
    assert bad.status != "ok" or (bad.frames == good.frames and bad.hash != good.hash)


def test_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = 8000, Fraction(1, 8000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    probe = probe_file(str(path))
    assert (probe.status, probe.reason) == ("no_video_stream", "holds only audio and cover picture")


@pytest.mark.usefixtures("in_child_processes")
def test_many_files_in_processes_keep_their_order(tmp_path: Path) -> None:
    paths = [write_numbers(tmp_path / f"{frames}.mp4", frames=frames, size=(64, 64)) for frames in (5, 30, 10, 20)]
    (tmp_path / "bad.mp4").write_bytes(b"bad")
    probes = probe_files([str(path) for path in [*paths[:2], tmp_path / "bad.mp4", *paths[2:]]], processes=2)
    assert [probe.frames for probe in probes] == [5, 30, 0, 10, 20]
    assert probes[2].status == "not_a_video"


@pytest.mark.usefixtures("in_child_processes")
def test_time_limit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # refused without being opened
    path = write_numbers(tmp_path / "v.mp4")
    assert probe_files([str(tmp_path / "pipe.mp4"), str(path)], processes=1)[0].reason == "not a file"
    late = probe_files([str(path)], processes=1, timeout_seconds=1e-3)[0]
    assert (late.status, late.reason) == ("undecodable", "no result after 0.001 s")


def test_a_forced_decoder_is_refused_where_it_is_not_exact(shared_data: Path) -> None:
    probes = {name: probe_file(str(shared_data / "odd" / name), ProbeOptions(decoder="decord")) for name in ODD}
    for name, (status, decoder, *_) in ODD.items():
        assert probes[name].status == ("undecodable" if (status, decoder) == ("ok", "pyav") else status), name
    reasons = {name: probes[name].reason for name in ("h264.ts", "h264_opengop_b3.mp4", "av1.mp4", "xvid_b2.avi")}
    assert "format mpegts" in str(reasons["h264.ts"]) and "open GOP" in str(reasons["h264_opengop_b3.mp4"])
    assert all("decord does not read it exactly" in str(reason) for reason in reasons.values())


def test_every_frame_is_decoded_on_request(tmp_path: Path) -> None:
    """A packet in a GOP of which the quick probe decodes no frame is zeroed: only the full probe detects it."""
    path, bad = write_numbers(tmp_path / "v.mkv", frames=200, gop=10), tmp_path / "bad.mkv"
    with av.open(str(path)) as source, av.open(str(bad), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if number == 75:
                packet.update(bytes(packet.size))
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    quick, full = probe_file(str(bad)), probe_file(str(bad), ProbeOptions("full"))
    assert quick.status == "ok"
    assert full.status == "undecodable"


def test_a_codec_that_this_ffmpeg_lacks(tmp_path: Path) -> None:
    """The sample description of the MP4 names an unknown codec."""
    data = write_numbers(tmp_path / "v.mp4").read_bytes()
    path = tmp_path / "unknown.mp4"
    path.write_bytes(data.replace(b"avc1", b"zzz1").replace(b"avcC", b"zzzC"))
    probe = probe_file(str(path))
    assert (probe.status, probe.reason) == ("unsupported_codec", "this FFmpeg has no decoder for its video stream")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".flv", ".h264"])
@pytest.mark.parametrize("fps", ["12", "30000/1001", "60"])
def test_the_frame_rate_is_that_of_the_encoder(tmp_path: Path, suffix: str, fps: str) -> None:
    """Headers of raw streams count fields instead of frames, and those of transport streams have no rate."""
    probe = probe_file(str(write_numbers(tmp_path / f"v{suffix}", frames=40, fps=fps, size=(64, 64))))
    assert probe.status == "ok" and not probe.variable_fps and probe.frames == 40
    assert probe.fps == pytest.approx(float(Fraction(fps)), rel=2e-3)
