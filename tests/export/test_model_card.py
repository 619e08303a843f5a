"""The figures of a model card: what they count, and what they say of probabilities."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from jobs import evaluate, export, label, train
from jobs.command import DONE, run
from pipeline.manifest.schema import read_manifest
from tests.model_folders import read


@pytest.fixture(scope="module")
def words(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that trained a run of one step, with held-out videos; one of its test videos is gone."""
    folder, manifest = tmp_path_factory.mktemp("card"), read_manifest(tiny / "manifest.parquet")
    shutil.copytree(tiny / "videos", folder / "videos")
    (folder / "videos" / manifest.table["uri"][int(manifest.find_usable_rows("test")[0])].as_py()).unlink()
    held_out = ["--per-class", "4", "--hold-out", "25%", "--out", str(folder / "labels.parquet")]
    assert run(label.main, [str(tiny / "manifest.parquet"), *held_out]) == DONE
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={folder}", f"data.root={folder / 'videos'}"]
    words += [f"data.labels={folder}/labels.parquet", "train.steps=1", "train.warmup_steps=0"]
    assert run(train.main, words) == DONE
    return words


@pytest.fixture
def trained(words: list[str]) -> Path:
    """The run."""
    return Path(words[2].partition("=")[2]) / "tiny"


def test_top1_is_told_both_ways_where_a_test_video_has_no_scores(
    words: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(train.main, words) == DONE  # which only tells what is there
    summary = read(trained, "evaluation.json")
    assert (summary["videos"], summary["labeled_without_scores"]) == (7, 1)
    shares = ", ".join(f"{name} {7 / 8 * summary[name]['top1']:.1%}" for name in ("primary", "auxiliary", "mean"))
    sentence = f"ith the labeled videos that have no scores (1) counted as wrong, top-1 is: {shares}"
    assert f"note: w{sentence}\n" in capsys.readouterr().out
    assert run(export.main, [str(trained), str(tmp_path / "model")]) == DONE
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert f"1 more videos could not be decoded and are not counted. W{sentence}. " in card


def test_likelihood_and_calibration_are_told_before_and_after_the_temperatures(trained: Path, tmp_path: Path) -> None:
    plain, calibrated = tmp_path / "plain", tmp_path / "calibrated"
    assert run(export.main, [str(trained), str(plain)]) == DONE
    assert run(evaluate.main, [str(trained), "--calibrate"]) == DONE
    found = read(trained, "calibration.json")  # four videos give no temperature, so the mean is given one
    found["mean"] |= {"temperature": 1.25, "after": {"nll": 1.125, "ece": 0.0625, "reliability": []}}
    (trained / "calibration.json").write_text(json.dumps(found))
    assert run(export.main, [str(trained), str(calibrated)]) == DONE
    summary, temperatures = read(trained, "evaluation.json"), read(calibrated, "calibration.json")
    cards = [(folder / "README.md").read_text(encoding="utf-8") for folder in (plain, calibrated)]
    for title, name in (("primary", "primary"), ("auxiliary", "auxiliary"), ("mean of both", "mean")):
        figures, one = summary[name], temperatures[name]
        cells = f"| {figures['nll']:.3f} | {100 * figures['ece']:.1f} |\n"
        assert all(len(re.findall(rf"\| {title} \|.*{re.escape(cells)}", card)) == 1 for card in cards)
        before, after = one["before"], one["after"]
        told = f"{title}: none;"
        if name == "mean":
            told = f"{title}: {one['temperature']:.3f} (NLL {before['nll']:.3f} before and {after['nll']:.3f} after, "
            told += f"ECE {before['ece']:.1%} before and {after['ece']:.1%} after)"
        assert told in cards[1]
    assert "Temperatures (calibration.json), found on 4 held-out videos, by 2 clips x 1 crop" in cards[1]
    assert "Temperatures" not in cards[0]
