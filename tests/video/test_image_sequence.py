"""Numbered images as videos: they are found by their pattern, probed, and decoded by time like any other video."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.clips.decode import DecodeError, Video, decode_clips
from pipeline.clips.sampling import compute_clip_times
from pipeline.config import ClipSection
from pipeline.manifest.schema import Manifest
from pipeline.manifest.verify import find_altered_files
from pipeline.video.image_sequence import is_pattern, list_images
from pipeline.video.probe import Probe, ProbeOptions, probe_file, reuse_or_probe
from tests.manifest.tables import GOOD, make_table
from tests.videos import number_frame, read_number

OPTIONS = ProbeOptions(frame_rate=12.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(30):
        Image.fromarray(number_frame(number, 160, 160)).save(tmp_path / f"img_{number + 1:05d}.jpg", quality=95)
    Image.fromarray(number_frame(99, 20, 20)).save(tmp_path / "flow_00001.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("v/img_%05d.jpg", True),
        ("v/%d.png", True),
        ("v/100%%d.mp4", False),
        ("v%05d/x.mp4", False),
        ("s3://b/v/%06d.jpg", True),
    ],
)
def test_which_locations_are_patterns(location: str, expected: bool) -> None:
    assert is_pattern(location) == expected


def test_images_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        (tmp_path / f"{number}.jpg").touch()
    assert [os.path.basename(name) for name in list_images(str(tmp_path / "%d.jpg"))] == ["1.jpg", "2.jpg", "10.jpg"]


def test_probe(folder: Path) -> None:
    pattern = str(folder / "img_%05d.jpg")
    probe = probe_file(pattern, OPTIONS)
    size = sum(path.stat().st_size for path in folder.glob("img_*"))
    assert probe == Probe(30, 12.5, False, 2.4, 160, 160, "jpeg", size, None, "frames", stamp=probe.stamp)
    told = replace(probe, frames=999)
    assert reuse_or_probe((pattern, OPTIONS, told)).frames == 999
    os.utime(folder / "img_00030.jpg")
    assert reuse_or_probe((pattern, OPTIONS, told)).frames == 30


def test_reasons_name_what_is_wrong(folder: Path) -> None:
    pattern = str(folder / "img_%05d.jpg")
    assert "give --fps" in str(probe_file(pattern).reason)
    assert probe_file(str(folder / "none_%05d.jpg"), OPTIONS).status == "missing"
    assert probe_file(str(folder / "flow_%05d.jpg"), OPTIONS).status == "too_short"
    (folder / "img_00007.jpg").write_bytes(b"bad")
    assert probe_file(pattern, OPTIONS).status == "ok"
    full = probe_file(pattern, ProbeOptions(depth="full", frame_rate=12.5))
    assert full.status == "undecodable" and "img_00007.jpg" in str(full.reason)
    Image.fromarray(number_frame(15, 80, 80)).save(folder / "img_00016.jpg")
    assert "the frame size changes" in str(probe_file(pattern, OPTIONS).reason)


def test_the_hash_of_images_depends_on_their_content_only(folder: Path) -> None:
    """Names and other files do not change the hash; later verification detects one changed byte."""
    pattern = str(folder / "img_%05d.jpg")
    probe = probe_file(pattern, replace(OPTIONS, hash=True))
    digests = [hashlib.sha256((folder / f"img_{n:05d}.jpg").read_bytes()).digest() for n in range(1, 31)]
    assert probe.status == "ok" and probe.hash == hashlib.sha256(b"".join(digests)).hexdigest()
    table = make_table({"a": 1}, probes=[replace(GOOD, hash=probe.hash, bytes=probe.bytes)])
    table = table.set_column(1, "uri", pa.array([pattern]))
    manifest = Manifest(table, ("a",), "/", "frames", "", "m.parquet")
    assert find_altered_files(manifest) == []
    content = bytearray((folder / "img_00017.jpg").read_bytes())
    content[500] ^= 1
    (folder / "img_00017.jpg").write_bytes(content)
    assert find_altered_files(manifest) == [(pattern, "changed, at the same size")]
    for path in folder.glob("img_*"):
        path.unlink()
    assert find_altered_files(manifest) == [(pattern, "missing")]


def test_decoding(folder: Path) -> None:
    video = Video(str(folder / "img_%05d.jpg"), 30, 12.5, False, 160, 160, 0.0, 2.4, "frames")
    clip = ClipSection(frames=8, fps=8, size=16)
    (frames,) = decode_clips(video, 0.3, 0.5, [clip], 64)
    wanted = np.floor(compute_clip_times(0.3, 0, 2.4, [clip])[0] * 12.5 + 1e-4).astype(int).tolist()
    assert frames.shape == (8, 64, 64, 3) and [read_number(frame) for frame in frames] == wanted
    (folder / "img_00030.jpg").unlink()
    list_images.cache_clear()
    with pytest.raises(DecodeError, match="29 frames, the manifest says 30"):
        decode_clips(video, 0.3, 0.5, [clip], 64)
