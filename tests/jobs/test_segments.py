"""Clips of segments through the commands: planned, looked at, trained, continued, evaluated, asked, studied, reported."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jobs import ablate, inspect, predict, search, train
from jobs.command import DONE, USER_ERROR, run
from pipeline.analysis.comparison import group_runs
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.analysis.run_description import build_command as command_of
from pipeline.analysis.run_description import build_setting_table
from pipeline.bench.decode import bench_decode
from pipeline.config import load_config
from pipeline.manifest.label_subset import DrawOptions, draw_labels, write_labels
from pipeline.manifest.schema import read_manifest
from pipeline.run_folder.contents import compute_config_digest, read_metrics
from pipeline.studies.study_file import read_study

SEGMENTS = ["primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", "auxiliary.clip.frames=6"]
IN_WORDS = "the whole video in {} parts, a frame of each"


def words(tiny: Path, *more: str) -> list[str]:
    return ["--config", str(tiny / "tiny.yaml"), *more]


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("segments")
    fixed = words(tiny, *SEGMENTS, f"run.storage_path={storage}", "train.steps=4", "train.checkpoint_every=2")
    assert run(train.main, fixed) == DONE
    return storage / "tiny"


def test_a_dry_run_and_the_page_of_a_step_say_what_clips_cover(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(train.main, words(tiny, "--dry-run", *SEGMENTS)) == DONE
    text = capsys.readouterr().out
    assert f"clips: primary {IN_WORDS.format(4)}; auxiliary {IN_WORDS.format(6)}" in text
    assert "decoding: 10 frames of each of 6 videos a step" in text
    assert run(train.main, words(tiny, "--dry-run")) == DONE
    assert "clips: primary 4 frames at 8 fps (0.5 s); auxiliary 4 frames at 16 fps (0.25 s)" in capsys.readouterr().out
    page = tmp_path / "step.html"
    assert run(inspect.main, ["clips", *words(tiny, "--step", "5", "--out", str(page), *SEGMENTS)]) == DONE
    text = page.read_text(encoding="utf-8")
    assert f"Primary: {IN_WORDS.format(4)}; auxiliary: {IN_WORDS.format(6)}." in text and text.count("<img src=") == 20


def test_a_run_cut_between_two_steps_goes_on_to_the_same_bits(tiny: Path, trained: Path, tmp_path: Path) -> None:
    fixed = words(tiny, *SEGMENTS, f"run.storage_path={tmp_path}", "train.steps=4", "train.checkpoint_every=2")
    assert run(train.main, [*fixed, "--max-steps", "2"]) == DONE
    assert run(train.main, fixed) == DONE
    weights = [folder / "checkpoint_000004" / "model.safetensors" for folder in (trained, tmp_path / "tiny")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_files_are_asked_by_the_segments_of_the_run(trained: Path, tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny / "manifest.parquet")
    row = int(manifest.find_usable_rows("test")[0])
    file = shutil.copy(manifest.locate(row), tmp_path / "a.mp4")
    assert run(predict.main, [str(trained), str(file), "--out", str(tmp_path / "scores.parquet")]) == DONE
    (mine,) = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    listed = {one["id"]: one for one in pq.read_table(trained / "predictions.parquet").to_pylist()}
    theirs = listed[manifest.table["id"][row].as_py()]
    for name in ("primary", "auxiliary", "mean"):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5)


def test_the_report_and_its_command_have_the_segments(trained: Path, tmp_path: Path) -> None:
    one = read_run_record(trained)
    told = dict(build_setting_table(group_runs([one])))
    assert told["Primary's clip"] == [f"{IN_WORDS.format(4)}, 32 × 32 px"]
    assert told["Auxiliary's clip"] == [f"{IN_WORDS.format(6)}, 32 × 32 px"]
    window = replace(one, config={**one.config, "primary.clip.sampling": "window", "primary.clip.fps": 8.0})
    more = replace(one, config={**one.config, "primary.clip.frames": 8})
    assert [group.label for group in group_runs([one, more])] == ["primary.clip.frames=4", "primary.clip.frames=8"]
    assert [group.label for group in group_runs([one, window])] == [
        "primary.clip.sampling=segments", "primary.clip.sampling=window primary.clip.fps=8"]  # fmt: skip
    of_a_study = replace(one, facts={**one.facts, "command": ""})
    words = shlex.split(command_of(of_a_study))
    assert words[:3] == ["python", "-m", "jobs.train"] and "primary.clip.fps=null" in words
    assert load_config(overrides=words[3:]) == load_config(trained / "config.yaml")


def test_a_run_recorded_before_there_were_segments_is_continued(tiny: Path, tmp_path: Path) -> None:
    """Its config.yaml has no ``sampling``; its fingerprint is today's (see ``test_config``)."""
    fixed = words(tiny, f"run.storage_path={tmp_path}", "train.steps=4", "train.checkpoint_every=2")
    assert run(train.main, [*fixed, "--max-steps", "2"]) == DONE
    folder = tmp_path / "tiny"
    tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    for student in ("primary", "auxiliary"):
        assert tree[student]["clip"].pop("sampling") == "window"
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    (folder / "facts.json").write_text(json.dumps({**facts, "config_digest": compute_config_digest(folder)}), encoding="utf-8")
    assert run(train.main, fixed) == DONE
    assert [line["step"] for line in read_metrics(folder)] == [2, 4]
    assert run(train.main, [*fixed, "primary.clip.sampling=segments"]) == USER_ERROR


def test_a_study_or_search_of_rates_that_segments_do_not_have_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one of their number is what a study of rates is."""
    spread = words(tiny, "primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", f"run.storage_path={tmp_path}")
    assert run(ablate.main, ["frame_rate", "--dry-run", *spread]) == USER_ERROR
    text = capsys.readouterr().err
    assert "clips of sampling=segments have no rate: study primary.clip.frames" in text
    plain = tmp_path / "plain.yaml"
    plain.write_text("question: q\ngrid: {auxiliary.clip.fps: [4, 8]}\n", encoding="utf-8")
    assert run(ablate.main, [str(plain), "--dry-run", *spread]) == USER_ERROR
    assert "auxiliary.clip: clips of sampling=segments have no fps" in capsys.readouterr().err
    manifest = read_manifest(tiny / "manifest.parquet")
    write_labels(draw_labels(manifest, "4/class", 0, DrawOptions(hold_out=0.25)), manifest, tmp_path / "l.parquet")
    space = tmp_path / "space.yaml"
    space.write_text("question: q\nspace: {primary.clip.fps: {low: 2.0, high: 8.0}}\n", encoding="utf-8")
    searched = ["--space", str(space), "--trials", "2", f"data.labels={tmp_path}/l.parquet"]
    assert run(search.main, [*searched, *spread]) == USER_ERROR
    assert "primary.clip: clips of sampling=segments have no fps" in capsys.readouterr().err
    assert run(ablate.main, ["frames", "--dry-run", *spread]) == DONE
    assert capsys.readouterr().out.count("x0.5") >= 5 and len(read_study(ablate.STUDIES / "frames.yaml").cells) == 9
    assert not list(tmp_path.glob("*/*/metrics.jsonl"))


def test_decoding_of_segments_is_measured(tiny: Path) -> None:
    """Every way of the benchmark takes one student's segments beside the other's window."""
    found = bench_decode(load_config(tiny / "tiny.yaml", SEGMENTS[:1]), repeats=1, max_videos=2)
    assert found["clips"] == f"{IN_WORDS.format(4)} and 4 frames at 16 fps (0.25 s)"
    assert found["videos"] == 2 and all(value > 0 for value in found["milliseconds_per_video"].values())
