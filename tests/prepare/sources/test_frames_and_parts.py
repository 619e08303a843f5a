"""Lists of frame folders, and of parts of videos."""

from __future__ import annotations

from pathlib import Path

from pipeline.clips.source import describe_video, open_video_columns
from pipeline.manifest.schema import write_manifest
from pipeline.prepare.build import build_table, probe_listing
from pipeline.prepare.sources import list_frames, list_kinetics
from pipeline.prepare.sources.frames import find_image_patterns
from pipeline.video.probe import probe_file
from tests.prepare.sources.test_official_sources import refused, touch, write
from tests.videos import write_numbers


def test_frame_folders(tmp_path: Path) -> None:
    for video in ("run/v1", "run/deep/v2", "jump/v 3"):
        touch(tmp_path, *(f"{video}/img_{i:05d}.jpg" for i in range(1, 5)), f"{video}/notes.txt")
    listing = list_frames(tmp_path, 25.0)
    assert listing.uris == ("jump/v 3/img_%05d.jpg", "run/deep/v2/img_%05d.jpg", "run/v1/img_%05d.jpg")
    assert listing.ids == ("jump/v 3", "run/deep/v2", "run/v1")
    assert (listing.labels, listing.splits, listing.frame_rate) == (("jump", "run", "run"), None, 25.0)
    touch(tmp_path, "run/v1/flow_x_00001.jpg")
    assert "run/v1: img_%05d.jpg and flow_x_%05d.jpg" in refused(lambda: list_frames(tmp_path, 25.0))
    assert list_frames(tmp_path, 25.0, "img_%05d.jpg").uris == listing.uris
    assert "without a folder of numbered images" in refused(lambda: list_frames(tmp_path, 25.0, "frame%d.png"))


def test_patterns_of_images() -> None:
    assert find_image_patterns([f"{i:04d}.jpg" for i in range(8, 12)]) == ["%04d.jpg"]
    assert find_image_patterns([f"frame{i}.png" for i in range(8, 12)]) == ["frame%d.png"]
    assert find_image_patterns(["v1_50%_007.JPG", "v1_50%_008.JPG"]) == ["v1_50%%_%03d.JPG"]
    assert find_image_patterns([f"i{i}.jpg" for i in range(10, 13)], "i%02d.jpg") == ["i%02d.jpg"]
    assert find_image_patterns(["cover.jpg", "notes.txt"]) == []


# -------------------------------------------------------------------------------------------------- real videos


def test_time_ranges_reach_the_manifest(tmp_path: Path) -> None:
    write_numbers(tmp_path / "k" / "abc.mp4", frames=50)
    write_numbers(tmp_path / "k" / "def_000000_000001.mp4", frames=25)
    write(tmp_path / "all.csv", "label,youtube_id,time_start,time_end,split", "a,abc,0.5,1.5,train", "b,def,0,1,train")
    write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", "a,abc,1,2,val")
    listing = list_kinetics(tmp_path / "k", [tmp_path / "all.csv", tmp_path / "val.csv"])
    table = build_table(listing, [probe_file(str(tmp_path / "k" / uri)) for uri in listing.uris])
    ranges = dict(
        zip(table["id"].to_pylist(), zip(table["start"].to_pylist(), table["end"].to_pylist(), strict=True), strict=True)
    )
    assert ranges == {"abc_000000_000001": (0.5, 1.5), "abc_000001_000002": (1.0, 2.0), "def_000000_000001": (None, None)}
    assert set(table["status"].to_pylist()) == {"ok"}


def test_parts_beyond_the_end_of_a_file_cannot_be_used(tmp_path: Path) -> None:
    """They would be labeled still pictures. Other parts of the file are used, and a part that is too long ends with it."""
    write_numbers(tmp_path / "k" / "abc.mp4", frames=50)
    ranges = ("0,1", "1.5,9", "2,3", "1.98,4", "1.2,1.25")
    write(tmp_path / "all.csv", "label,youtube_id,time_start,time_end,split", *(f"a,abc,{one},train" for one in ranges))
    write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split", "b,abc,0.2,3.2,val")
    listing = list_kinetics(tmp_path / "k", [tmp_path / "all.csv", tmp_path / "val.csv"])
    probes = probe_listing(listing)
    manifest = write_manifest(build_table(listing, probes), tmp_path / "m.parquet", ("a", "b"), listing.root, "kinetics")
    rows = {row["start"]: row for row in manifest.table.to_pylist()}
    assert [rows[start]["status"] for start in (0, 1.5, 2, 1.98, 1.2, 0.2)] == ["ok", "ok", *["too_short"] * 3, "ok"]
    assert rows[2.0]["reason"] == "its part from 2 s on has fewer than 2 frames: the file ends at 2 s"
    assert rows[1.2]["reason"] == "its part from 1.2 to 1.25 s has fewer than 2 frames"
    row = manifest.table["start"].to_pylist().index(1.5)
    assert describe_video(manifest, open_video_columns(manifest), row).end == 2.0
