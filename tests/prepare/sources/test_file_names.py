"""Which file a listed name stands for: by its suffix, by its stem, and where several fit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifest.schema import write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.published_labels import import_labels
from pipeline.prepare.resized_copies import name_copies
from pipeline.prepare.sources import list_files, list_kinetics
from pipeline.prepare.sources.file_search import find_files
from pipeline.prepare.sources.list_rows import ListOptions
from tests.manifest.tables import GOOD, make_listing

CLIP = "abcdefghijk_000001_000011"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def kinetics_uris(root: Path, *names: str) -> dict[str, str]:
    """Returns the uris of the two clips of a list by id; the file of one of them exists, and ``names`` are made, too."""
    lines = ["label,youtube_id,time_start,time_end,split", "yoga,abcdefghijk,1,11,train", "zumba,ABCDEFGHIJK,2,12,test"]
    touch(root / "k400", "test/ABCDEFGHIJK_000002_000012.mp4", *names)
    (root / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    listing = list_kinetics(root / "k400", [root / "list.csv"])
    return dict(zip(listing.ids or (), listing.uris, strict=True)) | {"notes": " ".join(listing.notes)}


@pytest.mark.parametrize("suffix", ["json", "jpg", "txt", "m4a", "part"])
def test_a_file_that_is_no_video_is_not_taken_for_a_kinetics_clip(tmp_path: Path, suffix: str) -> None:
    assert kinetics_uris(tmp_path, f"train/{CLIP}.{suffix}", f"train/{CLIP}.mp4")[CLIP] == f"train/{CLIP}.mp4"


def test_a_clip_without_a_video_file_is_missing(tmp_path: Path) -> None:
    uris = kinetics_uris(tmp_path, f"train/yoga/{CLIP}.json", f"train/yoga/{CLIP}.jpg")
    assert "1 of 2 files are missing" in uris["notes"]


def test_the_good_copy_of_a_damaged_kinetics_clip_is_used(tmp_path: Path) -> None:
    copy = f"replacement/replacement_for_corrupted_k400/{CLIP}.mp4"
    uris = kinetics_uris(tmp_path, f"train/yoga/{CLIP}.mp4", copy)
    assert uris[CLIP] == copy and "1 clips are taken from replacement_for_corrupted_k" in uris["notes"]


def test_a_kinetics_clip_that_may_be_either_of_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{CLIP}: large/{CLIP}.mp4 and small/{CLIP}.webm"):
        kinetics_uris(tmp_path, f"large/{CLIP}.mp4", f"small/{CLIP}.webm")


def test_a_link_to_a_kinetics_clip_is_no_second_file(tmp_path: Path) -> None:
    touch(tmp_path / "k400", f"one/{CLIP}.mp4")
    os.symlink(tmp_path / "k400" / "one", tmp_path / "k400" / "two")
    assert kinetics_uris(tmp_path)[CLIP] == f"one/{CLIP}.mp4"


def test_only_the_suffix_of_a_video_is_a_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "jump.mp4", "jump.v1.avi", "run.mkv")
    listed = ["jump.v0", "jump.v1", "jump.v1.mp4", "jump.v2", "jump", "jump.avi", "run.mp4"]
    assert find_files(str(tmp_path), listed) == [None, "jump.v1.avi", "jump.v1.avi", None, "jump.mp4", "jump.mp4", "run.mkv"]


def test_ids_that_differ_after_a_dot_are_different_videos(tmp_path: Path) -> None:
    touch(tmp_path, *(f"jump.v{n}.mp4" for n in range(4)), "run.mp4")
    (tmp_path / "list.txt").write_text("".join(f"jump.v{n} jump\n" for n in range(4)) + "run run\n", encoding="utf-8")
    listing = list_files([tmp_path / "list.txt"], ListOptions(str(tmp_path)))
    assert listing.uris == (*(f"jump.v{n}.mp4" for n in range(4)), "run.mp4")


def test_a_listed_name_that_fits_two_files_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "a/x.mkv", "a/x.json")
    assert find_files(str(tmp_path), ["a/x.mkv"]) == ["a/x.mkv"]
    with pytest.raises(UserError, match=r"a/x.avi: x.mkv and x.mp4"):
        find_files(str(tmp_path), ["a/x.avi"])


def test_a_folder_of_the_same_name_is_not_taken_for_a_video(tmp_path: Path) -> None:
    touch(tmp_path, "x/img_00001.jpg", "x.mp4")
    assert find_files(str(tmp_path), ["x"]) == ["x.mp4"]


def test_a_published_list_does_not_match_another_video_by_half_of_its_name(tmp_path: Path) -> None:
    listing = make_listing({"jump": 2, "run": 2})
    ids = ("jump/jump.v1", "jump/jump.v2", "run/run.v1", "run/run.v2")
    table = build_table(listing, [GOOD] * 4).set_column(0, "id", [ids])
    manifest = write_manifest(table, tmp_path / "manifest.parquet", listing.classes, listing.root, listing.source)
    file = tmp_path / "list.txt"
    file.write_text("jump/jump.v1\nrun/run.v2\n", encoding="utf-8")
    assert import_labels(manifest, "list", file)[0].ids == ("jump/jump.v1", "run/run.v2")
    file.write_text("jump/jump.v1\nrun/run.v2\nrun/run.v2.mp4\n", encoding="utf-8")
    assert import_labels(manifest, "list", file)[1] == [f"1 of 3 lines of {file} name a video that an earlier line names too"]
    file.write_text("jump/jump.v3\nrun/run.v2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"1 of 2 videos .* are not in"):
        import_labels(manifest, "list", file)


def test_copies_of_different_videos_are_different_files() -> None:
    ids = ["jump.v0", "jump.v1", "jump.v0.avi", "a.mp4", "../a.mp4", "b.avi"]
    names = name_copies(ids)
    assert len(set(names)) == len(ids) and names[-1] == "b.mp4" and all(name.endswith(".mp4") for name in names)
