"""A finished run whose data was prepared again, moved, or is gone: what guards training guards what comes after it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, inspect, predict, prepare, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import SCHEMA, Manifest, read_manifest, write_manifest
from pipeline.report.report import write_report

pytestmark = pytest.mark.usefixtures("undrawn")

RENAMED = {"drift_up": "rise"}


@pytest.fixture(scope="module")
def master(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of its own and a run of two steps on it."""
    folder = tmp_path_factory.mktemp("saved")
    rewrite(tiny, folder / "data")
    words = ["--config", str(tiny / "tiny.yaml"), *where(folder), "train.steps=2", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    return folder


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    """A copy of both, the run's of the copied data."""
    shutil.copytree(master / "runs", tmp_path / "runs")
    shutil.copytree(master / "data", tmp_path / "data")
    for name in ("config.yaml", "facts.json", "evaluation.json"):
        path = tmp_path / "runs" / "tiny" / name
        path.write_text(path.read_text(encoding="utf-8").replace(str(master), str(tmp_path)), encoding="utf-8")
    return tmp_path


def where(folder: Path) -> list[str]:
    return [f"run.storage_path={folder}/runs", f"data.manifest={folder}/data/manifest.parquet"]


def rewrite(
    tiny: Path, out: Path, names: dict[str, str] | None = None, splits: bool = False, more: Sequence[str] = ()
) -> Manifest:
    """The tiny data set, with classes of other names, splits drawn anew, or classes more; its labels beside it."""
    old = read_manifest(tiny / "manifest.parquet")
    rows = old.table.to_pylist()
    for row in rows:
        row["class"] = (names or {}).get(row["class"], row["class"])
        if splits and row["split"] != "unlabeled":
            row["split"] = {"train": "test", "test": "train"}[row["split"]]
    classes = sorted({*(row["class"] for row in rows if row["class"]), *more})
    rows = [{**row, "label": classes.index(row["class"]) if row["class"] else -1} for row in rows]
    out.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    manifest = write_manifest(table, out / "manifest.parquet", classes, old.root, "synthetic, again")
    if not more:
        write_labels(draw_labels(manifest, "2/class", 0), manifest, out / "labels.parquet")
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": RENAMED}, ("classes that the run does not know: rise", "classes that are no longer there: drift_up")),
        ({"more": ("zoom",)}, ("classes that the run does not know: zoom",)),
        ({"splits": True}, ("the same classes and number of videos: other files, splits or groups",)),
    ],
    ids=["a class renamed", "a class more", "the split drawn anew"],
)
def test_data_prepared_again_under_the_same_path_is_refused(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], words: tuple[str, ...]
) -> None:
    one = folder / "runs" / "tiny"
    before = contents(one)
    assert {"evaluation.json", "predictions.parquet"} <= before.keys()
    rewrite(tiny, folder / "data", **change)  # type: ignore[arg-type]
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    error = capsys.readouterr().err
    assert f"{folder}/data/manifest.parquet is not the manifest that tiny was trained with" in error
    assert all(word in error for word in words) and "--other-data" in error and "Traceback" not in error
    clips = ["clips", "--config", str(one / "config.yaml"), "--step", "0", "--out", str(folder / "x.html")]
    assert run(inspect.main, clips) == USER_ERROR
    assert "is not the manifest that" in capsys.readouterr().err and not (folder / "x.html").exists()
    assert contents(one) == before
    page = write_report([one]).path.read_text(encoding="utf-8")
    assert "was written again since the run" in page and "data:image/jpeg" not in page


def test_prediction_needs_the_run_folder_alone(folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder / "elsewhere"
    shutil.move(folder / "runs" / "tiny", one)
    shutil.rmtree(folder / "data")
    video = next((tiny / "videos").rglob("*.mp4"))
    assert run(predict.main, [str(one), str(video), "--top", "4", "--out", str(folder / "scores.parquet")]) == DONE
    said = capsys.readouterr().out
    assert all(name in said for name in ("drift_up", "drift_down", "drift_left", "drift_right"))
    rewrite(tiny, folder / "data", RENAMED)  # nor does it look at what is there now
    assert run(predict.main, [str(one), str(video), "--top", "4"]) == DONE
    assert "drift_up" in capsys.readouterr().out


def test_data_that_moved_is_known_by_its_content(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, moved = folder / "runs" / "tiny", folder / "moved"
    before = json.loads((one / "evaluation.json").read_text())
    shutil.move(folder / "data", moved)
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    error = capsys.readouterr().err
    assert "manifest not found" in error and "if the data moved, say data.manifest=FILE, and data.root=FOLDER" in error
    assert run(evaluate.main, [str(one), f"data.manifest={moved}/manifest.parquet"]) == DONE
    after = json.loads((one / "evaluation.json").read_text())
    assert after["data"]["manifest"] == f"{moved}/manifest.parquet"
    assert {key: after[key] for key in before if key != "data"} == {key: before[key] for key in before if key != "data"}
    assert "data:image/jpeg" in write_report([one]).path.read_text(encoding="utf-8")  # it looks where the data was last
    (moved / "labels.parquet").unlink()
    assert run(evaluate.main, [str(one), f"data.manifest={moved}/manifest.parquet"]) == DONE  # test videos need no labels
    capsys.readouterr()
    words = [f"data.manifest={moved}/manifest.parquet", "evaluation.split=validation"]
    assert run(evaluate.main, [str(one), *words]) == USER_ERROR
    assert "data.labels=FILE" in capsys.readouterr().err
    words = [f"data.manifest={moved}/manifest.parquet", f"data.root={folder}/nowhere"]
    assert run(evaluate.main, [str(one), *words]) == USER_ERROR
    assert "none of the 8 test videos can be decoded" in capsys.readouterr().err


def copied_videos(tiny: Path, folder: Path) -> Path:
    """A folder that the manifest's videos can be found in, as data.root."""
    return Path(shutil.copytree(tiny / "videos", folder))


def test_videos_that_moved_are_compared_by_size_and_by_content(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other files of the same names below data.root were evaluated as if they were the run's."""
    one, moved = folder / "runs" / "tiny", copied_videos(tiny, folder / "moved")
    assert run(evaluate.main, [str(one), f"data.root={moved}"]) == DONE
    manifest = read_manifest(folder / "data" / "manifest.parquet")
    uris = manifest.table["uri"].take(pa.array(manifest.find_usable_rows("test"))).to_pylist()
    first = moved / uris[0]
    size = first.stat().st_size
    first.write_bytes(first.read_bytes() + b"more")
    before = contents(one)
    capsys.readouterr()
    assert run(evaluate.main, [str(one), f"data.root={moved}"]) == USER_ERROR
    error = capsys.readouterr().err
    assert f"{uris[0]}: {size} bytes in the manifest, {size + 4} bytes found at {first}" in error and uris[1] not in error
    assert "1 of 8 compared files are not those of the manifest that tiny was trained with" in error
    assert "data.root=FOLDER" in error and "--other-data" in error and contents(one) == before
    other = rewrite(tiny, folder / "other", RENAMED)  # on purpose, on other data: nothing is compared
    words = ["--other-data", other.path, f"data.root={moved}", "--out", str(folder / "out")]
    assert run(evaluate.main, [str(one), *words]) == DONE


def test_the_clips_of_a_step_are_of_the_videos_that_were_trained(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, moved = folder / "runs" / "tiny" / "config.yaml", copied_videos(tiny, folder / "moved")
    words = ["clips", "--config", str(config), "--step", "0", "--out", str(folder / "x.html"), f"data.root={moved}"]
    assert run(inspect.main, words) == DONE
    for file in moved.rglob("*.mp4"):
        file.write_bytes(file.read_bytes() + b"more")
    (folder / "x.html").unlink()
    assert run(inspect.main, words) == USER_ERROR
    assert "24 of 24 compared files are not those" in capsys.readouterr().err and not (folder / "x.html").exists()


def test_a_recorded_root_stays_where_the_manifest_moved_and_is_said(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``data.manifest`` changes the manifest's place alone: the videos are where the run was told that they are."""
    root, own = copied_videos(tiny, folder / "videos_are_here"), tiny / "videos"
    words = ["--config", str(tiny / "tiny.yaml"), *where(folder), "run.name=two", "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, [*words, f"data.root={root}"]) == DONE
    one, moved = folder / "runs" / "two", folder / "moved" / "manifest.parquet"
    shutil.move(folder / "data", folder / "moved")
    capsys.readouterr()
    note = f"note: videos are looked for in data.root={root}, which the run recorded; data.root=FOLDER names another folder"
    for more, used, said in (([], root, 1), (["data.root=null"], own, 0), ([f"data.root={own}"], own, 0)):
        assert run(evaluate.main, [str(one), f"data.manifest={moved}", *more]) == DONE
        assert capsys.readouterr().out.count(note) == said
        assert json.loads((one / "evaluation.json").read_text())["data"]["root"] == str(used)
    clips = ["clips", "--config", str(one / "config.yaml"), "--step", "0", "--out", str(folder / "x.html")]
    assert run(inspect.main, [*clips, f"data.manifest={moved}", f"data.labels={folder}/moved/labels.parquet"]) == DONE
    assert note in capsys.readouterr().err


@pytest.mark.parametrize("splits", [True, False], ids=["splits given", "splits drawn"])
def test_data_that_is_now_grouped_by_its_names_can_be_prepared_as_it_was(
    tiny: Path, tmp_path: Path, splits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy is true: with it the command makes the run's manifest again."""
    for number, file in enumerate(sorted((tiny / "videos").rglob("*.mp4"))):
        name = file.parent.name
        side = ("train", "test")[number % 8 // 6] if splits else ""
        place = tmp_path / "videos" / side / name / f"v_{name}_g{number % 8 // 2:02d}_c{number % 2:02d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    again = ["folder", str(tmp_path / "videos"), str(tmp_path / "data"), "--labeled", "1/class", "--processes", "1"]
    assert run(prepare.main, [*again, "--group", "none"]) == DONE
    words = ["--config", str(tiny / "tiny.yaml"), *where(tmp_path), "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    capsys.readouterr()
    assert run(prepare.main, again) == DONE
    assert "names look like recordings as UCF-101" in capsys.readouterr().out
    one = tmp_path / "runs" / "tiny"
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    error = capsys.readouterr().err
    sure = "only the groups differ, of which the run's had none: jobs.prepare ... --group none prepares it as it was"
    assert (sure in error) == splits and "jobs.prepare ... --group none" in error
    assert run(prepare.main, [*again, "--group", "none"]) == DONE
    assert run(evaluate.main, [str(one)]) == DONE


def test_other_data_of_unknown_classes_names_the_split_that_has_known_ones(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_manifest(tiny / "manifest.parquet").table.to_pylist()
    names = {row["split"]: row["class"] for row in rows}
    (one, two) = ("stroll", names["train"])
    rows = [row | {"split": ("test", "val")[n % 2], "class": (one, two)[n % 2], "label": n % 2} for n, row in enumerate(rows)]
    root = str(tiny / "videos")
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=SCHEMA)
    other = write_manifest(table, folder / "other.parquet", (one, two), root, "another")
    words = [str(folder / "runs" / "tiny"), "--other-data", other.path]
    assert run(evaluate.main, words) == USER_ERROR
    count = len(other.find_usable_rows("val"))
    remedy = f"or evaluate the {count} validation videos whose class it knows with evaluation.split=validation"
    assert remedy in capsys.readouterr().err
    assert run(evaluate.main, [*words, "evaluation.split=validation"]) == DONE


def test_other_data_on_purpose_is_matched_by_name_and_said(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same videos, one class under another name, so that all labels are other numbers."""
    one = folder / "runs" / "tiny"
    before = contents(one)
    other = rewrite(tiny, folder / "other", {"drift_up": "a_first_class"})
    assert run(evaluate.main, [str(one), "--other-data", str(folder / "other" / "manifest.parquet")]) == DONE
    said = capsys.readouterr().out
    assert "note: this is not the run's own data" in said
    assert "note: 2 videos of classes that the run does not know are left out of these accuracies: a_first_class (2)" in said
    after = contents(one)
    assert {name: after[name] for name in before} == before
    new = {f"evaluation_on_{other.fingerprint}.json", f"predictions_on_{other.fingerprint}.parquet"}
    assert set(after) - set(before) == new
    own, found = (json.loads(after[name]) for name in ("evaluation.json", f"evaluation_on_{other.fingerprint}.json"))
    assert found["classes"] == own["classes"] and found["videos"] == 6 and own["videos"] == 8
    trained_on = json.loads(after["facts.json"])["fingerprints"]["manifest"]
    assert found["other_data"] == {"trained_on": trained_on, "unknown_classes": {"a_first_class": 2}}
    for name in own["classes"]:
        assert found["mean"]["per_class"][name] == (None if name == "drift_up" else own["mean"]["per_class"][name])
    table = pq.read_table(one / f"predictions_on_{other.fingerprint}.parquet")
    assert json.loads(table.schema.metadata[b"actnetformer"])["other_data"] == found["other_data"]
    mine = {row["id"]: row["mean"] for row in pq.read_table(one / "predictions.parquet").to_pylist()}
    for row in table.to_pylist():  # scores of videos that no class of the run names are there all the same
        np.testing.assert_allclose(row["mean"], mine[row["id"]], rtol=1e-5)
        assert row["label"] == (-1 if row["class"] == "a_first_class" else own["classes"].index(row["class"]))
    report = write_report([one])
    page = report.path.read_text(encoding="utf-8")
    assert "Evaluated on other data" in page and other.fingerprint in page and "a_first_class" in page
    assert "Evaluated on other data" in report.path.with_suffix(".md").read_text(encoding="utf-8")


def test_other_data_is_not_looked_for_where_the_runs_own_videos_moved_to(folder: Path, tiny: Path) -> None:
    """A run that recorded ``data.root`` keeps it for its own videos alone."""
    one = folder / "runs" / "tiny"
    config = one / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "root: null" in text
    config.write_text(text.replace("root: null", f"root: {folder}/moved"), encoding="utf-8")
    rewrite(tiny, folder / "other", {"drift_up": "a_first_class"})
    assert run(evaluate.main, [str(one), "--other-data", str(folder / "other" / "manifest.parquet")]) == DONE


def test_other_data_can_be_written_elsewhere_and_says_whose_it_is(
    folder: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = folder / "runs" / "tiny", folder / "out"
    rewrite(tiny, folder / "other", RENAMED)
    before = contents(one)
    assert run(evaluate.main, [str(one), "--other-data", str(folder / "other" / "manifest.parquet"), "--out", str(out)]) == DONE
    written = sorted(contents(out))
    assert contents(one) == before and [name.partition("_on_")[0] for name in written] == ["evaluation", "predictions"]
    assert json.loads((out / written[0]).read_text())["run"] == str(one)
    page = write_report([out]).path.read_text(encoding="utf-8")
    assert "results of other data than the run" in page and str(one) in page and "Evaluated on other data" in page
    for file in out.glob("report.*"):
        file.unlink()
    results = contents(out)
    third = rewrite(tiny, folder / "third", {"drift_up": "climb"})  # a second data set beside the first
    words = ["--other-data", str(folder / "third" / "manifest.parquet"), "--out", str(out)]
    assert run(evaluate.main, [str(one), *words]) == DONE
    after = contents(out)
    assert {name: after[name] for name in results} == results
    new = {f"evaluation_on_{third.fingerprint}.json", f"predictions_on_{third.fingerprint}.parquet"}
    assert set(after) - set(results) == new
    shutil.copytree(one, folder / "runs" / "another")
    capsys.readouterr()
    assert run(evaluate.main, [str(folder / "runs" / "another"), *words]) == USER_ERROR
    assert f"holds results of the run {one}: choose another --out FOLDER" in capsys.readouterr().err
    assert contents(out) == after
    words = [str(one), "--other-data", str(folder / "data" / "manifest.parquet")]
    assert run(evaluate.main, words) == USER_ERROR
    assert "is the data that tiny was trained with" in capsys.readouterr().err
    rewrite(tiny, folder / "other", {name: f"x{name}" for name in ("drift_up", "drift_down", "drift_left", "drift_right")})
    assert run(evaluate.main, [str(one), "--other-data", str(folder / "other" / "manifest.parquet")]) == USER_ERROR
    error = capsys.readouterr().err
    assert "no test video of" in error and "give the labels there the run's names" in error and "evaluation.split" not in error
    assert run(evaluate.main, [str(one), "--out", str(one)]) == DONE  # its own place
    shutil.copytree(one, folder / "runs" / "two")
    assert run(evaluate.main, [str(one), "--out", str(folder / "runs" / "two")]) == USER_ERROR
    assert "is a run folder: choose another" in capsys.readouterr().err


def test_a_folder_with_anothers_parts_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration edited after the fact, a checkpoint of another run, class names that are gone."""
    one = folder / "runs" / "tiny"
    text = (one / "config.yaml").read_text(encoding="utf-8")
    (one / "config.yaml").write_text(text.replace("decode_size: 40", "decode_size: 48"), encoding="utf-8")
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    assert "config.yaml was changed after the run was made" in capsys.readouterr().err
    (one / "config.yaml").write_text(text, encoding="utf-8")
    facts = json.loads((one / "facts.json").read_text(encoding="utf-8"))
    changed = {**facts, "fingerprints": {**facts["fingerprints"], "manifest": "0" * 16}}
    (one / "facts.json").write_text(json.dumps(changed), encoding="utf-8")
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    assert "is a checkpoint of another run" in capsys.readouterr().err
    (one / "facts.json").write_text(json.dumps({**facts, "classes": None}), encoding="utf-8")
    assert run(evaluate.main, [str(one)]) == USER_ERROR
    assert "facts.json lacks what the run was trained with" in capsys.readouterr().err
    assert run(evaluate.main, [str(one), "train.steps=3"]) == USER_ERROR
    assert "only evaluation.*, scale.*, data.manifest, data.labels, data.root can be overridden here" in capsys.readouterr().err
