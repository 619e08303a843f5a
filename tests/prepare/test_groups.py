"""Recordings and persons are recognized by file names, as a reported guess or by --group, and lie in one split."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs import prepare
from jobs.command import DONE, USER_ERROR, run
from pipeline.errors import UserError
from pipeline.manifest.schema import Split, read_manifest
from pipeline.prepare.build import split_listing
from pipeline.prepare.groups import assign_groups, check_group_option, join_groups
from pipeline.prepare.sources import Listing
from tests.manifest.tables import GOOD
from tests.videos import write_numbers

DATA = Path(__file__).parents[3] / "shared" / "data"


def listing_of(uris: Sequence[str], splits: Sequence[Split] | None = None) -> Listing:
    """Makes a listing of files in class folders; without a folder the class is the first letter of the name."""
    labels = tuple(uri.split("/")[0] if "/" in uri else uri[0] for uri in uris)
    return Listing("/v", "folder", tuple(uris), labels, (None,) * len(uris), None if splits is None else tuple(splits))


def guessed(*uris: str) -> dict[str, str | None]:
    listing = assign_groups(listing_of(uris))
    return dict(zip(listing.uris, listing.groups, strict=True))


def recordings(count: int = 8, clips: int = 4) -> list[str]:
    """Names of videos of two classes, as UCF-101 names them."""
    return [
        f"{name}/v_{name}_g{group:02d}_c{clip:02d}.avi"
        for name in ("Jump", "Run") for group in range(1, count + 1) for clip in range(1, clips + 1)
    ]  # fmt: skip


UCF = "v_Jump_g03_c02.avi", "v_Jump_g03_c05.avi", "v_Run_g03_c01.avi", "v_Run_g03_c02.avi"
HMDB = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "April_09_brush_hair_u_nm_np1_ba_goo_1.avi", "x_run_f_cm_np1_fr_med_2.avi"
KINETICS = "-dbcJuKJQNs_000040_000050.mp4", "-dbcJuKJQNs_000140_000150.mp4", "a_cJuKJQNs1_000001_000011.mp4"
NTU = "S001C001P001R001A001.avi", "S001C002P001R001A002.avi", "S001C001P002R001A001.avi"


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (UCF, ["v_Jump_g03", "v_Jump_g03", "v_Run_g03", "v_Run_g03"]),
        (HMDB, ["April_09_brush_hair", "April_09_brush_hair", "x_run"]),
        (KINETICS, ["-dbcJuKJQNs", "-dbcJuKJQNs", "a_cJuKJQNs1"]),
        (NTU, ["P001", "P001", "P002"]),
        ([f"{a}_s{s}_t{t}.mp4" for s in (1, 2) for a in ("a1", "b1") for t in (1, 2)], ["s1"] * 4 + ["s2"] * 4),
        ([f"{a}/person{s:02d}_{a}_d{t}.avi" for s in (1, 2) for a in ("box", "run") for t in (1, 2)],
         ["person01"] * 4 + ["person02"] * 4),
        ([f"{a}/s{s:02d}/{t}.avi" for s in (1, 2) for a in ("box", "run") for t in (1, 2)], ["s01"] * 4 + ["s02"] * 4),
    ],
)  # fmt: skip
def test_names_of_the_field_are_guessed(names: Sequence[str], groups: list[str]) -> None:
    assert list(guessed(*names).values()) == groups


@pytest.mark.parametrize(
    "names",
    [
        [f"run/{n:05d}.mp4" for n in range(20)],
        [f"run/video_{n}.mp4" for n in range(20)],
        [f"{c}/s{n}_{t}.mp4" for n, c in enumerate(["run", "jump"]) for t in range(10)],  # a number for each class
        [f"{c}/s1_{t}.mp4" for c in ("run", "jump") for t in range(10)],  # one person: nothing could be drawn
        [f"{c}/{w}.mp4" for c in ("run", "jump") for w in ("classes1", "dogs2_x", "hands12", "persons01")],
        [f"Run/v_Run_g{n:02d}_c01.avi" for n in range(20)],  # a recording for each video: nothing to keep together
    ],
)
def test_other_names_are_not_guessed(names: Sequence[str]) -> None:
    listing = assign_groups(listing_of(names))
    assert set(listing.groups) == {None} and listing.notes == ()


def test_too_few_names_like_ucf_are_reported_but_not_used() -> None:
    listing = assign_groups(listing_of([*recordings(2, 2), *(f"Run/mine{n}.mp4" for n in range(8))]))
    assert set(listing.groups) == {None}
    assert listing.notes[0].startswith("8 of 16 names look like recordings as UCF-101 names them")
    assert listing.notes[0].endswith("--group ucf would keep each in one split")


def test_numbers_that_may_be_persons_or_videos_are_only_reported() -> None:
    names = [f"{c}/{c}_s{n}.mp4" for c in ("run", "jump") for n in range(10)]
    listing = assign_groups(listing_of(names))
    assert set(listing.groups) == {None}
    assert listing.notes == (
        "20 of 20 names look like persons (s01, a1_s1_t1, person01_boxing); --group subject would keep each in one split",
    )
    assert assign_groups(listing_of([name.replace("_s", "_person") for name in names])).groups[3] == "person3"


@pytest.mark.parametrize("seed", range(5))
def test_each_recording_lies_in_one_split(seed: int) -> None:
    uris = recordings()
    listing = split_listing(assign_groups(listing_of(uris)), [GOOD] * len(uris), 0.25, seed)
    assert listing.splits is not None and Counter(listing.splits) == {"train": 48, "test": 16}
    sides = {(uri.rpartition("_c")[0], split) for uri, split in zip(uris, listing.splits, strict=True)}
    assert len(sides) == 16  # one for each recording
    by_video = split_listing(assign_groups(listing_of(uris), "none"), [GOOD] * len(uris), 0.25, seed)
    assert by_video.splits is not None
    assert len({(uri.rpartition("_c")[0], split) for uri, split in zip(uris, by_video.splits, strict=True)}) > 16


def test_recordings_that_a_list_separates_are_reported_and_the_others_are_groups() -> None:
    splits: list[Split] = ["train" if "_g01" in uri or "_c01" in uri else "test" for uri in recordings(2, 2)]
    listing = assign_groups(listing_of(recordings(2, 2), splits))
    assert listing.groups == ("v_Jump_g01", "v_Jump_g01", None, None, "v_Run_g01", "v_Run_g01", None, None)
    assert "2 of them lie in two splits, so that tests are seen in training" in listing.notes[0]
    with pytest.raises(UserError, match="groups must lie in one split"):
        assign_groups(listing_of(recordings(2, 2), splits), "ucf")


def test_groups_by_a_regular_expression() -> None:
    uris = ["a/day1-cam2-x.mp4", "a/day1-cam2-y.mp4", "b/day2-cam1-x.mp4", "b/other.mp4"]
    listing = assign_groups(listing_of(uris), r"(day\d)-(cam\d)")
    assert listing.groups == ("day1_cam2", "day1_cam2", "day2_cam1", None)
    assert listing.notes == (
        r"--group (day\d)-(cam\d): 3 of 4 names in 2 groups, the largest is day1_cam2 with 2 videos",
        r"--group (day\d)-(cam\d) does not fit 1 names, which are groups of their own: b/other.mp4",
    )
    assert assign_groups(listing_of(uris), r"day\d").groups == ("day1", "day1", "day2", None)
    with pytest.raises(UserError, match=r"--group ucf fits none of the 4 names, the first is a/day1-cam2-x.mp4"):
        assign_groups(listing_of(uris), "ucf")
    with pytest.raises(UserError, match=r"is none of ucf, hmdb, .*, none, and no regular expression: missing \)"):
        check_group_option("(day")


def test_groups_of_the_list_are_kept() -> None:
    listing = Listing("/v", "list", UCF, ("a", "a", "b", "b"), ("x", None, None, None), None)
    assert assign_groups(listing) is listing
    with pytest.raises(UserError, match="--group ucf cannot be used where the list has groups of its own"):
        assign_groups(listing, "ucf")


def test_parts_of_a_file_are_drawn_as_one() -> None:
    uris = ["long.mp4"] * 3 + ["a.mp4", "b.mp4"]
    listing = Listing("/v", "list", tuple(uris), ("x", "y", "x", "x", "y"), (None, "g", None, "g", None), None)
    assert assign_groups(listing, "none").groups == ("g", "g", "g", "g", None)
    splits: tuple[Split, ...] = ("train", "test", "train", "train", "test")
    given = assign_groups(Listing("/v", "list", tuple(uris), listing.labels, (None,) * 5, splits), "none")
    assert given.groups == (None,) * 5
    assert given.notes[0].startswith("1 files have parts, or the same name in another format, in two splits")


def test_a_video_in_two_formats_is_drawn_as_one() -> None:
    listing = assign_groups(listing_of(["run/x.avi", "run/x.mp4", "jump/x.mp4", "run/x.v1.mp4"]))
    assert listing.groups == ("file run/x", "file run/x", None, None)


def test_joining_is_transitive() -> None:
    joined = join_groups(["a", "b", "b", "c", None, None], ["1", "1", "2", "2", "3", "3"], "k")
    assert joined == ("a", "a", "a", "a", "k 3", "k 3")


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data")
@pytest.mark.parametrize("name", ["utd_mhad_depth", "fights"])
def test_guesses_on_real_data_sets(name: str) -> None:
    """One data set has persons in its names; the other has nothing in its names, and nothing is guessed."""
    with open(DATA / name / "clips.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = list(guessed(*(row["path"] for row in rows)).values())
    assert groups == ([row["group"] for row in rows] if name == "utd_mhad_depth" else [None] * len(rows))


def test_the_command_reports_guessed_groups_and_can_be_overruled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_numbers(tmp_path / "video.mp4", frames=8, size=(32, 32))
    for name in recordings(4, 2):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, tmp_path / "videos" / name)

    def call(*words: str) -> tuple[int, str]:
        code = run(prepare.main, ["folder", str(tmp_path / "videos"), str(tmp_path / "out"), "--processes", "1", *words])
        return code, "".join(capsys.readouterr())

    code, said = call()
    assert code == DONE and "note: the names look like recordings as UCF-101 names them" in said
    assert "16 of 16 names in 8 groups" in said and "(--group none: by video)" in said
    table = read_manifest(tmp_path / "out" / "manifest.parquet").table
    assert len(set(zip(table["group"].to_pylist(), table["split"].to_pylist(), strict=True))) == 8
    assert call("--group", "none")[0] == DONE
    assert read_manifest(tmp_path / "out" / "manifest.parquet").table["group"].null_count == 16
    assert call("--group", r"_(g\d+)_")[0] == DONE
    assert set(read_manifest(tmp_path / "out" / "manifest.parquet").table["group"].to_pylist()) == {"g01", "g02", "g03", "g04"}
    code, said = call("--group", "[")
    assert code == USER_ERROR and "no regular expression" in said
