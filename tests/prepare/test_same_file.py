"""One file under several names is one video, and is never both trained and tested on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import prepare
from jobs.command import DONE, USER_ERROR, run
from pipeline.errors import UserError
from pipeline.manifest.leaks import check_leaks
from pipeline.manifest.schema import Manifest, read_manifest, write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.same_file import identify_files, merge_equal_paths, merge_same_files
from pipeline.prepare.sources import Listing
from pipeline.prepare.sources.file_search import simplify_path
from pipeline.video.probe import Probe
from tests.manifest.tables import GOOD
from tests.videos import write_numbers

NAMES = [f"{name}{number}.mp4" for name in ("run", "jump") for number in range(4)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("video") / "video.mp4", frames=25, size=(32, 32))


@pytest.fixture
def videos(tmp_path: Path, original: Path) -> Path:
    """Makes eight different files of two classes."""
    (tmp_path / "videos").mkdir()
    for name in NAMES:
        shutil.copy(original, tmp_path / "videos" / name)
    return tmp_path / "videos"


def listed(videos: Path, *more: str, root: Path | None = None) -> int:
    """Prepares a list of all eight, of which two are in test, and of further lines."""
    lines = [f"{name},{name[:-5]},{'test' if '0' in name else 'train'},," for name in NAMES]
    text = "\n".join(["path,label,split,start,end", *lines, *more])
    (videos.parent / "list.csv").write_text(text, encoding="utf-8")
    words = ["list", videos.parent / "list.csv", videos.parent / "out", "--root", root or videos, "--processes", 1]
    return run(prepare.main, list(map(str, words)))


def link(videos: Path, kind: str) -> str:
    """Makes another name for run0.mp4, and returns how it is to be listed."""
    names = {"dot": "./run0.mp4", "slashes": f"{videos}//run0.mp4", "hard": "other.mp4", "symbolic": "other.mp4"}
    if kind == "hard":
        os.link(videos / "run0.mp4", videos / "other.mp4")
    if kind == "symbolic":
        (videos / "other.mp4").symlink_to(videos / "run0.mp4")
    if kind == "folder":
        (videos.parent / "elsewhere").symlink_to(videos)
        return f"{videos.parent}/elsewhere/run0.mp4"
    return names[kind]


KINDS = ["dot", "slashes", "folder", "hard", "symbolic"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_video_under_another_name_in_train_is_refused_with_both_lines(
    videos: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = link(videos, kind)
    assert listed(videos, f"{name},run,train,,") == USER_ERROR
    err = capsys.readouterr().err
    assert "would be learned from and tested on" in err
    assert f"list.csv:2) in test, {name} ({videos.parent}/list.csv:10) in train" in err
    assert not (videos.parent / "out" / "manifest.parquet").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_listed_again_in_its_split_is_kept_once_and_reported(
    videos: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = link(videos, kind)
    assert listed(videos, f"{name},run,test,,") == DONE
    out = capsys.readouterr().out
    assert "note: 1 video is listed again under another name for the same file, and is kept once: " in out
    assert f"{name} ({videos.parent}/list.csv:10) is run0.mp4 ({videos.parent}/list.csv:2)" in out
    assert read_manifest(videos.parent / "out" / "manifest.parquet").table["id"].to_pylist() == sorted(NAMES)


def test_one_file_of_two_classes_is_refused(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(videos, f"{link(videos, 'hard')},jump,test,,") == USER_ERROR
    assert f"list.csv:2): run, test; other.mp4 ({videos.parent}/list.csv:10): jump, test" in capsys.readouterr().err


def test_the_same_root_under_another_name_changes_nothing(videos: Path) -> None:
    (videos.parent / "linked").symlink_to(videos)
    assert listed(videos, root=videos.parent / "linked") == DONE
    assert listed(videos, f"{videos}/run1.mp4,run,train,,", root=videos.parent / "linked") == DONE
    assert len(read_manifest(videos.parent / "out" / "manifest.parquet").table) == len(NAMES)


def test_links_in_class_folders_are_one_video_that_lies_in_one_split(
    videos: Path, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        for copy in ("a", "b"):
            path = tmp_path / "folders" / name[:-5] / f"{copy}_{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(videos / name, path)
    assert run(prepare.main, ["folder", str(tmp_path / "folders"), str(tmp_path / "out"), "--processes", "1"]) == DONE
    assert "note: 8 videos are listed again" in capsys.readouterr().out
    assert len(read_manifest(tmp_path / "out" / "manifest.parquet").table) == 8


def test_parts_of_a_file_that_overlap_are_not_learned_from_and_tested_on(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(videos / "run0.mp4", videos / "long.mp4")
    assert listed(videos, "long.mp4,run,train,0,0.5", "long.mp4,run,train,0.25,0.6", "./long.mp4,run,test,0.6,1") == DONE
    assert len(read_manifest(videos.parent / "out" / "manifest.parquet").table) == len(NAMES) + 3
    capsys.readouterr()
    assert listed(videos, "long.mp4,run,train,0,0.5", "./long.mp4,run,test,0.4,1") == USER_ERROR
    assert "long.mp4#0-0.5 (" in (err := capsys.readouterr().err) and "./long.mp4#0.4-1 (" in err


def test_one_inode_is_one_file_whatever_its_spelling() -> None:
    """A disk that ignores case has one inode for RUN.mp4 and run.mp4; only files of equal size and time are looked up."""
    asked: list[str] = []

    def inode(location: str) -> object:
        asked.append(location)
        return location.lower()

    stamps = [("t1", 10), ("t1", 10), ("t1", 11), ("t2", 10), ("t1", 10)]
    probes = [Probe(bytes=size, stamp=stamp) for stamp, size in stamps]
    probes[4] = Probe(bytes=10, stamp="t1", status="empty")
    files = identify_files(["/v/RUN.mp4", "/v/run.mp4", "/v/a.mp4", "/v/b.mp4", "/v/c.mp4"], probes, inode)
    assert files == ["/v/run.mp4", "/v/run.mp4", "/v/a.mp4", "/v/b.mp4", "/v/c.mp4"]
    assert asked == ["/v/RUN.mp4", "/v/run.mp4"]


def test_spellings_in_an_object_store_are_one_object() -> None:
    assert simplify_path("s3://bucket//b/./a.mp4") == "s3://bucket/b/a.mp4" and simplify_path("/b//a.mp4") == "/b/a.mp4"
    assert simplify_path("../a./b.mp4") == "../a./b.mp4"
    uris = tuple(map(simplify_path, ("b/a.mp4", "./b//a.mp4", "c.mp4")))
    listing = Listing("s3://bucket", "list", uris, ("x", "x", "y"), (None,) * 3, ("train", "test", "test"), ids=("1", "2", "3"))
    with pytest.raises(UserError, match="1 in train, 2 in test"):
        merge_equal_paths(listing)


def test_a_listing_without_repeated_files_is_not_changed() -> None:
    listing = Listing("/v", "list", ("a.mp4", "b.mp4"), ("x", "y"), (None, None), None)
    assert merge_equal_paths(listing) is listing and merge_same_files(listing, [GOOD, GOOD]) == (listing, [GOOD, GOOD])


def manifest_of(tmp_path: Path, *parts: tuple[str, float | None, float | None]) -> Manifest:
    """Makes a manifest of which the first video is tested and the others are trained on."""
    count = len(parts)
    splits = ("test", *("train",) * (count - 1))
    listing = Listing(
        "/v", "list", tuple(uri for uri, _, _ in parts), tuple("xy"[n % 2] for n in range(count)), (None,) * count, splits,
        ids=tuple(str(n) for n in range(count)), starts=tuple(p[1] for p in parts), ends=tuple(p[2] for p in parts),
    )  # fmt: skip
    table = build_table(listing, [GOOD] * count)
    return write_manifest(table, tmp_path / "manifest.parquet", ("x", "y"), listing.root, listing.source)


def test_overlapping_parts_in_a_manifest_are_a_leak(tmp_path: Path) -> None:
    none = np.empty(0, np.int64)
    check_leaks(manifest_of(tmp_path, ("a", 1, 2), ("a", 0, 1), ("a", 2, None), ("b", None, None)), none, none)
    leaky = manifest_of(tmp_path, ("a", 1, 2), ("a", 0, 1.5), ("b", None, None))
    with pytest.raises(UserError, match="file a: 1 is learned from, 0 is test, and they overlap"):
        check_leaks(leaky, none, none)
    safe = manifest_of(tmp_path, ("c", None, None), ("a", 0, 1.5), ("a", 1, None))
    with pytest.raises(UserError, match="file a: 1 is learned from, 2 is held out, and they overlap"):
        check_leaks(safe, none, np.array([2]))
