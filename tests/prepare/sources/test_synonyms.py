"""Synonyms in folders and lists: which words are understood, and which are refused so that they become no class or video."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest

from jobs import prepare
from jobs.command import run
from pipeline.errors import UserError
from pipeline.prepare.sources import Listing, list_files, list_folder, list_frames, list_kinetics
from pipeline.prepare.sources.folder import FolderLayout
from pipeline.prepare.sources.list_rows import ListOptions


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def splits_of(listing: Listing) -> dict[str, str]:
    return {uri.split("/")[0]: split for uri, split in zip(listing.uris, listing.splits or (), strict=True)}


def refused(root: Path, layout: FolderLayout | None = None) -> str:
    with pytest.raises(UserError) as caught:
        list_folder(root, layout)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("train", "test", "split"),
    [
        ("videos_train", "videos_val", "test"),
        ("train", "eval", "test"),
        ("Training", "Testing", "test"),
        ("trainVideos", "testVideos", "test"),
        ("rawframes_train", "rawframes_test", "test"),
        ("train_256", "valid_256", "test"),
        ("kinetics400_train", "kinetics400_val", "test"),
        ("my-labeled", "my-test", "test"),
    ],
)
def test_names_of_split_folders(tmp_path: Path, train: str, test: str, split: str) -> None:
    root = touch(tmp_path, f"{train}/run/a.mp4", f"{train}/jump/b.mp4", f"{test}/run/c.mp4", "annotations/train.txt")
    listing = list_folder(root)
    assert (listing.classes, splits_of(listing)) == (("jump", "run"), {train: "train", test: split})
    assert f"{root}: without a video and left out: annotations" in listing.notes


def test_unlabeled_videos_lie_in_a_folder_without_classes(tmp_path: Path) -> None:
    names = ["train/run/a.mp4", "train/jump/b.mp4", "test/run/c.mp4", "unlabeled/d.mp4"]
    listing = list_folder(touch(tmp_path, *names))
    assert dict(zip(listing.uris, listing.labels, strict=True))["unlabeled/d.mp4"] is None
    assert splits_of(listing)["unlabeled"] == "unlabeled"
    touch(tmp_path, "unlabeled/batch1/e.mp4")
    assert "named only where videos are unlabeled; leave the label of such rows empty" in refused(tmp_path)
    assert "batch1, for example unlabeled/batch1/e.mp4" in refused(tmp_path)


def test_what_may_be_a_split_or_a_class_is_refused_until_the_user_says(tmp_path: Path) -> None:
    root = touch(tmp_path, "run/a.mp4", "jump/b.mp4", "test/c.mp4")
    message = refused(root)
    assert "test may be a split or a class, for beside it lie jump, run" in message and "--splits none" in message
    assert list_folder(root, FolderLayout(splits="none")).classes == ("jump", "run", "test")
    assert list_folder(root, FolderLayout(skip=("test",))).classes == ("jump", "run")


def test_split_folders_that_do_not_fit_together(tmp_path: Path) -> None:
    videos = [f"{name}/{label}/a.mp4" for name in ("videos_train", "rawframes_train", "part2") for label in ("run", "jump")]
    root = touch(tmp_path, *videos[:4])
    message = refused(root)
    assert "several are the same split" in message and "if no video is there twice, all: --splits train=" in message
    assert "none of them is train" in refused(touch(tmp_path / "other", "val/run/a.mp4", "test/run/b.mp4"))
    touch(root, *videos)
    listing = list_folder(root, FolderLayout(splits="train=videos_train,test=part2"))
    assert splits_of(listing) == {"videos_train": "train", "part2": "test"}
    assert any("not named by --splits and left out: other, rawframes_train" in note for note in listing.notes)
    message = refused(root, FolderLayout(splits="train=videos_trian,tset=part2"))
    assert "there is no folder videos_trian" in message and "there is no split tset" in message


def test_two_folders_of_one_split_are_read_when_the_user_says_which(tmp_path: Path) -> None:
    both = touch(tmp_path, *(f"{split}/run/{split}.mp4" for split in ("train", "val", "validation", "test")))
    message = refused(both)
    assert "say which to read, --splits test=test,train=train,val=val, or" in message
    assert message.endswith("all: --splits test=test,train=train,val=val,val=validation")
    touch(both, *(f"{split}/jump/{split}.mp4" for split in ("train", "val", "validation", "test")))
    for splits in ("test=test,train=train,val=val", "test=test,train=train,val=val,val=validation"):
        assert set(splits_of(list_folder(both, FolderLayout(splits=splits))).values()) == {"train", "val", "test"}


def test_folders_without_a_video_are_no_classes(tmp_path: Path) -> None:
    root = touch(tmp_path, "run/a.mp4", "jump/b.mp4", "notes/readme.txt", "labels/x.csv", "__MACOSX/._a", "loose.mp4")
    message = refused(root)
    assert "without a video; add videos, remove them, or leave them out with --skip FOLDER:" in message
    assert f"  - {root / 'notes'}" in message
    listing = list_folder(root, FolderLayout(skip=("notes",)))
    assert listing.classes == ("jump", "run")
    assert listing.notes == (
        f"{root}: without a video and left out: __MACOSX, labels",
        f"{root}: 1 videos beside the folders are left out, the first: loose.mp4",
    )
    touch(root, "labels/sign.mp4")  # with a video in it, it is a class like any other
    assert list_folder(root, FolderLayout(skip=("notes",))).classes == ("jump", "labels", "run")


def test_frame_folders_are_read_like_folders_of_videos(tmp_path: Path) -> None:
    videos = [f"rawframes_{split}/{label}/v{split}" for split in ("train", "val") for label in "ab"]
    root = touch(tmp_path, *(f"{video}/img_{number:05}.jpg" for video in videos for number in (1, 2)), "annotations/a.txt")
    listing = list_frames(root, 25)
    assert (listing.classes, splits_of(listing)) == (("a", "b"), {"rawframes_train": "train", "rawframes_val": "test"})


def test_classes_that_differ_only_in_spelling_are_reported(tmp_path: Path) -> None:
    listing = list_folder(touch(tmp_path, "train/brush_hair/a.mp4", "train/run/a.mp4", "test/Brush hair/b.mp4"))
    assert any("differ in spelling only: Brush hair and brush_hair" in note for note in listing.notes)


# --------------------------------------------------------------------------------------------------------- lists


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return touch(tmp_path / "videos", *(f"{name}.mp4" for name in "abcdef"), "3.mp4", "4.mp4")


def read(root: Path, text: str, name: str = "list.csv", **options: object) -> Listing:
    file = root.parent / name
    file.write_text(text, encoding="utf-8")
    return list_files([file], ListOptions(str(root), **options))  # type: ignore[arg-type]


def no_list(root: Path, text: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(root, text, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "header",
    ["video_name,tag", "filename,class", "file,category", "File Path,Action", "uri,target", "video,activity", "# path,label",
     '"clip_path","class_name"', "id,label_id"],
)  # fmt: skip
def test_words_of_headers(root: Path, header: str) -> None:
    listing = read(root, f"{header}\na.mp4,run\nb.mp4,jump\n")
    assert (listing.uris, listing.labels) == (("a.mp4", "b.mp4"), ("run", "jump"))


def test_a_header_of_many_columns(root: Path) -> None:
    rows = ["clip_name,clip_path,label,subject,subset,mood", "x,a.mp4,run,s1,training,1", "y,b.mp4,jump,unknown,eval,2"]
    listing = read(root, "\n".join([*rows, "z,c.mp4,run,s2,test,3"]))
    assert (listing.uris, listing.splits) == (("a.mp4", "b.mp4", "c.mp4"), ("train", "val", "test"))
    assert listing.groups == ("s1", None, "s2")
    assert listing.notes[0].endswith("path from clip_path, group from subject, split from subset; not used: clip_name, mood")
    text = "file,video,label\na.mp4,b.mp4,run\nc.mp4,d.mp4,jump\n"
    assert "file and video could each be the path. Map them with --columns" in no_list(root, text)
    both = read(root, text, columns={"path": "video"})
    assert both.uris == ("b.mp4", "d.mp4")


def test_a_header_of_unknown_words_is_no_video(root: Path) -> None:
    text = "aufnahme,geste\na.mp4,run\nb.mp4,jump\n"
    message = no_list(root, text)
    assert "list.csv:1 names no file and looks like a header of unknown words (aufnahme and geste)" in message
    assert read(root, text, columns={"path": "aufnahme", "label": "geste"}).labels == ("run", "jump")
    assert "aufnahme" in read(root, text, columns={"path": "1", "label": "2"}).uris  # on purpose
    assert "list.csv:1 names no file" in no_list(root, "nummer;geste\n3;run\n4;jump\n")


def test_labels_that_are_words_among_numbers_are_reported(root: Path) -> None:
    message = no_list(root, "# made by someone\na.mp4 0\nb.mp4 1\nc.mp4 0\n")
    assert "list.csv:1: the label is someone, and the other labels are numbers" in message


@pytest.mark.parametrize("mark", ["", "-1", "-1.0", "unlabeled", "Unlabelled", "NaN", "null", "N/A", "?"])
def test_marks_of_unlabeled_videos(root: Path, mark: str) -> None:
    listing = read(root, f"a.mp4,0\nb.mp4,1\nc.mp4,{mark}\nd.mp4,1.0\n")
    assert (listing.labels, listing.classes) == (("0", "1", None, "1"), ("0", "1"))


def test_marks_without_a_header_and_frame_folders(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/img_{number:05}.jpg" for name in "abc" for number in (1, 2)))
    file = tmp_path / "list.txt"
    file.write_text("a 2 0\nb 2 1\nc 2 -1\n", encoding="utf-8")
    listing = list_files([file], ListOptions(str(root), frame_rate=25))
    assert listing.labels == ("0", "1", None) and [uri.split("/")[0] for uri in listing.uris] == ["a", "b", "c"]


def test_doubtful_marks_are_refused_until_the_user_says(root: Path) -> None:
    text = "path,label\na.mp4,run\nb.mp4,none\nc.mp4,jump\n"
    assert "list.csv:3: label 'none' is a class in some lists" in no_list(root, text)
    assert "--unlabeled none" in no_list(root, text)
    assert read(root, text, unlabeled=("none",)).classes == ("jump", "run")
    assert read(root, text, unlabeled=("-1",)).classes == ("jump", "none", "run")
    (root.parent / "classes.txt").write_text("jump\nnone\nrun\n", encoding="utf-8")
    assert read(root, text, classes=str(root.parent / "classes.txt")).classes == ("jump", "none", "run")
    assert "label -2 is a negative number; leave it empty" in no_list(root, "path,label\na.mp4,0\nb.mp4,-2\n")


def test_labels_of_unlabeled_rows_name_the_remedy(root: Path) -> None:
    text = "path,label,split\na.mp4,run,train\nb.mp4,jump,train\nc.mp4,run,test\nd.mp4,dummy,unlabeled\n"
    message = no_list(root, text)
    assert "named only where videos are unlabeled; leave the label of such rows empty" in message
    assert "dummy, for example" in message and "list.csv:5" in message
    assert read(root, text.replace("dummy", "")).labels[3] is None
    (root.parent / "classes.txt").write_text("jump\nrun\n", encoding="utf-8")
    assert "leave it empty where the class is unknown" in no_list(root, text, classes=str(root.parent / "classes.txt"))


def test_an_unlabeled_list_may_be_one_of_paths(root: Path) -> None:
    for name, text in (("train.txt", "a.mp4 0\nb.mp4 1\n"), ("test.txt", "c.mp4 1\nd.mp4 0\n"), ("more.txt", "e.mp4\nf.mp4\n")):
        (root.parent / name).write_text(text, encoding="utf-8")
    files = {"train": "train.txt", "eval": "test.txt", "unlabelled": "more.txt"}
    words = [f"{split}={root.parent / name}" for split, name in files.items()]
    listing = list_files(words, ListOptions(str(root)))
    assert listing.labels == ("0", "1", "1", "0", None, None)
    assert listing.splits == ("train", "train", "test", "test", "unlabeled", "unlabeled")


def test_names_of_lists_say_one_split(root: Path) -> None:
    names = ("ucf_train_5_percent_labeled.txt", "ucf_train_5_percent_unlabeled.txt", "ucf_test.txt")
    for name, text in zip(names, ("a.mp4 0\nb.mp4 1\n", "c.mp4 0\n", "d.mp4 1\n"), strict=True):
        (root.parent / name).write_text(text, encoding="utf-8")
    listing = list_files([root.parent / name for name in names], ListOptions(str(root)))
    assert listing.splits == ("train", "train", "unlabeled", "test")
    (root.parent / "train_test.txt").write_text("a.mp4 0\nb.mp4 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="its name says test and train; write train="):
        list_files([root.parent / "train_test.txt", root.parent / "ucf_test.txt"], ListOptions(str(root)))


@pytest.mark.parametrize(
    "text",
    ["run\njump\n", "class\nrun\njump\n", "0 run\n1 jump\n", "id,name\n0,run\n1,jump\n", "1\trun\n2\tjump\n", "run,0\njump,1\n",
     '["run", "jump"]', '{"run": 0, "jump": "1"}', '{"1": "run", "2": "jump"}'],
)  # fmt: skip
def test_forms_of_class_lists(root: Path, text: str) -> None:
    (root.parent / "classes.txt").write_text(text, encoding="utf-8")
    listing = read(root, "path,label\na.mp4,run\nb.mp4,jump\n", classes=str(root.parent / "classes.txt"))
    assert listing.classes == ("run", "jump")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("".join(f"{i} class{i}\n" for i in range(20)) + "the last\n", "all lines have a number and a name, but not"),
        ("0 run\n1 run\n", "names a class twice"),
        ("0 run\n2 jump\n", "without a gap"),
        ('{"run": "x"}', "must be JSON of a list"),
        ("[run", "must be JSON of a list"),
    ],
)
def test_mistakes_of_class_lists(root: Path, text: str, message: str) -> None:
    (root.parent / "classes.txt").write_text(text, encoding="utf-8")
    assert message in no_list(root, "path,label\na.mp4,run\nb.mp4,jump\n", classes=str(root.parent / "classes.txt"))


def test_kinetics_headers_and_marks(tmp_path: Path) -> None:
    root = touch(tmp_path / "k", *(f"x/{letter * 11}_000001_000011.mp4" for letter in "abc"))
    file = tmp_path / "list.csv"
    rows = "run,aaaaaaaaaaa,1,11,training\njump,bbbbbbbbbbb,1,11,eval\n-1,ccccccccccc,1,11,unlabeled\n"
    file.write_text(f"action,video_id,start_time,end_time,subset\n{rows}", encoding="utf-8")
    listing = list_kinetics(root, [file])
    assert (listing.labels, listing.splits) == (("run", "jump", None), ("train", "test", "unlabeled"))
    file.write_text("youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,train\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no column label"):
        list_kinetics(root, [file])


def test_the_command_reads_the_options(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path / "d", "run/a.mp4", "jump/b.mp4", "test/c.mp4")
    assert run(prepare.main, ["folder", str(tmp_path / "d"), str(tmp_path / "out")]) == 2
    assert "--splits none if all are classes" in capsys.readouterr().err
    assert run(prepare.main, ["folder", str(tmp_path / "d"), str(tmp_path / "out"), "--splits", "none", "--skip", "test"]) == 2
    assert "none of the 2 files" in capsys.readouterr().err  # they are empty, but listed
    (tmp_path / "l.csv").write_text("path,label\na.mp4,run\nb.mp4,none\nc.mp4,jump\n", encoding="utf-8")
    words = ["list", str(tmp_path / "l.csv"), str(tmp_path / "out"), "--root", str(root), "--unlabeled", "-1,none"]
    assert run(prepare.main, [*words[:-1], "none"]) == 2 and "none of the 3 files" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- Unicode forms


def form(name: str, text: str) -> str:
    return unicodedata.normalize(name, text)


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_is_found_in_another_unicode_form_of_its_name(tmp_path: Path, listed: str, stored: str) -> None:
    names = ["Läufer/älter/a é.mp4", "Läufer/ü.avi", "b.mp4"]
    root = touch(tmp_path / "videos", *(form(stored, name) for name in names))
    rows = [f"{form(listed, name.replace('avi', 'mp4'))},{i % 2}" for i, name in enumerate(names)]
    listing = read(root, "\n".join(["path,label", *rows]))
    assert listing.uris == tuple(form(stored, name) for name in names)
    assert listing.ids == tuple(form(listed, name.replace("avi", "mp4")) for name in names)
    assert "files are listed in another Unicode form than their names have here, the first: " in listing.notes[0]


def test_files_whose_names_look_the_same_are_distinguished_or_refused(tmp_path: Path) -> None:
    root = touch(tmp_path / "videos", "a.mp4", form("NFC", "é.mp4"), form("NFD", "é.mp4"))
    listing = read(root, f"path,label\n{form('NFC', 'é')}.mp4,x\na.mp4,y\n")
    assert listing.uris == (form("NFC", "é.mp4"), "a.mp4") and listing.notes == ()
    touch(root, form("NFC", "ệ.mp4"), form("NFD", "ệ.mp4"))
    half = unicodedata.normalize("NFC", "ẹ") + "\u0302.mp4"  # a third form of the same letter
    assert "listed videos that fit several files" in no_list(root, f"path,label\n{half},x\na.mp4,y\n")


def test_classes_of_two_unicode_forms_are_one(tmp_path: Path) -> None:
    names = [f"train/{form('NFC', 'café')}/a.mp4", "train/run/b.mp4", f"test/{form('NFD', 'café')}/c.mp4"]
    listing = list_folder(touch(tmp_path, *names))
    assert listing.classes == (form("NFC", "café"), "run")


def test_names_are_not_stored_in_the_encoding_of_an_old_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    touch(tmp_path, "run/a.mp4", "jump/b.mp4")
    assert list_folder(tmp_path).classes == ("jump", "run")
    assert "start the command with PYTHONUTF8=1" in refused(touch(tmp_path, "run/é.mp4"))
