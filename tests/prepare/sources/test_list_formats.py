"""Lists as the field's programs write them: every format, and every mistake in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.prepare.sources import Listing, list_files
from pipeline.prepare.sources.list_rows import ListOptions, parse_columns


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for name in ("a.mp4", "deep/b, c.mp4", "d e.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for video, numbers in (("f1", range(1, 4)), ("f2", range(3))):
        (folder / video).mkdir()
        for number in numbers:
            (folder / video / f"img_{number:05d}.jpg").touch()
    return folder


def read(root: Path, *texts: str, **options: object) -> Listing:
    """Lists the videos of texts, which become the files 0.txt, 1.txt, or ``NAME`` where a text begins with ``NAME: ``."""
    names = []
    for number, text in enumerate(texts):
        name, colon, rest = text.partition(": ")
        names.append(root.parent / (name if colon else f"{number}.txt"))
        names[-1].write_text(rest if colon else text, encoding="utf-8")
    return list_files(names, ListOptions(str(root), **options))  # type: ignore[arg-type]


def refused(root: Path, *texts: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(root, *texts, **options)
    return str(caught.value)


@pytest.mark.parametrize("delimiter", [" ", ",", "\t", ";", " , "])
def test_path_and_label(root: Path, delimiter: str) -> None:
    """PySlowFast and VideoMAE (space), UniFormer (comma): paths with the delimiter in them too."""
    listing = read(root, f"a.mp4{delimiter}0\ndeep/b, c.mp4{delimiter}12\n\nd e.mp4{delimiter}3")
    assert dict(zip(listing.uris, listing.labels, strict=True)) == {"a.mp4": "0", "deep/b, c.mp4": "12", "d e.mp4": "3"}
    assert listing.classes == ("0", "3", "12") and listing.splits is None


def test_paths_without_labels_are_refused_with_the_word_for_unlabeled_lists(root: Path) -> None:
    for text in ("a.mp4\nd e.mp4\n", "f1\nf2\n", "d e.mp4\n"):
        message = refused(root, text)
        assert f"0.txt has paths without labels, the first: {text.splitlines()[0]}." in message
        assert f"write unlabeled={root.parent}/0.txt beside the lists of labeled videos" in message
    assert f"or write unlabeled={root.parent}/0.txt if its videos have no label" in refused(root, "path\na.mp4\nd e.mp4\n")
    assert "found 'd e.mp4'; write -1 as its label" in refused(root, "a.mp4,1\na.mp4,1\na.mp4,1\nd e.mp4\n")
    (root / "test.mp4").touch()
    texts = {"train": "a.mp4 0\ndeep/b, c.mp4 1\n", "test": "test.mp4 0\n", "unlabeled": "d e.mp4\n"}
    for split, text in texts.items():
        (root.parent / f"{split}.txt").write_text(text, encoding="utf-8")
    words = [f"{split}={root.parent}/{split}.txt" for split in texts]
    assert list_files(words, ListOptions(str(root))).labels == ("0", "1", "0", None)  # so the remedy works


def test_absolute_paths_below_the_root_become_relative(root: Path) -> None:
    """Ids are then the same wherever the root is; other absolute paths are not changed."""
    (root.parent / "far.mp4").touch()
    listing = read(root, f"{root}/a.mp4 0\n{root.parent}/far.mp4 1\n")
    assert listing.uris == listing.ids == ("a.mp4", f"{root.parent}/far.mp4") and listing.notes == ()


def test_paths_that_are_uris_are_taken_as_listed(root: Path) -> None:
    assert read(root, "s3://bucket/a.mp4 0\na.mp4 1\n").uris == ("s3://bucket/a.mp4", "a.mp4")


def test_label_names_by_semicolon(root: Path) -> None:
    """Jester and SSv1."""
    assert read(root, "a.mp4;Swiping Left\nd e.mp4;No gesture\n").classes == ("No gesture", "Swiping Left")


@pytest.mark.parametrize("text", ["f1 3 0\nf2 3 1\n", "f1 0 3 0\nf2 0 3 1\n"])
def test_frame_folders(root: Path, text: str) -> None:
    """mmaction2's rawframes, without and with an offset."""
    listing = read(root, text, frame_rate=25.0)
    assert listing.uris == ("f1/img_%05d.jpg", "f2/img_%05d.jpg") and listing.ids == ("f1", "f2")
    assert (listing.labels, listing.frame_rate) == (("0", "1"), 25.0)
    assert "say with --fps" in refused(root, text)


def test_several_labels_are_refused(root: Path) -> None:
    assert "several labels a video are not supported" in refused(root, "a.mp4 0 2 4\nd e.mp4 1 2 3\n")


@pytest.mark.parametrize("delimiter", [" ", ",", ";"])
def test_one_malformed_line_does_not_make_others_malformed(root: Path, delimiter: str) -> None:
    """It changes neither the detected delimiter nor the detected number of numeric fields."""
    good = "".join(f"a{number}.mp4{delimiter}{number % 2}\n" for number in range(12))
    message = refused(root, f"{good}nothing\n{good.replace('a', 'b')}")
    assert "has 1 line that" in message and "0.txt:13: expected 2 fields, found 'nothing'" in message
    frames = "".join(f"f{number} 3 {number % 2}\n" for number in range(12))
    message = refused(root, f"{frames}f1 3\n", frame_rate=25.0)
    assert "has 1 line that" in message and "0.txt:13: expected 3 fields, found 'f1 3'" in message


def test_one_list_that_contradicts_itself(root: Path) -> None:
    message = refused(root, "a.mp4 0\nd e.mp4 1\na.mp4 1\n")
    assert "0.txt disagree:" in message and f"a.mp4: 0 in {root.parent / '0.txt'}:1, 1 in {root.parent / '0.txt'}:3" in message


def test_unlabeled_rows_may_name_other_classes(root: Path) -> None:
    """Only where the user says so, and only in split unlabeled; with a class list, too."""
    for number in range(3):
        (root / f"{number}.mp4").touch()
    labeled = "path,label,split\n0.mp4,wave,train\n1.mp4,clap,test\n"
    text = f"{labeled}2.mp4,jump,unlabeled\na.mp4,,unlabeled\nd e.mp4,wave,unlabeled\n"
    assert "say --other-classes:\n  - jump, for example" in refused(root, text)
    listing = read(root, text, other_classes=True)
    assert listing.classes == ("clap", "wave") and listing.labels == ("wave", "clap", "jump", None, "wave")
    assert listing.notes == ("videos of split unlabeled that show none of the classes: 1 (jump)",)
    names = root.parent / "classes.txt"
    names.write_text("wave\nclap\nsit\n", encoding="utf-8")
    assert "class jump is outside the class list" in refused(root, text, classes=str(names))
    assert read(root, text, classes=str(names), other_classes=True).classes == ("wave", "clap", "sit")
    message = refused(root, text.replace("clap,test", "run,test"), classes=str(names), other_classes=True)
    assert "has 1 line that" in message and "0.txt:3: class run is outside the class list" in message


def test_columns_by_number(root: Path) -> None:
    listing = read(root, "1|run|a.mp4|0.5|2\n2|jump|d e.mp4||\n", delimiter="|",
                   columns=parse_columns("path=3,label=2,start=4,end=5"))  # fmt: skip
    assert (listing.uris, listing.labels) == (("a.mp4", "d e.mp4"), ("run", "jump"))
    assert (listing.starts, listing.ends, listing.ids) == ((0.5, None), (2.0, None), ("a.mp4#0.5-2", "d e.mp4"))


def test_one_file_in_several_ranges(root: Path) -> None:
    listing = read(root, "path,label,start,end\na.mp4,run,0,2\na.mp4,jump,2,\n")
    assert listing.ids == ("a.mp4#0-2", "a.mp4#2-") and listing.uris == ("a.mp4", "a.mp4")


def test_delimiter_by_name(root: Path) -> None:
    assert read(root, "a.mp4\tx y\nd e.mp4\tz\n", delimiter="tab").labels == ("x y", "z")


def test_class_list(root: Path) -> None:
    for text in ("jump\nrun\nsit\n", "0 jump\n1 run\n2 sit\n", "1,jump\n2,run\n3,sit\n"):
        (root.parent / "classes.txt").write_text(text, encoding="utf-8")
        first = int(text[0]) if text[0].isdigit() else 0
        listing = read(root, f"a.mp4 {first}\nd e.mp4 sit\n", classes=str(root.parent / "classes.txt"))
        assert (listing.labels, listing.classes) == (("jump", "sit"), ("jump", "run", "sit"))
        message = refused(root, f"a.mp4 {first}\nd e.mp4 {first + 3}\n", classes=str(root.parent / "classes.txt"))
        assert f"0.txt:2: class {first + 3} is outside the class list (3 classes, {first} to {first + 2})" in message
    (root.parent / "classes.txt").write_text("1 jump\n3 run\n", encoding="utf-8")
    assert "without a gap" in refused(root, "a.mp4 1\nd e.mp4 3\n", classes=str(root.parent / "classes.txt"))


def test_lists_of_splits(root: Path) -> None:
    listing = read(root, "train.csv: a.mp4 0\n", "ucf_val_1.txt: d e.mp4 1\n", "test.csv: deep/b, c.mp4 1\n")
    assert listing.splits == ("train", "val", "test")
    (root.parent / "x.txt").write_text("a.mp4 0\n", encoding="utf-8")
    (root.parent / "y.txt").write_text("d e.mp4 1\n", encoding="utf-8")
    words = [f"train={root.parent / 'x.txt'}", f"test={root.parent / 'y.txt'}"]
    assert list_files(words, ListOptions(str(root))).splits == ("train", "test")
    assert "write train=FILE" in refused(root, "train.csv: a.mp4 0\n", "other.csv: d e.mp4 1\n")


def test_lists_that_disagree(root: Path) -> None:
    message = refused(root, "train.csv: a.mp4 0\nd e.mp4 1\n", "test.csv: d e.mp4 1\n")
    assert "the lists disagree" in message and "d e.mp4: 1 train in " in message and "test.csv:1" in message
    assert "listed more than once" in refused(root, "train.csv: a.mp4 0\nd e.mp4 1\n", "unlabel.csv: x 1\nx 1\n")


def test_all_malformed_lines_are_named(root: Path) -> None:
    lines = ["a.mp4 0", "d e.mp4 1", *["lonely"] * 22]
    message = refused(root, "\n".join(lines), delimiter="space")
    assert "22 lines that cannot be used" in message and "0.txt:3: expected 2 fields, found 'lonely'" in message
    assert "0.txt:22: " in message and "0.txt:23: " not in message and "and 2 more" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,start,end\na.mp4,x,5,5\nd e.mp4,y,1,b\n", "0.txt:2: start 5.0 and end 5.0 are not a time range"),
        ("path,label\n,x\nd e.mp4,y\n", "0.txt:2: the path is empty"),
        ("x.mp4 0\ny.mp4 1\n", "none of the 2 files"),
        ("a.mp4 0\na.mp4 0\nd e.mp4 1\n", "listed more than once"),
    ],
)
def test_mistakes(root: Path, text: str, message: str) -> None:
    assert message in refused(root, text)
