"""Which videos words name: files, folders, patterns, lists and manifests, in their order."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.manifest.schema import SCHEMA, write_manifest
from pipeline.prediction.file_manifest import make_manifest
from pipeline.prediction.input_videos import InputVideo, list_inputs
from pipeline.video.probe import Probe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six files, two of which are no videos, in two folders; and it is the current one."""
    for name in ("b.mp4", "a.mp4", "deep/c.mkv", "deep/er/d.mp4", "notes.md", "deep/picture.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*words: str, root: str | None = None) -> list[str]:
    return [video.name for video in list_inputs(words, root)]


def test_words_are_expanded_in_their_order(folder: Path) -> None:
    assert names("b.mp4", "deep", "a.mp4") == ["b.mp4", "deep/c.mkv", "deep/er/d.mp4", "a.mp4"]
    assert names(str(folder)) == [f"{folder}/{name}" for name in ("a.mp4", "b.mp4", "deep/c.mkv", "deep/er/d.mp4")]
    assert names("*.mp4") == ["a.mp4", "b.mp4"] and names("**/*.mp4") == ["a.mp4", "b.mp4", "deep/er/d.mp4"]
    assert names("absent.mp4", "s3://bucket/x.mp4") == ["absent.mp4", "s3://bucket/x.mp4"]
    assert [video.location for video in list_inputs(["deep"])] == [f"{folder}/deep/c.mkv", f"{folder}/deep/er/d.mp4"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(folder: Path) -> None:
    (folder / "take[1]*.mp4").touch()
    assert names("take[1]*.mp4") == ["take[1]*.mp4"]


@pytest.mark.parametrize("text", ["deep/c.mkv\na.mp4\n", "deep/c.mkv 3\na.mp4 0\n", "path,label\ndeep/c.mkv,x\na.mp4,y\n"])
def test_a_list_may_have_labels_or_none_and_starts_from_its_own_folder(folder: Path, text: str) -> None:
    (folder / "list.csv").write_text(text)
    videos = list_inputs([f"{folder}/list.csv"])
    assert [video.location for video in videos] == [f"{folder}/deep/c.mkv", f"{folder}/a.mp4"]
    assert [video.name for video in videos] == ["deep/c.mkv", "a.mp4"]


def test_parts_of_files_and_another_root(folder: Path) -> None:
    (folder / "list.csv").write_text("path,start,end\nc.mkv,0,2\nc.mkv,2,3.5\n")
    videos = list_inputs(["list.csv"], root=str(folder / "deep"))
    assert [(video.location, video.start, video.end) for video in videos] == [
        (f"{folder}/deep/c.mkv", 0, 2), (f"{folder}/deep/c.mkv", 2, 3.5)
    ]  # fmt: skip


def test_what_names_nothing_or_a_video_twice_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "bad.txt").write_text("a.mp4 1\nb.mp4 one two three 4\n\n")
    (folder / "no.parquet").write_bytes(b"x")
    for words, message in (
        (["*.avi"], r"no file matches \*.avi"),
        (["empty"], "the folder empty holds no video files"),
        (["a.mp4", "*.mp4"], "named twice"),
        (["absent.txt"], "list not found"),
        (["no.parquet"], "not a readable Parquet file"),
        (["absent.parquet"], "manifest not found"),
    ):
        with pytest.raises(UserError, match=message):
            list_inputs(words)


def test_a_manifest_says_what_is_in_its_files_and_others_are_probed(folder: Path) -> None:
    """Rows come in the order of the inputs, not of ids."""
    base = dict.fromkeys(SCHEMA.names)
    known = {"frames": 50, "fps": 25.0, "variable_fps": False, "duration": 2.0, "width": 64, "height": 48, "bytes": 1,
             "decoder": "pyav", "status": "ok", "label": 0, "class": "x", "split": "train"}  # fmt: skip
    rows = [{**base, **known, "id": name, "uri": f"{name}.mp4"} for name in ("a", "b")]
    rows[1] |= {"status": "truncated", "reason": "lost"}
    manifest = write_manifest(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "m.parquet", ["x", "y"], str(folder), "test")
    inputs = [InputVideo("z.mp4", "/z.mp4"), *list_inputs(["m.parquet"])[::-1], InputVideo("y.mp4", "/y.mp4")]
    asked = []

    def probe(locations: list[str]) -> list[Probe]:
        asked.extend(locations)
        return [Probe(frames=index, status="ok") for index in (10, 20)]

    table = make_manifest(inputs, ("p", "q"), probe).table  # type: ignore[arg-type]
    assert asked == ["/z.mp4", "/y.mp4"]
    assert table["uri"].to_pylist() == ["/z.mp4", f"{folder}/b.mp4", f"{folder}/a.mp4", "/y.mp4"]
    assert table["frames"].to_pylist() == [10, 50, 50, 20] and table["status"].to_pylist() == ["ok", "truncated", "ok", "ok"]
    assert set(table["split"].to_pylist()) == {"test"} and set(table["label"].to_pylist()) == {-1}
    assert manifest.fingerprint == list_inputs(["m.parquet"])[0].manifest.fingerprint  # type: ignore[union-attr]
