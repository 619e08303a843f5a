"""Class folders and lists: what is understood, and what is refused with an error that names it."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import UserError
from pipeline.prepare.sources import Listing, draw_missing_splits, list_files, list_folder
from pipeline.prepare.sources.folder import FolderLayout
from pipeline.prepare.sources.list_rows import ListOptions


def list_csv(file: Path, root: Path, columns: dict[str, str] | None = None) -> Listing:
    return list_files([file], ListOptions(str(root), columns))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "run/b.mp4", "run/a.mp4", "jump/deep/c.avi", "jump/.hidden", ".git/config", "README.md")
    listing = list_folder(tmp_path)
    assert listing.uris == ("jump/deep/c.avi", "run/a.mp4", "run/b.mp4")
    assert listing.labels == ("jump", "run", "run")
    assert (listing.classes, listing.splits, listing.root) == (("jump", "run"), None, str(tmp_path))


def test_train_and_test_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "test/run/c.mp4", "val/run/d.mp4")
    listing = list_folder(tmp_path)
    assert dict(zip(listing.uris, listing.splits or (), strict=True)) == {
        "train/run/a.mp4": "train",
        "train/jump/b.mp4": "train",
        "test/run/c.mp4": "test",
        "val/run/d.mp4": "val",
    }


def test_val_is_test_where_there_is_no_test(tmp_path: Path) -> None:
    listing = list_folder(touch(tmp_path, "train/run/a.mp4", "train/jump/b.mp4", "val/run/c.mp4"))
    assert listing.splits == ("train", "train", "test") and "val is used as test" in listing.notes[0]


def test_train_alone_gets_a_drawn_test(tmp_path: Path) -> None:
    names = [f"train/{name}/{i}.mp4" for name in ("a", "b") for i in range(4)]
    listing = list_folder(touch(tmp_path, *names))
    assert listing.splits is None and "one is drawn from train" in listing.notes[0]
    assert (draw_missing_splits(listing, 0.25, 0).splits or ()).count("test") == 2


def test_folders_with_the_names_of_splits_among_classes_are_classes_where_the_user_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.mp4", "ship/b.mp4")
    assert "train may be a split or a class, for beside it lie ship; say --splits train=train" in refused_folder(tmp_path)
    assert list_folder(tmp_path, FolderLayout(splits="none")).classes == ("ship", "train")


def refused_folder(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_folder(root)
    return str(caught.value)


def test_folder_errors(tmp_path: Path) -> None:
    assert refused_folder(tmp_path / "none") == f"folder not found: {tmp_path / 'none'}"
    touch(tmp_path, "flat/a.mp4", "one/run/a.mp4", "half/run/a.mp4", "split/train/a.mp4", "split/test/b/c.mp4")
    assert "is a file; name the folder" in refused_folder(tmp_path / "flat" / "a.mp4")
    assert "holds no class folders" in refused_folder(tmp_path / "flat")
    assert "at least 2 classes are needed, found run" in refused_folder(tmp_path / "one")
    assert f"{tmp_path / 'split' / 'train'} holds no class folders" in refused_folder(tmp_path / "split")
    (tmp_path / "half" / "jump").mkdir()
    assert f"  - {tmp_path / 'half' / 'jump'}" in refused_folder(tmp_path / "half")


def test_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b/b.mp4", "c d.mp4", "e.mp4")
    text = '\ufeffpath,label,group,split\na.mp4,run,g1,train\n"b/b.mp4",jump,,Training\nc d.mp4,run,g2,val\n\ne.mp4,,g3,test\n'
    listing = list_csv(write(tmp_path / "list.csv", text), tmp_path)
    assert listing.uris == ("a.mp4", "b/b.mp4", "c d.mp4", "e.mp4")
    assert listing.labels == ("run", "jump", "run", None)
    assert listing.groups == ("g1", None, "g2", "g3")
    assert listing.splits == ("train", "train", "val", "test")
    assert (listing.classes, listing.notes) == (("jump", "run"), ())


def test_list_with_mapped_columns_and_other_delimiters(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    for delimiter in ",;\t":
        text = f"id{delimiter}file{delimiter}action\n1{delimiter}a.mp4{delimiter}run\n2{delimiter}b.mp4{delimiter}jump\n"
        listing = list_csv(write(tmp_path / "list.csv", text), tmp_path, {"path": "file", "label": "action"})
        assert (listing.uris, listing.labels, listing.splits) == (("a.mp4", "b.mp4"), ("run", "jump"), None)


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [f"{i}.mp4" for i in range(12)]
    touch(tmp_path, *names)
    text = "path,label\n" + "".join(f"{i}.mp4,{i}\n" for i in reversed(range(12)))
    assert list_csv(write(tmp_path / "list.csv", text), tmp_path).classes == tuple(str(i) for i in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no videos"),
        ("path,label\n", "holds no videos"),
        ("what,label\na.mp4,x\n", "has no column path; it has what, label"),
        ("path,label\na.mp4,x\nb.mp4\n", "list.csv:3: 1 fields, the header has 2"),
        ("path,label\na.mp4,x,y\nb.mp4,y\n", "list.csv:2: 3 fields, the header has 2"),
        ("path,label\na.mp4,x\nb.mp4,x\n", "at least 2 classes"),
        ("path,label\na.mp4,x\na.mp4,x\nb.mp4,y\n", "listed more than once:\n  - a.mp4"),
        ("path,label\nc.mp4,x\nd.mp4,y\n", "none of the 2 files"),
        ("path,label,split\na.mp4,x,train\nb.mp4,y,dev\n", "list.csv:3: unknown split 'dev'"),
        ("path,label,group,split\na.mp4,x,g,train\nb.mp4,y,g,test\n", "group g: b.mp4 in test, a.mp4 in train"),
    ],
)
def test_list_errors(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(UserError) as caught:
        list_csv(write(tmp_path / "list.csv", text), tmp_path)
    assert message in str(caught.value)


def test_missing_files_are_counted_and_stay_listed(tmp_path: Path) -> None:
    text = "path,label,split\n" + "".join(f"{i}.mp4,{i % 2},{'test' if i > 5 else 'train'}\n" for i in range(9))
    listing = list_csv(write(tmp_path / "list.csv", text), touch(tmp_path, "0.mp4", "1.mp4", "7.mp4", "8.mp4"))
    assert len(listing.uris) == 9
    assert listing.notes == (f"5 of 9 files are missing below {tmp_path} (1 test, 4 train); they stay listed, and unused",)


def test_unreadable_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="list not found"):
        list_csv(tmp_path / "none.csv", tmp_path)
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,x\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        list_csv(tmp_path / "list.csv", tmp_path)
    with pytest.raises(UserError, match="--root not found"):
        list_csv(tmp_path / "list.csv", tmp_path / "none")


def test_a_root_without_read_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)  # taking the permission away would not stop root
    assert refused_folder(tmp_path) == f"folder {tmp_path} cannot be read: Permission denied"


def test_class_folders_in_an_object_store() -> None:
    """``memory://`` is a store of fsspec, which is read like any other URI."""
    store = fsspec.filesystem("memory")
    for name in ("run/b.mp4", "run/a.mp4", "jump/deep/c.mp4", "jump/.hidden"):
        store.pipe(f"/bucket/videos/{name}", b"x")
    try:
        listing = list_folder("memory://bucket/videos/")
        assert (listing.root, listing.classes) == ("memory://bucket/videos", ("jump", "run"))
        assert listing.uris == ("jump/deep/c.mp4", "run/a.mp4", "run/b.mp4")
        with pytest.raises(UserError, match=r"folder memory://bucket/none cannot be read"):
            list_folder("memory://bucket/none")
        with pytest.raises(UserError, match=r"no library reads nosuch://"):
            list_folder("nosuch://bucket/x")
    finally:
        store.rm("/bucket", recursive=True)


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    listing = list_folder(f"file://{touch(tmp_path, 'run/a.mp4', 'jump/b.mp4')}")
    assert (listing.root, listing.uris) == (str(tmp_path), ("jump/b.mp4", "run/a.mp4"))
