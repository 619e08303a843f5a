"""Answers of people: read strictly, added to a label subset with their origin, and refused together if anything is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.manifest.label_subset import DrawOptions, LabelSubset, draw_labels, read_labels, write_labels
from pipeline.manifest.labeling_answers import add_answers, guard, read_answers
from pipeline.manifest.schema import Manifest, read_manifest, write_manifest
from pipeline.prepare.build import build_table
from pipeline.prepare.sources import Listing
from tests.manifest.tables import GOOD, make_table


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Classes a and b with 6 training videos each; that a/3 shows a is known to nobody."""
    table = make_table({"a": 6, "b": 6}).sort_by("id")
    names, labels = table["class"].to_pylist(), table["label"].to_pylist()
    names[3], labels[3] = None, -1
    for name, values, kind in (("class", names, pa.string()), ("label", labels, pa.int32())):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), pa.array(values, kind))
    split = table["split"].to_pylist()
    split[3] = "unlabeled"
    table = table.set_column(table.schema.get_field_index("split"), table.schema.field("split"), pa.array(split))
    return write_manifest(table, tmp_path / "manifest.parquet", ("a", "b"), "/videos", "folder")


@pytest.fixture
def before(manifest: Manifest) -> LabelSubset:
    return draw_labels(manifest, "1/class", 0)


def video(manifest: Manifest, row: int) -> str:
    return str(manifest.table["id"][row].as_py())


def free_row(before: LabelSubset, rows: range) -> int:
    return next(row for row in rows if row not in before.rows)


def write(folder: Path, *lines: str, head: str = "id,status,class,by,at,run,manifest") -> Path:
    path = folder / "answers.csv"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def test_answers_are_added_with_who_and_when_and_survive_a_file(
    manifest: Manifest, before: LabelSubset, tmp_path: Path
) -> None:
    row = free_row(before, range(6, 12))
    lines = [f"{video(manifest, 3)},class,a,Ana,2026-01-02T10:00:00Z,first,{manifest.fingerprint}"]
    lines += [f"{video(manifest, row)},class,b,Bo,2026-01-03T10:00:00Z,first,"]
    added = add_answers(manifest, before, write(tmp_path, *lines))
    assert (added.added, added.repeated, added.relabeled, added.excluded) == (2, 0, (), ())
    assert set(added.subset.rows) == {*before.rows, 3, row} and added.subset.given == {3: 0}
    write_labels(added.subset, manifest, tmp_path / "more.parquet")
    again = read_labels(tmp_path / "more.parquet", read_manifest(manifest.path))
    assert again.fingerprint == added.subset.fingerprint != before.fingerprint
    assert again.given == {3: 0} and again.read_classes(manifest)[3] == 0
    (step,) = again.lineage
    assert step["by"] == ["Ana", "Bo"] and step["first"] == "2026-01-02T10:00:00Z" and step["runs"] == ["first"]
    assert step["before"] == before.fingerprint and len(step["sha256"]) == 64


def test_other_answers_are_another_choice_of_labels_although_their_file_has_the_same_name(
    manifest: Manifest, before: LabelSubset, tmp_path: Path
) -> None:
    free = [row for row in range(6, 12) if row not in before.rows][:2]
    paths = (write(tmp_path, f"{video(manifest, row)},b", head="id,class") for row in free)
    one, other = (add_answers(manifest, before, path).subset.spec for path in paths)
    assert one != other and one.startswith("1/class + answers.csv ")


def test_answers_that_say_what_the_manifest_knows_give_the_labels_that_drawing_them_gives(
    manifest: Manifest, before: LabelSubset, tmp_path: Path
) -> None:
    every = draw_labels(manifest, "5/class", 0)
    left = np.setdiff1d(every.rows, before.rows)
    lines = [f"{video(manifest, row)},{'a' if row < 6 else 'b'}" for row in left]
    added = add_answers(manifest, before, write(tmp_path, *lines, head="id,class"))
    assert added.subset.fingerprint == every.fingerprint and added.subset.ids == every.ids


def test_bad_videos_are_no_longer_trained_on_and_named(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    labeled, free = int(before.rows[0]), free_row(before, range(6, 12))
    path = write(tmp_path, f"{video(manifest, labeled)},bad_video,,,,,", f"{video(manifest, free)},no_action,,,,,")
    with pytest.raises(UserError) as caught:
        add_answers(manifest, before, path)
    assert f"{video(manifest, labeled)}: bad video, but its label says a; --relabel takes the answer" in str(caught.value)
    assert f"{video(manifest, free)}: no action, but the manifest says b; --relabel takes the answer" in str(caught.value)
    added = add_answers(manifest, before, path, relabel=True)
    assert len(added.relabeled) == 2
    assert added.excluded == (f"{video(manifest, labeled)} (bad video)", f"{video(manifest, free)} (no action)")
    assert labeled not in added.subset.rows and sorted(added.subset.excluded) == sorted([labeled, free])
    write_labels(added.subset, manifest, tmp_path / "more.parquet")
    assert read_labels(tmp_path / "more.parquet", manifest).excluded.tolist() == sorted([labeled, free])
    again = add_answers(manifest, added.subset, path)  # they do not contradict themselves
    assert again.relabeled == () and again.subset.fingerprint == added.subset.fingerprint
    # a later answer takes it in again, on request
    path = write(tmp_path, f"{video(manifest, free)},b", head="id,class")
    with pytest.raises(UserError, match="b, but an earlier answer says that it is not to be trained on; --relabel"):
        add_answers(manifest, added.subset, path)
    back = add_answers(manifest, added.subset, path, relabel=True)
    assert free in back.subset.rows and back.subset.excluded.tolist() == [labeled] and len(back.subset.lineage) == 2


def test_a_bad_video_without_a_label_contradicts_nothing(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    free = free_row(before, range(6, 12))
    added = add_answers(manifest, before, write(tmp_path, f"{video(manifest, free)},bad_video,,,,,"))
    assert added.subset.excluded.tolist() == [free] and added.relabeled == ()


def test_labels_are_left(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{video(manifest, row)},bad_video,,,,," for row in before.rows))
    with pytest.raises(UserError, match="leave no labeled video to train on; nothing was written"):
        add_answers(manifest, before, path, relabel=True)
    with pytest.raises(UserError, match="hold no answer"):
        add_answers(manifest, before, write(tmp_path))


def test_videos_of_held_out_groups_are_listed_with_all_other_mistakes(tmp_path: Path) -> None:
    uris = [f"{name}/{group}_{number}.mp4" for name in "ab" for group in range(3) for number in range(3)]
    groups, labels = tuple(uri.split("_")[0] for uri in uris), tuple(uri[0] for uri in uris)
    listing = Listing("/videos", "list", tuple(uris), labels, groups, ("train",) * len(uris))
    manifest = write_manifest(build_table(listing, [GOOD] * len(uris)), tmp_path / "m.parquet", ("a", "b"), "/videos", "list")
    before = draw_labels(manifest, "4/class", 0, DrawOptions(hold_out=0.5))
    found = manifest.table["group"].to_pylist()
    held = {found[row] for row in before.held_out}
    beside = [row for row in range(len(uris)) if found[row] in held and row not in {*before.held_out, *before.rows}]
    assert beside
    lines = [f"{video(manifest, row)},{manifest.table['class'][row].as_py()}" for row in (*beside, *before.held_out)]
    with pytest.raises(UserError) as caught:
        add_answers(manifest, before, write(tmp_path, *lines, "x/nowhere,a", head="id,class"))
    said = str(caught.value)
    assert "x/nowhere is not in the manifest" in said and said.count("of which other videos are held out") == len(beside)
    added = add_answers(manifest, before, write(tmp_path, *lines[len(beside) :], head="id,class"))
    assert added.repeated == len(before.held_out) and added.subset.held_out.tolist() == before.held_out.tolist()


def test_a_skipped_video_has_the_answer_of_another_person_and_all_names_are_kept(
    manifest: Manifest, before: LabelSubset, tmp_path: Path
) -> None:
    name = video(manifest, 3)
    lines = [f"{name},skipped,,Ana,,,", f"{name},class,a,Bo,,,", f"{name},class,a,Cid,,,", f"{name},skipped,,Di,,,"]
    added = add_answers(manifest, before, write(tmp_path, *lines))
    assert (added.added, added.skipped, added.subset.given) == (1, 0, {3: 0})
    assert added.subset.lineage[-1]["by"] == ["Ana", "Bo", "Cid", "Di"]


def test_names_with_spaces_around_them_are_their_own(tmp_path: Path) -> None:
    uris, classes = ("p/1.mp4", " p/1.mp4", "q.mp4", "r.mp4"), ("go", "go ")
    listing = Listing("/videos", "list", uris, ("go", "go ", "go", "go "), (None,) * 4, ("train",) * 4)
    manifest = write_manifest(build_table(listing, [GOOD] * 4), tmp_path / "m.parquet", classes, "/videos", "list")
    ids = manifest.table["id"].to_pylist()
    truth = dict(zip(ids, manifest.table["class"].to_pylist(), strict=True))
    lines = [f"{name},{truth[name]}" for name in ids[:-1]] + [f" {ids[-1]} ,{truth[ids[-1]]}"]
    answers = read_answers(write(tmp_path, *lines, head="id,class"), manifest)
    assert {answer.id: answer.label for answer in answers} == truth and len({name.strip() for name in ids}) < len(ids)


def test_contradictions_are_listed_and_taken_only_on_request(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    labeled, free = int(before.rows[0]), free_row(before, range(6, 12))
    path = write(tmp_path, f"{video(manifest, labeled)},b", f"{video(manifest, free)},a", head="id,class")
    with pytest.raises(UserError) as caught:
        add_answers(manifest, before, path)
    text = str(caught.value)
    assert "but its label says a; --relabel takes the answer" in text and "but the manifest says b; --relabel" in text
    added = add_answers(manifest, before, path, relabel=True)
    assert len(added.relabeled) == 2 and added.subset.given == {labeled: 1, free: 0}
    assert added.subset.fingerprint != before.fingerprint


def test_all_mistakes_are_said_at_once(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    path = write(tmp_path, "x/nowhere,class,a,,,,", f"{video(manifest, 3)},class,bb,,,,0000000000000000")
    with pytest.raises(UserError) as caught:
        add_answers(manifest, before, path)
    text = str(caught.value)
    assert "video x/nowhere is not in the manifest" in text and "class bb is not known; did you mean b?" in text
    assert "another manifest, 0000000000000000" in text and "nothing was written" in text


def test_lines_that_are_not_understood_hide_no_other_mistake(manifest: Manifest, before: LabelSubset, tmp_path: Path) -> None:
    labeled, free = int(before.rows[0]), free_row(before, range(6, 12))
    lines = [f"{video(manifest, free)},class,b,,,,", f"{video(manifest, free)},class,a,,,,"]
    lines += [
        "x/nowhere,badvideo,,,,,",
        f"{video(manifest, 3)},class,bb,,,,",
        f"{video(manifest, labeled)},class,b,,,,",
        ",class,a,,,,",
    ]
    with pytest.raises(UserError) as caught:
        add_answers(manifest, before, write(tmp_path, *lines))
    said = str(caught.value).splitlines()
    assert "nothing was written" in said[0]
    assert said[1:] == [
        f"  - line 3: video {video(manifest, free)} has another answer on an earlier line",
        "  - line 4: status badvideo is not known; did you mean bad_video?",
        "  - line 7: no id",
        "  - video x/nowhere is not in the manifest",
        f"  - video {video(manifest, 3)}: class bb is not known; did you mean b?; --new-class 'bb' would add it",
        f"  - video {video(manifest, labeled)}: b, but its label says a; --relabel takes the answer",
    ]


@pytest.mark.parametrize(
    ("lines", "head", "problem"),
    [
        (["x,a"], "name,class", "lack the column id"),
        (["x,class,,,,,"], None, "status class without a class"),
        (["x,bad_video,a,,,,"], None, "status bad_video with the class a"),
        (["x,badvideo,,,,,"], None, "did you mean bad_video"),
        (["x,,,,,,"], None, "has neither a class nor a status"),
        ([",class,a,,,,"], None, "line 2: no id"),
        (["x,a", "x,b"], "id,class", "line 3: video x has another answer on an earlier line"),
        (["x,a,b"], "id,class", "more cells than the first line"),
        (['x,"a'], "id,class", "unexpected end of data"),
        (["x,a,b"], "id,class,class", "the column class more than once"),
        (["x;a"], "id;class", "separated by semicolons: save it with commas"),
        (['x,a,"Ana', 'B."', "", "y,,"], "id,class,by", "  - line 5: video y has neither"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, lines: list[str], head: str | None, problem: str) -> None:
    path = write(tmp_path, *lines, **({"head": head} if head else {}))
    with pytest.raises(UserError, match=problem):
        read_answers(path)


def test_what_a_spreadsheet_would_compute_is_guarded_and_read_back(tmp_path: Path) -> None:
    path = write(tmp_path, *(f"{guard(name)},{guard('-go')}" for name in ("=1+1.mp4", "plain.mp4")), head="id,class")
    assert path.read_text().splitlines()[1:] == ["'=1+1.mp4,'-go", "plain.mp4,'-go"]
    assert [(answer.id, answer.label) for answer in read_answers(path)] == [("=1+1.mp4", "-go"), ("plain.mp4", "-go")]
