"""The label command: draws, published lists, what is held out, and leaks that are refused."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import label
from jobs.command import DONE, USER_ERROR, run
from pipeline.files.folder_lock import LOCK, LockFile
from pipeline.manifest.label_subset import LabelSubset, read_labels
from pipeline.manifest.schema import Manifest, read_manifest, write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from pipeline.video.probe import Probe

CLASSES = ("Archery", "Biking", "HandstandPushups")


def make(folder: Path, leak: str | None = None, classes: tuple[str, ...] = CLASSES) -> Manifest:
    """3 classes x 8 groups x 3 clips as in UCF-101, the first two groups of each in test; 20, 16 and 12 videos to learn from.

    ``leak``: the hash that one train video shares with one test video.
    """
    ids = [
        f"{c}/v_{c.replace('dst', 'dSt')}_g{g:02d}_c{i:02d}.avi"
        for k, c in enumerate(classes)
        for g in range(1, 9 - k)
        for i in range(3)
    ]
    groups = [name.rsplit("_", 1)[0].split("/")[1] for name in ids]
    splits = ["test" if int(group[-2:]) <= 2 else "train" for group in groups]
    hashes: list[str | None] = [f"{number:064d}" for number in range(len(ids))]
    if leak:
        hashes[0] = hashes[20] = leak
    probes = [Probe(50, 25.0, False, 2.0, 160, 120, "h264", 1000, digest, "decord") for digest in hashes]
    probes[ids.index("Biking/v_Biking_g03_c00.avi")] = Probe(status="missing", reason="no such file")
    labels = [name.split("/")[0] for name in ids]
    listing = Listing("/videos", "ucf101 split 1", tuple(ids), tuple(labels), tuple(groups), tuple(splits), class_list=classes)  # type: ignore[arg-type]
    return write_manifest(build_table(listing, probes), folder / "manifest.parquet", classes, "/videos", "ucf101 split 1")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make(tmp_path)


def call(manifest: Manifest, *words: str | Path) -> LabelSubset:
    assert run(label.main, [manifest.path, *map(str, words)]) == DONE
    return read_labels(Path(manifest.path).parent / "labels.parquet", manifest)


def refused(manifest: Manifest, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run(label.main, [manifest.path, *map(str, words)]) == USER_ERROR
    assert [path.name for path in Path(manifest.path).parent.glob("*.parquet")] == ["manifest.parquet"]
    return capsys.readouterr().err


def counts(subset: LabelSubset) -> list[int]:
    found = Counter(name.split("/")[0] for name in subset.ids)
    return [found[name] for name in CLASSES]


def test_shares(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    assert counts(call(manifest, "--per-class", "2")) == [2, 2, 2]
    assert (
        counts(call(manifest, "--fraction", "50%"))
        == counts(call(manifest, "--fraction", "50%", "--proportional"))
        == [9, 7, 6]
    )
    balanced = call(manifest, "--fraction", "40%", "--balanced")  # 40 % of 44 videos, in 3 classes
    assert counts(balanced) == [6, 6, 6] and balanced.spec == "40%, balanced"
    out = capsys.readouterr().out
    assert "labeled    18 videos, 6 of each of 3 classes" in out and "unlabeled  26 videos" in out


def test_labels_are_of_the_manifest_that_is_there_when_the_folder_is_free(manifest: Manifest, tmp_path: Path) -> None:
    """Another command replaces the manifest while this one waits for the folder."""
    prepare = LockFile(tmp_path / LOCK)
    assert prepare.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, manifest, "--per-class", "2")
        time.sleep(0.5)  # which yesterday had read the manifest by then
        make(tmp_path, classes=CLASSES[:2])
        prepare.release()
        assert waiting.exception() is not None  # ``call`` reads the labels with the manifest that it was given
    subset = read_labels(tmp_path / "labels.parquet", read_manifest(manifest.path))
    assert len(subset.ids) == 4


def test_seeds_and_nesting(manifest: Manifest) -> None:
    small, large = call(manifest, "--fraction", "10%", "--seed", "3"), call(manifest, "--fraction", "30%", "--seed", "3")
    assert set(small.ids) < set(large.ids) and small.seed == 3
    assert call(manifest, "--fraction", "10%", "--seed", "3", "--nested").fingerprint == small.fingerprint
    assert call(manifest, "--fraction", "10%", "--seed", "4").fingerprint != small.fingerprint
    alone = [set(call(manifest, "--fraction", spec, "--no-nested").ids) for spec in ("10%", "20%", "30%", "40%", "50%")]
    assert not all(one <= other for one, other in itertools.pairwise(alone))


def test_the_file_can_be_read_by_anybody(manifest: Manifest) -> None:
    subset = call(manifest, "--per-class", "6", "--hold-out", "34%")
    table = pq.read_table(Path(manifest.path).parent / "labels.parquet")
    assert table.column_names == ["id", "class", "held_out"] and len(table) == 18
    assert np.asarray(table["held_out"]).sum() == len(subset.held_out)


def test_held_out_videos_are_labeled_training_videos_of_other_groups(manifest: Manifest) -> None:
    without = call(manifest, "--per-class", "9")
    subset = call(manifest, "--per-class", "9", "--hold-out", "34%")
    assert set(subset.rows) | set(subset.held_out) == set(without.rows) and len(set(subset.rows) & set(subset.held_out)) == 0
    groups = np.asarray(manifest.table["group"].to_pylist(), dtype=object)
    names = np.asarray(manifest.table["class"].to_pylist(), dtype=object)
    assert set(groups[subset.held_out]).isdisjoint(groups[subset.rows])
    assert set(names[subset.held_out]) == set(names[subset.rows]) == set(CLASSES)
    assert set(np.asarray(manifest.table["split"].to_pylist())[subset.held_out]) == {"train"}
    assert subset.fingerprint != without.fingerprint and "34% held out" in subset.spec


def test_too_few_to_hold_out(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(manifest, capsys, "--per-class", "1", "--hold-out", "10%")
    assert "two labeled videos of different groups" in message and "class Archery" in message and "class Biking" in message


# ------------------------------------------------------------------------------------------------ published lists


def test_svformer(manifest: Manifest, tmp_path: Path) -> None:
    lines = [
        "Archery/v_Archery_g05_c01.avi 1",
        "Biking/v_Biking_g04_c02.avi 2",
        "HandstandPushups/v_HandstandPushups_g03_c00.avi 3",
    ]
    (tmp_path / "train.csv").write_text("".join(f"/mnt/blob/ucf101/videos/{line}\n" for line in lines), encoding="utf-8")
    subset = call(manifest, "--import", "svformer", tmp_path / "train.csv")
    assert subset.ids == (
        "Archery/v_Archery_g05_c01.avi",
        "Biking/v_Biking_g04_c02.avi",
        "HandstandPushups/v_HandStandPushups_g03_c00.avi",
    )
    assert subset.spec == f"svformer {tmp_path.name}/train.csv"


def test_videossl(manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frame folders: no suffix, a number of frames; Kinetics: a suffix and no number. One video is missing here."""
    text = "Archery/v_Archery_g05_c01 120 0\nBiking/v_Biking_g03_c00 7 1\nBiking/v_Biking_g05_c00.mp4 1\n"
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    subset = call(manifest, "--import", "videossl", tmp_path / "list.txt")
    assert subset.ids == ("Archery/v_Archery_g05_c01.avi", "Biking/v_Biking_g05_c00.avi")
    out = capsys.readouterr().out
    assert "note: 1 of 3 videos of" in out and "the first: Biking/v_Biking_g03_c00" in out
    assert "note: classes without a label: HandstandPushups" in out


def test_a_few_wrong_numbers_are_counted_and_the_manifests_class_is_used(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the published lists of HMDB51."""
    names = [f"Archery/v_Archery_g{g:02d}_c{i:02d}.avi {int((g, i) == (8, 2))}" for g in range(4, 9) for i in range(3)]
    names += [f"Biking/v_Biking_g{g:02d}_c{i:02d}.avi 1" for g in range(4, 8) for i in range(3)]
    (tmp_path / "train.csv").write_text("\n".join(names), encoding="utf-8")
    assert counts(call(manifest, "--import", "svformer", tmp_path / "train.csv")) == [15, 12, 0]
    out = capsys.readouterr().out
    assert "note: 1 of 27 lines of" in out and "train.csv:15: label 1 is Biking elsewhere and Archery here" in out


def test_plain_list(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("v_Archery_g05_c01\nD:\\x\\Biking\\v_Biking_g05_c00.avi\n", encoding="utf-8")
    assert len(call(manifest, "--import", "list", tmp_path / "mine.txt").ids) == 2


@pytest.mark.parametrize("header", ["path,label\n", "", "# Video Name,Class\n"])
@pytest.mark.parametrize("labels", [("Archery", "biking"), ("0", "1"), ('"Archery"', "Biking")])
def test_a_list_with_words_and_a_header(manifest: Manifest, tmp_path: Path, header: str, labels: tuple[str, str]) -> None:
    text = f"{header}v_Archery_g05_c01.avi,{labels[0]}\nv_Biking_g05_c00.avi,{labels[1]}\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    assert counts(call(manifest, "--import", "list", tmp_path / "mine.csv")) == [1, 1, 0]


@pytest.mark.parametrize("kind", ["svformer", "videossl", "list"])
def test_lines_that_mark_unlabeled_videos_are_left_out_and_told(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    text = "v_Archery_g05_c01.avi 0\nv_Biking_g05_c00.avi -1\nv_Biking_g06_c00.avi 1\n"
    (tmp_path / "train.csv").write_text(text, encoding="utf-8")
    assert counts(call(manifest, "--import", kind, tmp_path / "train.csv")) == [1, 1, 0]
    out = capsys.readouterr().out
    assert "note: 1 of 3 lines of" in out and "mark unlabeled videos and are left out, the first: v_Biking_g05_c00.avi" in out


def test_a_list_of_unlabeled_videos_is_no_list_of_labels(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ucf101_train_5_percent_unlabeled_videossl_split.txt"
    file.write_text("Archery/v_Archery_g05_c01 120 0\n", encoding="utf-8")
    assert "its name says that its videos are unlabeled" in refused(manifest, capsys, "--import", "videossl", file)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("svformer", "Archery/v_Archery_g01_c01.avi 0\n", "list.txt:1: Archery/v_Archery_g01_c01.avi is a test video"),
        ("svformer", "Archery/v_Archery_g30_c01.avi 0\n", "1 of 1 videos of"),
        ("svformer", "Archery/v_Archery_g05_c01.avi\n", "not a line of a svformer list"),
        (
            "svformer",
            "v_Archery_g05_c01.avi 0\nv_Biking_g05_c00.avi 0\n",
            "list.txt:2: label 0 is Archery elsewhere and Biking here",
        ),
        ("list", "Biking/v_Biking_g03_c00.avi\n", "none of its 1 videos can be used"),
        ("list", "\n", "names no videos"),
        ("list", "v_Archery_g05_c01.avi -1\n", "names no labeled videos: all labels mark unlabeled ones"),
        ("list", "v_Archery_g05_c01.avi Biking\n", "list.txt:1: the label says Biking and Archery here"),
        ("list", "file,video\nv_Archery_g05_c01.avi,x\n", "file and video could each be the path. Write the header"),
        ("list", "path,label\nv_Archery_g05_c01.avi\n", "list.txt:2: 1 fields, the header has 2"),
        ("tcl", "x\n", "--import tcl is not known"),
    ],
)
def test_lists_that_do_not_fit(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, text: str, message: str
) -> None:
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    assert message in refused(manifest, capsys, "--import", kind, tmp_path / "list.txt")


# ---------------------------------------------------------------------------------------------------------- leaks


def test_the_same_bytes_in_train_and_test_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(make(tmp_path, leak="feed" * 16), capsys, "--per-class", "2")
    assert "the same videos would be learned from and tested on" in message
    assert (
        "content feedfeedfeedfeed: Archery/v_Archery_g07_c02.avi is learned from, Archery/v_Archery_g01_c00.avi is test"
        in message
    )


def test_the_same_group_in_train_and_test_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = make(tmp_path)
    place = manifest.table.schema.get_field_index("split")
    splits = manifest.table["split"].to_pylist()
    splits[0] = "train"
    torn = manifest.table.set_column(place, manifest.table.schema.field(place), [splits])
    manifest = write_manifest(torn, manifest.path, CLASSES, "/videos", "list")
    assert "group v_Archery_g01: Archery/v_Archery_g01_c00.avi is learned from" in refused(manifest, capsys, "--per-class", "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fraction", "ten"], "--fraction 'ten' is not understood"),
        (["--per-class", "0"], "at least 1/class"),
        (["--per-class", "99"], "class Archery has 18 usable train videos, 99 are needed"),
        (["--per-class", "2", "--seed", "-1"], "--seed -1"),
        (["--per-class", "2", "--hold-out", "80%"], "at most 50%"),
        (["--per-class", "2", "--out", "s3://bucket/labels.parquet"], "--out s3://bucket/labels.parquet must name a file"),
        (["--per-class", "2", "--out", "/no/such/folder/x"], "must name a file in a folder that exists"),
    ],
)
def test_mistakes(manifest: Manifest, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refused(manifest, capsys, *words)


def test_nothing_that_labels_are_made_from_is_overwritten(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, answers, listed = tmp_path / "few.parquet", tmp_path / "answers.csv", tmp_path / "list.txt"
    assert run(label.main, [manifest.path, "--per-class", "1", "--out", str(few)]) == DONE
    answers.write_text(f"id,class\n{read_labels(few, manifest).ids[0]},{CLASSES[0]}\n")
    listed.write_text("".join(f"{name}\n" for name in read_labels(few, manifest).ids))
    link = tmp_path / "link.parquet"
    link.symlink_to(manifest.path)
    adding = ["--add", str(answers), "--from", str(few)]
    for words, out, problem in (
        (["--per-class", "1"], manifest.path, "is the file of MANIFEST, which would be lost"),
        (["--per-class", "1"], str(link), "is the file of MANIFEST"),
        (["--import", "list", str(listed)], str(listed), "is the file of --import"),
        (adding, manifest.path, "is the file of MANIFEST"),
        (adding, str(few), "is the file of --from"),
        (adding, str(answers), "is the file of --add"),
        (adding, str(listed), "exists: name a new file, since runs that were trained with its labels need them"),
    ):
        kept = {path: path.read_bytes() for path in (few, answers, listed, Path(manifest.path))}
        assert run(label.main, [manifest.path, *words, "--out", out]) == USER_ERROR
        assert problem in capsys.readouterr().err
        assert {path: path.read_bytes() for path in kept} == kept
    assert run(label.main, [manifest.path, *adding, "--out", str(tmp_path / "more.parquet")]) == DONE
    assert run(label.main, [manifest.path, "--per-class", "2", "--out", str(few)]) == DONE  # drawn again, as before


def test_labels_of_an_unlabeled_pool_are_never_drawn(tmp_path: Path) -> None:
    manifest = make(tmp_path)
    place = manifest.table.schema.get_field_index("split")
    pairs = zip(manifest.table["id"].to_pylist(), manifest.table["split"].to_pylist(), strict=True)
    splits = ["unlabeled" if "_g03" in name or "_g04" in name else split for name, split in pairs]
    table = manifest.table.set_column(place, manifest.table.schema.field(place), [splits])
    manifest = write_manifest(table, manifest.path, CLASSES, "/videos", "hmdb51 split 1")
    subset = call(manifest, "--fraction", "100%")
    assert not any("_g03" in name or "_g04" in name for name in subset.ids)
    assert len(read_manifest(manifest.path).find_training_rows()) == 44
