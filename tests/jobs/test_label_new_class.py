"""Answers with a class that the manifest does not have: refused, or added on purpose, then trained on and evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import evaluate, inspect, label, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import Manifest, read_manifest


@pytest.fixture
def answers(tiny: Path, tmp_path: Path) -> Path:
    """Three unlabeled videos of the rendered data set, of which two show something new."""
    manifest = read_manifest(tiny / "manifest.parquet")
    labeled = set(read_labels(tiny / "labels.parquet", manifest).ids)
    ids, names = (manifest.table[name].take(manifest.find_training_rows()).to_pylist() for name in ("id", "class"))
    free = [(one, name) for one, name in zip(ids, names, strict=True) if one not in labeled]
    said = [(free[0][0], "wave"), (free[1][0], "wave"), free[2]]
    path = tmp_path / "answers.csv"
    path.write_text("id,class\n" + "".join(f"{one},{name}\n" for one, name in said), encoding="utf-8")
    return path


def add(tiny: Path, answers: Path, folder: Path, *words: str) -> int:
    """The answers contradict what the data set was rendered with, so they need --relabel."""
    return run(
        label.main, [str(tiny / "manifest.parquet"), "--add", str(answers), "--out", str(folder / "more.parquet"), *words]
    )


def manifest_out(folder: Path) -> tuple[str, str]:
    return "--manifest-out", str(folder / "more_classes.parquet")


@pytest.mark.timeout(600)
def test_a_run_learns_a_new_class_and_says_that_no_test_video_shows_it(
    tiny: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(tiny / "manifest.parquet")
    kept = {name: (tiny / name).read_bytes() for name in ("manifest.parquet", "labels.parquet")}
    assert add(tiny, answers, tmp_path, "--relabel", "--new-class", "wave", *manifest_out(tmp_path)) == DONE
    said = capsys.readouterr().out
    assert "note: class wave is new, with 2 labeled and no test videos: no accuracy tells" in said
    name = f"{tmp_path.name}_more_classes_more"
    assert (
        f"python -m jobs.train --config demo run.name={name} data.manifest={tmp_path}/more_classes.parquet "
        f"data.labels={tmp_path}/more.parquet\n" in said
    )
    assert {name: (tiny / name).read_bytes() for name in kept} == kept
    manifest = read_manifest(tmp_path / "more_classes.parquet")
    subset = read_labels(tmp_path / "more.parquet", manifest)
    assert manifest.classes == (*before.classes, "wave") and manifest.table.equals(before.table)
    assert sorted(subset.given.values()) == [4, 4] and subset.lineage[-1]["new_classes"] == ["wave"]
    assert run(inspect.main, [manifest.path]) == DONE
    assert f"wave added to the classes of {before.fingerprint}" in capsys.readouterr().out

    config = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=1", "train.warmup_steps=0"]
    data = [f"data.manifest={manifest.path}", f"data.labels={tmp_path / 'more.parquet'}"]
    assert run(train.main, [*config, *data]) == DONE
    untested = "note: no test videos of wave: accuracies say nothing of these classes, and the mean class accuracy is over"
    assert untested in capsys.readouterr().out
    figures = json.loads((tmp_path / "tiny" / "evaluation.json").read_text(encoding="utf-8"))["mean"]
    shares = list(figures["per_class"].values())
    assert shares[-1] is None and figures["mean_class_accuracy"] == pytest.approx(sum(shares[:-1]) / 4)
    assert run(evaluate.main, [str(tmp_path / "tiny"), "evaluation.clips=1"]) == DONE
    assert untested in capsys.readouterr().out
    assert run(train.main, config) == USER_ERROR  # with the earlier manifest
    assert "manifest: the run's has fingerprint" in capsys.readouterr().err
    words = [str(tmp_path / "tiny"), f"data.manifest={before.path}"]
    assert run(evaluate.main, words) == USER_ERROR
    assert "classes that are no longer there: wave" in capsys.readouterr().err


def test_mistakes_are_listed_together_and_nothing_is_written(
    tiny: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest: Manifest = read_manifest(tiny / "manifest.parquet")
    assert add(tiny, answers, tmp_path) == USER_ERROR
    assert "class wave is not known; --new-class 'wave' would add it" in capsys.readouterr().err
    names = ["clap", manifest.classes[0], manifest.classes[1].upper(), "wave"]
    words = [word for name in names for word in ("--new-class", name)]
    assert add(tiny, answers, tmp_path, *words, *manifest_out(tmp_path)) == USER_ERROR
    said = capsys.readouterr().err
    assert "--new-class clap is the class of no answer" in said and f"{manifest.classes[0]} is a class already" in said
    assert "only in case, spaces or punctuation" in said
    assert said.count("wave, but the manifest says") == 2 and "--relabel takes the answer" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.csv"]


def test_a_manifest_is_written_only_with_its_labels(
    tiny: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label, "write_labels", fail)
    assert add(tiny, answers, tmp_path, "--relabel", "--new-class", "wave", *manifest_out(tmp_path)) == 130
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == []


def test_files_that_cannot_be_written_are_named_together(
    tiny: Path, answers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ["--relabel", "--new-class", "wave"]
    for words, problem in (
        (new, "--new-class needs --manifest-out FILE"),
        (manifest_out(tmp_path), "--manifest-out is for --new-class NAME"),
        ([*new, "--manifest-out", str(tmp_path / "no" / "m.parquet")], "must name a file in a folder that exists"),
        ([*new, "--manifest-out", "s3://bucket/m.parquet"], "must name a file in a folder that exists"),
        ([*new, "--manifest-out", str(tmp_path / "more.parquet")], "are the same file"),
        ([*new, "--manifest-out", str(tiny / "manifest.parquet")], "manifest.parquet exists: name a new file"),
    ):
        assert add(tiny, answers, tmp_path, *words) == USER_ERROR
        assert problem in capsys.readouterr().err
    assert (
        run(label.main, [str(tiny / "manifest.parquet"), "--per-class", "1", *new[1:], *manifest_out(tmp_path)]) == USER_ERROR
    )
    assert "--new-class is for --add answers.csv" in capsys.readouterr().err
    for name in ("more.parquet", "more_classes.parquet"):
        (tmp_path / name).write_bytes(b"needed")
    assert add(tiny, answers, tmp_path, *new, *manifest_out(tmp_path)) == USER_ERROR
    said = capsys.readouterr().err
    assert "more.parquet exists: name a new file" in said and "more_classes.parquet exists: name a new file" in said
    assert {path.read_bytes() for path in tmp_path.glob("*.parquet")} == {b"needed"}
