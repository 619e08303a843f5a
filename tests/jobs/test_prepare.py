"""The prepare command: what it writes, what it says, and what it refuses without writing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jobs import prepare
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from pipeline.prepare.probe_cache import PROBE_LOG
from pipeline.video import probe
from tests.clips import misbehaving
from tests.videos import number_frame, write_numbers


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six small videos."""
    root = tmp_path_factory.mktemp("videos")
    video = write_numbers(root / "a" / "0.mp4", frames=8, size=(32, 32))
    for name in ("a", "b"):
        (root / name).mkdir(exist_ok=True)
        for number in range(6):
            if (root / name / f"{number}.mp4") != video:
                shutil.copy(video, root / name / f"{number}.mp4")
    return root


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    shutil.copytree(originals, tmp_path / "videos")
    return tmp_path / "videos"


def call(*words: str | Path) -> int:
    return run(prepare.main, [*map(str, words), "--processes", "1"])


def test_folder(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "b" / "notes.txt").write_text("no video", encoding="utf-8")
    assert call("folder", videos, tmp_path / "out", "--labeled", "2/class", "--test", "34%") == DONE
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    labels = read_labels(tmp_path / "out" / "labels.parquet", manifest)
    assert (manifest.root, manifest.source, manifest.classes) == (str(videos), "folder", ("a", "b"))
    assert len(manifest.table) == 13 and len(labels.ids) == 4
    assert len(manifest.find_usable_rows("train")) == 8 and len(manifest.find_usable_rows("test")) == 4
    assert all(os.path.isfile(manifest.locate(row)) for row in range(13))
    assert set(manifest.table["decoder"].to_pylist()) == {"decord", "pyav"}
    out, err = capsys.readouterr()
    assert "1 of 13 files cannot be used:\n  b/notes.txt: not_a_video, " in out
    assert "2 classes" in out and f"manifest {manifest.fingerprint}" in out and f"labels   {labels.fingerprint}" in out
    assert f"python -m jobs.train --config actions run.name=out data.manifest={tmp_path / 'out' / 'manifest.parquet'}\n" in out
    assert "probed 13/13" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels.parquet", "manifest.parquet"]


def test_a_folder_inside_that_of_the_videos_is_no_class(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice: the second time it holds a manifest."""
    for _ in range(2):
        assert call("folder", videos, videos / "out", "--labeled", "1/class") == DONE
        assert "out" not in read_manifest(videos / "out" / "manifest.parquet").classes


def test_the_same_videos_elsewhere_have_the_same_fingerprints(videos: Path, tmp_path: Path) -> None:
    call("folder", videos, tmp_path / "one")
    videos.rename(tmp_path / "moved")
    call("folder", tmp_path / "moved", tmp_path / "two")
    manifests = [read_manifest(tmp_path / name / "manifest.parquet") for name in ("one", "two")]
    subsets = [read_labels(Path(manifest.path).parent / "labels.parquet", manifest) for manifest in manifests]
    assert manifests[0].fingerprint == manifests[1].fingerprint and manifests[0].root != manifests[1].root
    assert subsets[0].fingerprint == subsets[1].fingerprint and subsets[0].spec == "10%"


def test_list(videos: Path, tmp_path: Path) -> None:
    lines = [f"{name}/{i}.mp4,{name if i else ''},{i // 2}" for name in ("a", "b") for i in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["file,action,scene", *lines]), encoding="utf-8")
    words = ["--root", videos, "--columns", "path=file,label=action,group=scene", "--test", "40%"]
    assert call("list", tmp_path / "list.csv", tmp_path / "out", *words) == DONE
    rows = read_manifest(tmp_path / "out" / "manifest.parquet").table.to_pylist()
    assert len({(row["group"], row["split"]) for row in rows}) == 3  # every group in one split
    assert {row["split"] for row in rows} == {"train", "test"}
    assert [row["id"] for row in rows if row["label"] == -1] == ["a/0.mp4", "b/0.mp4"]
    assert [row["class"] for row in rows if row["label"] == -1] == [None, None]


def test_ucf101_as_it_is_shipped(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real files in the official layout, from the lists to a manifest in parts; one file is missing."""
    root, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n", encoding="utf-8")
    parts: dict[str, list[str]] = {"trainlist01.txt": [], "testlist01.txt": []}
    for number, name in enumerate(("Archery", "Biking"), start=1):
        (root / name).mkdir(parents=True)
        for group in range(1, 6):
            uri = f"{name}/v_{name}_g{group:02d}_c01.avi"
            shutil.copy(originals / "a" / "0.mp4", root / uri)
            parts["testlist01.txt" if group < 3 else "trainlist01.txt"].append(uri + (f" {number}" if group > 2 else ""))
    for file, lines in parts.items():
        (lists / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "Biking" / "v_Biking_g04_c01.avi").unlink()
    assert call("ucf101", root, tmp_path / "out", "--labeled", "1/class", "--parts") == DONE
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert (tmp_path / "out" / "manifest.parquet" / "part-00000.parquet").is_file()
    assert (manifest.source, manifest.classes, len(manifest.table)) == ("ucf101 split 1", ("Archery", "Biking"), 10)
    assert len(manifest.find_usable_rows("train")) == 5 and len(manifest.find_usable_rows("test")) == 4
    assert manifest.table["group"][0].as_py() == "v_Archery_g01"
    assert len(read_labels(tmp_path / "out" / "labels.parquet", manifest).ids) == 2
    out = capsys.readouterr().out
    assert "Biking/v_Biking_g04_c01.avi: missing, no such file" in out and "note: 1 of 10 files are missing" in out
    assert call("ucf101", root, tmp_path / "out", "--labeled", "1/class") == DONE  # a file again, and no part is left
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["labels.parquet", "manifest.parquet"]
    assert read_manifest(tmp_path / "out" / "manifest.parquet").fingerprint == manifest.fingerprint


def test_kinetics_with_time_ranges(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (videos / "a" / "0.mp4").rename(videos / "a" / "yt1_000002_000012.mp4")
    header = "label,youtube_id,time_start,time_end,split\n"
    text = header + "a,yt1,2,12,train\na,1,0,5,train\nb,2,0,5,train\nb,gone,0,10,train\n"
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    (tmp_path / "val.csv").write_text(header + "a,3,0.1,0.2,val\nb,4,0,5,val\n", encoding="utf-8")
    words = ["--lists", tmp_path / "train.csv", tmp_path / "val.csv", "--labeled", "1/class"]
    assert call("kinetics", videos, tmp_path / "out", *words) == DONE
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out" / "manifest.parquet").table.to_pylist()}
    assert rows["gone_000000_000010"]["status"] == "missing" and rows["yt1_000002_000012"]["start"] is None
    assert (rows["3_000000_000000"]["start"], rows["3_000000_000000"]["end"]) == (0.1, 0.2)
    out = capsys.readouterr().out
    assert "note: 1 of 6 files are missing below" in out and "note: there is no test split: val is used as test" in out


def test_pyslowfast_lists(videos: Path, tmp_path: Path) -> None:
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        lines = [f"{videos}/{name}/{n}.mp4 {'ab'.index(name)}" for name in "ab" for n in numbers]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "names.txt").write_text("walk\nrun\n", encoding="utf-8")
    words = ["--root", videos, "--classes", tmp_path / "names.txt", "--labeled", "1/class"]
    assert call("list", tmp_path / "train.csv", tmp_path / "test.csv", tmp_path / "out", *words) == DONE
    manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert manifest.classes == ("walk", "run") and len(manifest.find_usable_rows("test")) == 4
    assert manifest.locate(0) == str(videos / "a" / "0.mp4")


def test_frame_folders(tmp_path: Path) -> None:
    """Real images, by class folders and by a list of mmaction2's format."""
    for number in range(8):
        folder = tmp_path / "frames" / "ab"[number % 2] / f"v{number}"
        folder.mkdir(parents=True)
        for frame in range(1, 6):
            Image.fromarray(number_frame(frame, 64, 48)).save(folder / f"img_{frame:05d}.jpg")
    assert call("frames", tmp_path / "frames", tmp_path / "one", "--fps", "10", "--labeled", "1/class") == DONE
    manifest = read_manifest(tmp_path / "one" / "manifest.parquet")
    row = manifest.table.slice(0, 1).to_pylist()[0]
    assert (row["id"], row["uri"], row["status"]) == ("a/v0", "a/v0/img_%05d.jpg", "ok")
    assert (row["frames"], row["fps"], row["duration"], row["width"], row["height"]) == (5, 10, 0.5, 64, 48)
    lines = [f"{'ab'[n % 2]}/v{n} 5 {n % 2}" for n in range(8)]
    (tmp_path / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    words = ["--root", tmp_path / "frames", "--fps", "10", "--labeled", "1/class"]
    assert call("list", tmp_path / "train.txt", tmp_path / "two", *words) == DONE
    other = read_manifest(tmp_path / "two" / "manifest.parquet")
    assert other.table.select(["id", "uri", "frames"]) == manifest.table.select(["id", "uri", "frames"])


def test_again_replaces_both_files(videos: Path, tmp_path: Path) -> None:
    call("folder", videos, tmp_path / "out")
    before = read_manifest(tmp_path / "out" / "manifest.parquet")
    (videos / "a" / "5.mp4").unlink()
    assert call("folder", videos, tmp_path / "out", "--seed", "1") == DONE
    after = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert after.fingerprint != before.fingerprint and len(after.table) == 11
    assert read_labels(tmp_path / "out" / "labels.parquet", after).seed == 1


def test_a_refusal_leaves_the_old_files(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("folder", videos, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert call("folder", videos, tmp_path / "out", "--labeled", "9/class") == USER_ERROR
    assert "class a has 4 usable train videos, 9 are needed" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder", "none", "out"], "folder not found"),
        (["folder", "videos", "out", "--labeled", "many"], "--labeled 'many' is not understood"),
        (["folder", "videos", "out", "--test", "0%"], "--test '0%' is not understood"),
        (["folder", "videos", "out", "--test", "95%"], "at most 90%"),
        (["folder", "videos", "out", "--seed", "-1"], "--seed -1"),
        (["folder", "videos", "out", "--timeout", "0"], "--timeout 0"),
        (["folder", "videos", "videos/a/0.mp4"], "is a file; OUT must be a folder"),
        (["folder", "empty", "out"], "class folders without a video"),
        (["folder", "junk", "out"], "none of the 2 files"),
        (["list", "none.csv", "out", "--root", "videos"], "list not found"),
        (["list", "none.csv", "out", "--root", "none"], "--root not found"),
        (["folder", "videos", "s3://bucket/out"], "s3://bucket/out is a URI; OUT must be a folder"),
        (["folder", "videos", "videos/a/0.mp4/out"], "cannot be made or written into: Not a directory"),
        (["ucf101", "videos", "out"], "no classInd.txt in"),
        (["ucf101", "videos", "out", "--lists", "lists"], "names no videos: the lists are empty"),
        (["hmdb51", "videos", "out", "--lists", "lists"], "names no videos: the lists are empty"),
        (["ssv2", "videos", "out", "--lists", "lists"], "names no videos: the lists are empty"),
        (["kinetics", "videos", "out", "--lists", "lists/k_val.csv"], "names no videos: the lists are empty"),
        (["list", "lists/testlist01.txt", "out", "--root", "videos"], "holds no videos"),
        (["hmdb51", "videos", "out", "--lists", "none"], "--lists not found"),
        (["kinetics", "videos", "out", "--lists", "none.csv"], "list not found"),
        (["ssv2", "videos", "out", "--lists", "videos"], "list not found"),
        (["frames", "videos", "out", "--fps", "25"], "without a folder of numbered images"),
        (["frames", "videos", "out", "--fps", "0"], "--fps 0"),
        (["list", "none.csv", "out", "--root", "videos", "--columns", "file=x"], "--columns: file is not understood"),
        (["frames", "videos", "out", "--fps", "nan"], "--fps nan must be a number above 0"),
        (["folder", "videos", "out", "--timeout", "inf"], "--timeout inf must be a number of seconds above 0"),
        (["list", "none.csv", "out", "--root", "videos", "--columns", "path=0,label=1"], "columns are numbered from 1"),
        (["list", "none.csv", "out", "--root", "videos", "--delimiter", "||"], "--delimiter '||' must be comma, semicolon"),
        (["synthetic", "out", "--classes", "99"], "--classes 99 must lie between 2 and 16"),
        (["synthetic", "out", "--videos", "16"], "needs 4; raise --videos"),
        (["synthetic", "out", "--noise", "-1"], "difficulty: noise must not be negative"),
        (["synthetic", "out", "--noise", "nan"], "difficulty: noise must be a finite number, got nan"),
        (["synthetic", "out", "--difficulty", "inf"], "difficulty: the level must be a finite number, got inf"),
        (["synthetic", "videos/.."], "was not made by this command"),
    ],
)
@pytest.mark.usefixtures("videos")
def test_mistakes(
    tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty/a", "empty/b", "junk/a", "junk/b"):
        Path(name).mkdir(parents=True)
    for name in ("empty/a/x.mp4", "junk/a/x.mp4", "junk/b/y.mp4"):
        Path(name).write_bytes(b"junk")
    write_empty_lists(tmp_path / "lists")
    before = sorted(tmp_path.rglob("*"))
    assert call(*words) == USER_ERROR
    assert message in capsys.readouterr().err
    notes = {tmp_path / "out", tmp_path / "out" / PROBE_LOG} if "junk" in words else set()  # of what was probed: not in vain
    assert sorted({*tmp_path.rglob("*")} - notes) == before


def write_empty_lists(folder: Path) -> None:
    folder.mkdir()
    for name in ("trainlist01.txt", "testlist01.txt", "a_test_split1.txt"):
        (folder / name).touch()
    (folder / "classInd.txt").write_text("1 a\n2 b\n", encoding="utf-8")
    (folder / "labels.json").write_text('{"a": "0", "b": "1"}', encoding="utf-8")
    for name in ("train.json", "validation.json"):
        (folder / name).write_text("[]", encoding="utf-8")
    (folder / "k_val.csv").write_text("label,youtube_id,time_start,time_end\n", encoding="utf-8")


def test_synthetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["synthetic", str(tmp_path), "--classes", "2", "--videos", "8", "--labeled", "1/class", "--objects", "1"]
    assert call(*words) == DONE
    first = read_manifest(tmp_path / "manifest.parquet")
    assert (first.source, first.root, first.classes) == ("synthetic", str(tmp_path / "videos"), ("drift_left", "drift_right"))
    assert set(first.table["status"].to_pylist()) == {"ok"} and set(first.table["decoder"].to_pylist()) == {"decord"}
    assert len(first.find_usable_rows("train")) == 6 and len(first.find_usable_rows("test")) == 2
    assert call(*words) == DONE  # its own videos are replaced, and come out the same
    assert read_manifest(tmp_path / "manifest.parquet").fingerprint == first.fingerprint
    assert call(*words, "--videos", "6") == DONE
    assert len(read_manifest(tmp_path / "manifest.parquet").table) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.parquet", "manifest.parquet", "videos"]


@pytest.mark.usefixtures("in_child_processes")
def test_what_is_complete_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither rendered nor probed nor copied: no process is started for it. What changed is."""
    words = ["synthetic", tmp_path, "--classes", "2", "--videos", "8", "--labeled", "1/class", "--resize", "48"]
    assert call(*words) == DONE
    first = read_manifest(tmp_path / "manifest.parquet").table

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.processes.isolation.ChildProcess._start", refuse)
        assert call(*words) == DONE
        assert read_manifest(tmp_path / "manifest.parquet").table == first
        said = capsys.readouterr().err
        for what in ("the 8 videos are there", "8 of 8 files have not changed", "8 of 8 copies are there"):
            assert what in said
        for changed in (["--seed", "1"], ["--objects", "2"], ["--difficulty", "0.1"], ["--videos", "10"]):
            with pytest.raises(AssertionError, match="a process was started"):
                call(*words, *changed)
        monkeypatch.setattr("pipeline.video.synthetic.RENDERING_VERSION", 0)  # as after an update of the program
        with pytest.raises(AssertionError, match="a process was started"):
            call(*words)
    assert read_manifest(tmp_path / "manifest.parquet").table == first  # still there


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "killed between two renames"])
def test_synthetic_videos_that_are_not_whole_are_rendered_again(damage: str, tmp_path: Path) -> None:
    def folder() -> dict[str, bytes]:
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in (tmp_path / "videos").rglob("*.mp4")}

    words = ["synthetic", tmp_path, "--classes", "2", "--videos", "4", "--labeled", "1/class", "--test", "50%"]
    assert call(*words) == DONE
    whole = folder()
    one = tmp_path / next(iter(whole))
    if damage == "changed":
        one.write_bytes(bytes(one.stat().st_size))
    elif damage == "removed":
        one.unlink()
    elif damage == "added":
        one.with_name("more.mp4").write_bytes(whole[next(iter(whole))])
    else:
        (tmp_path / "videos").rename(tmp_path / ".videos.old")  # killed between the two renames
    assert call(*words) == DONE
    assert folder() == whole
    assert set(read_manifest(tmp_path / "manifest.parquet").table["status"].to_pylist()) == {"ok"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.parquet", "manifest.parquet", "videos"]


def test_only_what_changed_is_probed_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen by the access times that the kernel would set: an unchanged file is damaged without its time and size changing."""
    call("folder", videos, tmp_path / "out")
    first = read_manifest(tmp_path / "out" / "manifest.parquet")
    for name in ("0.mp4", "1.mp4"):
        status = (videos / "a" / name).stat()
        (videos / "a" / name).write_bytes(bytes(status.st_size))
        os.utime(videos / "a" / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(videos / "a" / "1.mp4")
    (videos / "b" / "0.mp4").unlink()
    call("folder", videos, tmp_path / "out")
    second = read_manifest(tmp_path / "out" / "manifest.parquet")
    status = dict(zip(second.table["id"].to_pylist(), second.table["status"].to_pylist(), strict=True))
    assert len(status) == len(first.table) - 1 and status["a/0.mp4"] == "ok" and status["a/1.mp4"] == "not_a_video"
    call("folder", videos, tmp_path / "out", "--probe", "full")  # another look is another probe
    assert read_manifest(tmp_path / "out" / "manifest.parquet").table["status"].to_pylist()[0] == "not_a_video"


def test_a_decoder_may_be_forced(videos: Path, tmp_path: Path) -> None:
    call("folder", videos, tmp_path / "out", "--decoder", "pyav")
    assert set(read_manifest(tmp_path / "out" / "manifest.parquet").table["decoder"].to_pylist()) == {"pyav"}


@pytest.mark.usefixtures("in_child_processes")
def test_a_video_that_crashes_the_decoder_is_named(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "a" / "5.mp4").rename(videos / "a" / "segfault.mp4")
    (videos / "b" / "5.mp4").rename(videos / "b" / "hang.mp4")
    monkeypatch.setattr(probe, "reuse_or_probe", misbehaving.probe_or_misbehave)
    assert call("folder", videos, tmp_path / "out", "--timeout", "4", "--labeled", "1/class") == DONE
    rows = {row["id"]: row for row in read_manifest(tmp_path / "out" / "manifest.parquet").table.to_pylist()}
    bad = {name: (row["status"], row["reason"]) for name, row in rows.items() if row["status"] != "ok"}
    assert bad == {
        "a/segfault.mp4": ("undecodable", "the process crashed (SIGSEGV)"),
        "b/hang.mp4": ("undecodable", "no result after 4 s"),
    }
    assert "a/segfault.mp4: undecodable, the process crashed (SIGSEGV)" in capsys.readouterr().out
