"""Small copies of the official layouts and list files of data sets, and what each line becomes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels
from pipeline.manifest.schema import write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing, list_hmdb51, list_kinetics, list_ssv2, list_ucf101
from tests.manifest.tables import GOOD


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(call: Callable[[], Listing]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def by_id(listing: Listing, values: tuple[object, ...] | None) -> dict[str, object]:
    return dict(zip(listing.ids or listing.uris, values or (), strict=True))


# -------------------------------------------------------------------------------------------------------- UCF-101

MAKEUP, LIPSTICK, STAND = "ApplyEyeMakeup", "ApplyLipstick", "HandstandPushups"


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Three classes as the site ships them; the class of handstands spells its files differently, as there."""
    root, lists = tmp_path / "UCF-101", tmp_path / "ucfTrainTestlist"
    train = [f"{MAKEUP}/v_{MAKEUP}_g08_c0{i}.avi 1" for i in (1, 2, 3)] + [f"{LIPSTICK}/v_{LIPSTICK}_g09_c01.avi 2"]
    train += [f"{STAND}/v_HandStandPushups_g08_c01.avi 3"]
    test = [
        f"{MAKEUP}/v_{MAKEUP}_g01_c01.avi",
        f"{LIPSTICK}/v_{LIPSTICK}_g01_c01.avi",
        f"{STAND}/v_HandStandPushups_g01_c01.avi",
    ]
    write(lists / "classInd.txt", f"1 {MAKEUP}", f"2 {LIPSTICK}", f"3 {STAND}")
    write(lists / "trainlist01.txt", *train)
    write(lists / "testlist01.txt", *test)
    write(lists / "trainlist02.txt", *train[:2], f"{LIPSTICK}/v_{LIPSTICK}_g01_c01.avi 2\r")
    write(lists / "testlist02.txt", f"{STAND}/v_HandStandPushups_g01_c01.avi")
    touch(root, *(line.split()[0] for line in [*train, *test]))
    return root


def test_ucf101(ucf: Path) -> None:
    listing = list_ucf101(ucf)
    assert (listing.source, listing.classes, listing.notes) == ("ucf101 split 1", (MAKEUP, LIPSTICK, STAND), ())
    assert Counter(listing.splits or ()) == {"train": 5, "test": 3}
    assert by_id(listing, listing.groups)[f"{STAND}/v_HandStandPushups_g08_c01.avi"] == "v_HandStandPushups_g08"
    assert by_id(listing, listing.labels)[f"{STAND}/v_HandStandPushups_g01_c01.avi"] == STAND
    table = build_table(listing, [GOOD] * 8)
    assert dict(zip(table["class"].to_pylist(), table["label"].to_pylist(), strict=True)) == {MAKEUP: 0, LIPSTICK: 1, STAND: 2}
    second = list_ucf101(ucf, fold=2)
    assert (second.source, len(second.uris)) == ("ucf101 split 2", 4)


def test_ucf101_files_may_have_another_suffix_and_keep_their_ids(ucf: Path) -> None:
    for path in list(ucf.rglob("*.avi")):
        path.rename(path.with_suffix(".mp4"))
    listing = list_ucf101(ucf)
    assert listing.uris[0].endswith("g08_c01.mp4") and (listing.ids or ())[0].endswith("g08_c01.avi")


def test_ucf101_files_are_found_in_another_case(ucf: Path) -> None:
    for path in list(ucf.rglob("v_HandStand*")):
        path.rename(path.with_name(path.name.replace("HandStand", "Handstand")))
    listing = list_ucf101(ucf)
    assert listing.notes == () and f"{STAND}/v_HandstandPushups_g08_c01.avi" in listing.uris


def test_ucf101_missing_files_are_counted(ucf: Path) -> None:
    next(ucf.rglob("*_g08_c02.avi")).unlink()
    listing = list_ucf101(ucf)
    assert len(listing.uris) == 8 and "1 of 8 files are missing" in listing.notes[0] and "(1 train)" in listing.notes[0]
    assert "none of the 8 files" in refused(
        lambda: list_ucf101(touch(ucf.parent / "empty", "x/y"), str(ucf.parent / "ucfTrainTestlist"))
    )


def test_ucf101_names_every_malformed_line(ucf: Path) -> None:
    lists = ucf.parent / "ucfTrainTestlist"
    good = (lists / "trainlist01.txt").read_text(encoding="utf-8").splitlines()
    bad = [f"{MAKEUP}/a.avi", "nothing", f"{MAKEUP}/b.avi 102", f"{MAKEUP}/c.avi 2", "Sleeping/d.avi 1"]
    write(lists / "trainlist01.txt", good[0], "", *bad, *(f"junk{i}" for i in range(20)))
    message = refused(lambda: list_ucf101(ucf))
    assert "25 lines that cannot be used" in message and "and 5 more" in message
    for number, text in (
        (3, "the class index is missing"),
        (4, "found 'nothing'"),
        (5, "class 102 is outside the class list (3 classes, 1 to 3)"),
        (6, f"class 2 is {LIPSTICK} in classInd.txt, but the file lies in {MAKEUP}"),
        (7, "class Sleeping is not in classInd.txt"),
    ):
        assert f"{lists / 'trainlist01.txt'}:{number}: " in message and text in message


def test_ucf101_lists_that_disagree(ucf: Path) -> None:
    lists = ucf.parent / "ucfTrainTestlist"
    first = (lists / "trainlist01.txt").read_text(encoding="utf-8").split()[0]
    write(lists / "testlist01.txt", first)
    assert f"{first}: train in trainlist01.txt:1, test in testlist01.txt:1" in refused(lambda: list_ucf101(ucf))
    write(lists / "testlist01.txt", first.replace("_c01", "_c09"))  # another clip of the same recording
    assert "group v_ApplyEyeMakeup_g08" in refused(lambda: list_ucf101(ucf))


def test_ucf101_without_lists_or_folder(ucf: Path, tmp_path: Path) -> None:
    assert "list not found" in refused(lambda: list_ucf101(ucf, fold=3))
    assert "--lists not found" in refused(lambda: list_ucf101(ucf, str(tmp_path / "none")))
    assert "folder not found" in refused(lambda: list_ucf101(tmp_path / "none"))


# --------------------------------------------------------------------------------------------------------- HMDB51


@pytest.fixture
def hmdb(tmp_path: Path) -> Path:
    root, lists = tmp_path / "hmdb51", tmp_path / "testTrainMulti_7030_splits"
    for name in ("wave", "brush_hair"):
        clips = [f"clip {i}_{name}_u_nm_np1_ba_goo_0.avi" for i in range(10)]
        write(
            lists / f"{name}_test_split1.txt", *(f"{clip} {1 if i < 5 else 2 if i < 7 else 0} " for i, clip in enumerate(clips))
        )
        touch(root, *(f"{name}/{clip}" for clip in clips))
    return root


def test_hmdb51(hmdb: Path) -> None:
    listing = list_hmdb51(hmdb)
    assert (listing.source, listing.classes) == ("hmdb51 split 1", ("brush_hair", "wave"))
    assert Counter(listing.splits or ()) == {"train": 10, "test": 4, "unlabeled": 6}
    assert by_id(listing, listing.labels)["brush_hair/clip 9_brush_hair_u_nm_np1_ba_goo_0.avi"] == "brush_hair"


def test_hmdb51_clips_of_one_recording_are_a_group_unless_the_lists_separate_them(hmdb: Path) -> None:
    scenes = [f"{film}_wave_{tags}" for film in ("A_wave", "B", "C") for tags in ("u_cm_np1_fr_med", "h_nm_np2_le_bad")]
    lines = [f"{scene}_{number}.avi" for scene in scenes for number in (0, 1)]
    uses = "1111" + "1210" + "1002"  # A in train, B and C on both sides
    write(
        hmdb.parent / "testTrainMulti_7030_splits" / "wave_test_split1.txt",
        *(f"{line} {use}" for line, use in zip(lines, uses, strict=True)),
    )
    touch(hmdb, *(f"wave/{line}" for line in lines))
    listing = list_hmdb51(hmdb)
    waves = [group for group, label in zip(listing.groups, listing.labels, strict=True) if label == "wave"]
    assert waves == ["wave/A_wave"] * 4 + [None] * 8
    assert listing.notes == ("2 recordings lie in two splits of the official lists, which are kept as they are",)


def test_hmdb51_split_1_has_the_official_numbers_of_clips(tmp_path: Path) -> None:
    """Split 1: 70 and 30 of each of 51 classes, and 1,666 unused, make a pool of 5,236 and 1,530 tests."""
    for number in range(51):
        spare = 33 if number < 34 else 32
        lines = [f"v{i}_c{number:02d}_u_nm_np1_ba_goo_0.avi {1 if i < 70 else 2 if i < 100 else 0}" for i in range(100 + spare)]
        write(tmp_path / "lists" / f"c{number:02d}_test_split1.txt", *lines)
        touch(tmp_path / "videos", *(f"c{number:02d}/{line.split()[0]}" for line in lines))
    listing = list_hmdb51(tmp_path / "videos", str(tmp_path / "lists"))
    table = build_table(listing, [GOOD] * len(listing.uris))
    manifest = write_manifest(table, tmp_path / "m.parquet", listing.classes, listing.root, listing.source)
    assert len(manifest.find_training_rows()) == 5236 and len(manifest.find_usable_rows("test")) == 1530
    labeled = {percent: len(draw_labels(manifest, f"{percent}%", 0).ids) for percent in (40, 50, 60)}
    assert labeled == {40: 28 * 51, 50: 35 * 51, 60: 42 * 51}  # of the 70 in train: published lists draw from the whole pool


def test_hmdb51_mistakes(hmdb: Path) -> None:
    lists = hmdb.parent / "testTrainMulti_7030_splits"
    assert "expected <class>_test_split2.txt" in refused(lambda: list_hmdb51(hmdb, fold=2))
    with (lists / "wave_test_split1.txt").open("a", encoding="utf-8") as file:
        file.write("clip 0_wave_u_nm_np1_ba_goo_0.avi 2\n")
    assert "train in wave_test_split1.txt:1, test in wave_test_split1.txt:11" in refused(lambda: list_hmdb51(hmdb))
    write(lists / "wave_test_split1.txt", "a.avi 3", "b.avi", "c.avi 1")
    message = refused(lambda: list_hmdb51(hmdb))
    assert "2 lines" in message and "wave_test_split1.txt:1: " in message and "wave_test_split1.txt:2: " in message


# ------------------------------------------------------------------------------------------------------- Kinetics

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    root = tmp_path / "k400"
    write(
        root.parent / "train.csv",
        HEADER,
        '"air drumming",_dbcJuKJQNs,40,50,train,0',
        "zumba,-abc,3,13,train,1",
        "zumba,gone,0,10,train,0",
    )
    write(root.parent / "val.csv", HEADER.removesuffix(",is_cc"), '"air drumming",whole,7,17,val', '"zumba","x_1",100,110,val')
    touch(root, "train/air_drumming/_dbcJuKJQNs_000040_000050.mp4", "-abc_000003_000013.webm", "whole.mkv")
    return touch(root, "other/x_1_000100_000110.mp4", "val/zumba/x_1_000100_000110.mp4", "x_1_000100_000111.mp4")


def test_kinetics(kinetics: Path) -> None:
    listing = list_kinetics(kinetics, [kinetics.parent / "train.csv", kinetics.parent / "val.csv"])
    assert listing.classes == ("air drumming", "zumba") and listing.source == "kinetics 2 classes"
    assert by_id(listing, listing.uris) == {
        "_dbcJuKJQNs_000040_000050": "train/air_drumming/_dbcJuKJQNs_000040_000050.mp4",
        "-abc_000003_000013": "-abc_000003_000013.webm",
        "gone_000000_000010": "gone_000000_000010.mp4",
        "whole_000007_000017": "whole.mkv",
        "x_1_000100_000110": "val/zumba/x_1_000100_000110.mp4",
    }
    assert Counter(listing.splits or ()) == {"train": 3, "test": 2}
    assert (
        by_id(listing, listing.starts)["whole_000007_000017"] == 7 and by_id(listing, listing.ends)["whole_000007_000017"] == 17
    )
    assert by_id(listing, listing.starts)["x_1_000100_000110"] is None  # cut already
    assert listing.notes[0].startswith("1 of 5 files are missing") and "val is used as test" in listing.notes[1]


def test_kinetics_clips_of_one_recording_are_a_group_unless_the_lists_separate_them(kinetics: Path) -> None:
    write(
        kinetics.parent / "train.csv",
        HEADER,
        "zumba,-abc,3,13,train,1",
        "zumba,-abc,33,43,train,1",
        "zumba,whole,50,60,train,1",
    )
    listing = list_kinetics(kinetics, [kinetics.parent / "train.csv", kinetics.parent / "val.csv"])
    assert listing.groups == ("-abc", "-abc", None, None, None)
    assert any("1 recordings lie in two splits" in note for note in listing.notes)


def test_kinetics_mistakes(kinetics: Path) -> None:
    train, val = kinetics.parent / "train.csv", kinetics.parent / "val.csv"
    write(kinetics.parent / "more.csv", HEADER, "yoga,-abc,3,13,train,1")
    assert "-abc_000003_000013: zumba train in " in refused(
        lambda: list_kinetics(kinetics, [train, kinetics.parent / "more.csv"])
    )
    write(
        train,
        HEADER,
        "zumba,a,5,5,train,0",
        "zumba,b,x,5,train,0",
        "zumba,c,5,15,dev,0",
        "zumba,d,5",
        "zumba,-abc,3,13,train,0",
    )
    message = refused(lambda: list_kinetics(kinetics, [train, val]))
    assert "4 lines" in message and all(f"{train}:{number}: " in message for number in (2, 3, 4, 5))
    write(train, "label,from")
    assert "has no column youtube_id, time_start, time_end" in refused(lambda: list_kinetics(kinetics, [train]))
    write(train, HEADER, "zumba,n1,3,13,train,1", "yoga,n2,3,13,train,1")
    assert "none of the 2 files" in refused(lambda: list_kinetics(kinetics, [train]))


# ----------------------------------------------------------------------------------------------------------- SSv2


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    root, lists = tmp_path / "20bn-something-something-v2", tmp_path / "labels"
    entries = [("78687", "Holding [something]"), ("42326", "Turning [something] upside down"), ("7", "Holding [something]")]
    rows = [{"id": i, "label": "holding potato", "template": template, "placeholders": ["potato"]} for i, template in entries]
    write(lists / "labels.json", json.dumps({"Turning something upside down": "1", "Holding something": "0"}))
    write(lists / "train.json", json.dumps(rows[:2]))
    write(lists / "validation.json", json.dumps(rows[2:]))
    return touch(root, "78687.webm", "42326.webm", "7.webm")


def test_ssv2(ssv2: Path) -> None:
    listing = list_ssv2(ssv2)
    assert listing.classes == ("Holding something", "Turning something upside down")
    assert by_id(listing, listing.labels) == {"78687": listing.classes[0], "42326": listing.classes[1], "7": listing.classes[0]}
    assert listing.uris == ("78687.webm", "42326.webm", "7.webm") and listing.splits == ("train", "train", "test")


def test_ssv2_mistakes(ssv2: Path) -> None:
    lists = ssv2.parent / "labels"
    write(
        lists / "train.json",
        json.dumps([{"id": "7", "template": "Holding [something]"}, {"id": "1", "template": "Eating"}, {}]),
    )
    message = refused(lambda: list_ssv2(ssv2))
    assert "entry 2: template 'Eating' is not in labels.json" in message and "entry 3: expected id and template" in message
    write(lists / "train.json", json.dumps([{"id": "7", "template": "Holding [something]"}]))
    assert "disagree" in refused(lambda: list_ssv2(ssv2))
    write(lists / "labels.json", json.dumps({"Holding something": "5"}))
    assert "the numbers must run from 0 to 0" in refused(lambda: list_ssv2(ssv2))
    write(lists / "labels.json", "{")
    assert "cannot be read as JSON" in refused(lambda: list_ssv2(ssv2))
