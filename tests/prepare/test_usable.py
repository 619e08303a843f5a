"""Splits and labels are drawn among usable videos, and a run that could not be evaluated is refused at its start."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from jobs import label, prepare, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.prepare.build import split_listing
from pipeline.prepare.sources import Listing
from pipeline.training import prepared_run
from tests.manifest.tables import BROKEN, GOOD
from tests.videos import write_numbers


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_numbers(tmp_path / "video.mp4", frames=25, size=(32, 32))


def listing_of(usable: Sequence[bool]) -> Listing:
    """Makes a listing of videos of two classes in turn, without splits."""
    uris = tuple(f"{'xy'[n % 2]}/{n}.mp4" for n in range(len(usable)))
    return Listing("/v", "folder", uris, tuple(uri[0] for uri in uris), (None,) * len(uris), None)


def test_broken_videos_do_not_count_toward_the_test_share_of_a_class() -> None:
    usable = [True] * 8 + [False] * 40
    probes = [GOOD if fine else BROKEN for fine in usable]
    for seed in range(20):
        listing = split_listing(listing_of(usable), probes, 0.25, seed)
        assert listing.splits is not None
        pairs = zip(listing.labels, listing.splits, usable, strict=True)
        assert Counter((label, split) for label, split, fine in pairs if fine) == {
            ("x", "train"): 3, ("x", "test"): 1, ("y", "train"): 3, ("y", "test"): 1,
        }  # fmt: skip
        assert set(listing.splits[8:]) == {"train"}


def test_a_draw_over_usable_videos_is_that_of_a_folder_without_the_others() -> None:
    usable = [True] * 40 + [False] * 10
    whole = split_listing(listing_of(usable), [GOOD] * 40 + [BROKEN] * 10, 0.25, 3)
    alone = split_listing(listing_of(usable[:40]), [GOOD] * 40, 0.25, 3)
    assert whole.splits is not None and whole.splits[:40] == alone.splits


def test_a_drawn_test_split_has_no_broken_files(tmp_path: Path, video: Path) -> None:
    for name in ("run", "jump"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for number in range(4):
            shutil.copy(video, tmp_path / "videos" / name / f"good{number}.mp4")
            (tmp_path / "videos" / name / f"broken{number}.mp4").write_bytes(b"no video")
            (tmp_path / "videos" / name / f"empty{number}.mp4").touch()
    for seed in range(3):
        words = ["folder", tmp_path / "videos", tmp_path / "out", "--seed", seed, "--processes", 1]
        assert run(prepare.main, list(map(str, words))) == DONE
        manifest = read_manifest(tmp_path / "out" / "manifest.parquet")
        test = manifest.table["class"].take(pa.array(manifest.find_usable_rows("test")))
        assert Counter(test.to_pylist()) == {"run": 1, "jump": 1}


def prepare_list(tmp_path: Path, *lines: str) -> int:
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    words = ["list", tmp_path / "list.csv", tmp_path / "out", "--root", tmp_path / "videos", "--processes", 1]
    return run(prepare.main, list(map(str, words)))


def test_a_list_without_an_existing_test_file_is_refused(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c", "d"):
        shutil.copy(video, tmp_path / "videos" / f"{name}.mp4")
    train = ["a.mp4,run,train", "b.mp4,jump,train"]
    assert prepare_list(tmp_path, *train, "x.mp4,run,test", "y.mp4,jump,test") == USER_ERROR
    err = capsys.readouterr().err
    assert "none of the 2 videos of split test can be used" in err and "x.mp4: missing, no such file" in err
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    assert prepare_list(tmp_path, "x.mp4,run,train", "y.mp4,jump,train", "c.mp4,run,test", "d.mp4,jump,test") == USER_ERROR
    assert "none of the 2 videos of split train can be used" in capsys.readouterr().err
    assert prepare_list(tmp_path, *train, "c.mp4,run,test", "y.mp4,jump,test") == DONE
    note = "note: 1 of 2 classes have no usable test video, so that no accuracy says anything of them: jump (1 listed)"
    assert note in capsys.readouterr().out


def test_a_folder_without_a_usable_test_video_is_refused(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("run", "jump"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        shutil.copy(video, tmp_path / "videos" / name)
    words = ["folder", tmp_path / "videos", tmp_path / "out", "--processes", 1]
    assert run(prepare.main, list(map(str, words))) == USER_ERROR
    assert "no class has two usable videos of different groups" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ at the start of a run


def changed(tiny: Path, tmp_path: Path, column: str, values: list[object], root: str | None = None) -> Config:
    """The configuration of the small data set with a changed column and newly drawn labels."""
    manifest = read_manifest(tiny / "manifest.parquet")
    at = manifest.table.schema.get_field_index(column)
    table = manifest.table.set_column(at, manifest.table.schema.field(at), pa.array(values, manifest.table[column].type))
    path = tmp_path / "manifest.parquet"
    other = write_manifest(table, path, manifest.classes, root or manifest.root, manifest.source)
    write_labels(draw_labels(other, "2/class", 0), other, tmp_path / "labels.parquet")
    return load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path / 'runs'}", f"data.manifest={path}"])


def test_a_run_without_anything_to_evaluate_is_refused_at_its_start(tiny: Path, tmp_path: Path) -> None:
    table = read_manifest(tiny / "manifest.parquet").table
    status = ["ok" if split == "train" else "missing" for split in table["split"].to_pylist()]
    with pytest.raises(UserError, match="has no usable video to evaluate in split 'test'"):
        prepared_run.prepare_run(changed(tiny, tmp_path, "status", status))


def test_a_run_whose_evaluated_videos_have_no_class_is_refused_at_its_start(tiny: Path, tmp_path: Path) -> None:
    table = read_manifest(tiny / "manifest.parquet").table
    known = zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True)
    labels = [label if split == "train" else -1 for label, split in known]
    with pytest.raises(UserError, match=r"none of the 8 videos of .* in evaluation.split=test has a known class"):
        prepared_run.prepare_run(changed(tiny, tmp_path, "label", labels))


def test_a_run_whose_evaluated_files_are_gone_is_refused_at_its_start(tiny: Path, tmp_path: Path) -> None:
    table = read_manifest(tiny / "manifest.parquet").table
    uris = [
        uri if split == "train" else f"gone/{uri}"
        for uri, split in zip(table["uri"].to_pylist(), table["split"].to_pylist(), strict=True)
    ]
    with pytest.raises(UserError, match=r"evaluation.split=test: 8 of its 8 files were looked for, and none is there"):
        prepared_run.prepare_run(changed(tiny, tmp_path, "uri", uris))
    uris[table["split"].to_pylist().index("test")] = table["uri"].to_pylist()[table["split"].to_pylist().index("test")]
    prepared = prepared_run.prepare_run(changed(tiny, tmp_path, "uri", uris))  # a few missing ones are named by evaluation, too
    assert prepared.step == 0 and len(prepared.notes) == 1
    assert "8 of its 8 files were looked for, 7 are not there and count in no accuracy; the first: " in prepared.notes[0]


def test_files_that_are_gone_are_noted_where_nothing_or_another_process_needs_them(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run notes them, and a run whose workers may see other disks; a run that is done does not look for them."""
    config = changed(tiny, tmp_path, "uri", read_manifest(tiny / "manifest.parquet").table["uri"].to_pylist())
    videos = shutil.copytree(tiny / "videos", tmp_path / "videos")
    knobs = [f"run.storage_path={tmp_path / 'runs'}", f"data.manifest={config.data.manifest}", f"data.root={videos}"]
    words = ["--config", str(tiny / "tiny.yaml"), *knobs, "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    for file in list(videos.rglob("*.mp4")):
        file.unlink()
    capsys.readouterr()
    assert run(train.main, words) == DONE
    said = capsys.readouterr()
    assert "tiny is done" in said.out and "test top-1 after step 1 on 8 videos" in said.out and said.err == ""
    assert run(train.main, [*words, "run.name=new"]) == USER_ERROR
    assert "8 of its 8 files were looked for, and none is there; say with data.root" in capsys.readouterr().err
    assert run(train.main, [*words, "run.name=new", "--dry-run"]) == DONE
    said = capsys.readouterr()
    assert "nothing is trained yet" in said.out and "none is there; a run would be refused: say with data.root" in said.err
    prepared = prepared_run.prepare_run(load_config(tiny / "tiny.yaml", [*knobs, "run.name=new", "scale.workers=2"]))
    (note,) = prepared.notes
    assert "none is there, as this process sees it; if workers do not see them either, say with data.root" in note


def test_sixty_four_of_many_files_are_looked_for(tiny: Path, tmp_path: Path) -> None:
    """Only the last of 160 files exists, and it is in the sample."""
    manifest = read_manifest(tiny / "manifest.parquet")
    test = manifest.find_usable_rows("test")
    rows = manifest.table.take(pa.array([*manifest.find_training_rows(), *([int(test[0])] * 160)])).to_pylist()
    for number, row in enumerate(rows):
        is_there = row["split"] != "test" or number == len(rows) - 1
        row |= {"id": f"{number:04d}", "uri": row["uri"] if is_there else f"gone{number}.mp4"}
    table = pa.Table.from_pylist(rows, schema=manifest.table.schema)
    many = write_manifest(table, tmp_path / "manifest.parquet", manifest.classes, manifest.root, manifest.source)
    write_labels(draw_labels(many, "2/class", 0), many, tmp_path / "labels.parquet")
    config = load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", f"data.manifest={many.path}"])
    (note,) = prepared_run.prepare_run(config).notes
    assert "64 of its 160 files were looked for, 63 are not there" in note


def test_a_run_that_cannot_be_tested_names_what_it_can_be_evaluated_on(tiny: Path, tmp_path: Path) -> None:
    """The error suggests evaluation.split=validation where there are validation videos, and else how to get some."""
    table = read_manifest(tiny / "manifest.parquet").table
    labels, splits = table["label"].to_pylist(), table["split"].to_pylist()
    unknown = [label if split == "train" else -1 for label, split in zip(labels, splits, strict=True)]
    config = changed(tiny, tmp_path, "label", unknown)
    with pytest.raises(UserError, match="correct the labels of these videos and prepare the data again, or evaluate"):
        prepared_run.prepare_run(config)
    held = tmp_path / "held.parquet"
    words = [config.data.manifest, "--per-class", "4", "--hold-out", "25%", "--out", str(held)]
    assert run(label.main, words) == DONE
    config = config.model_copy(update={"data": config.data.model_copy(update={"labels": str(held)})})
    with pytest.raises(UserError, match=r"evaluate on the 4 labeled validation videos, evaluation.split=validation, or"):
        prepared_run.prepare_run(config)
    validated = config.evaluation.model_copy(update={"split": "validation"})
    assert prepared_run.prepare_run(config.model_copy(update={"evaluation": validated})).notes == ()
    absent = ["ok" if split == "train" else "missing" for split in splits]
    with pytest.raises(UserError, match=r"held-out training videos \(keep some with jobs.label .*evaluation.split=validation"):
        prepared_run.prepare_run(changed(tiny, tmp_path, "status", absent))
