"""Counts of pseudo-labels by hand, against training's own monitors, and the command on real runs, finished and under way."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import label_quality, prepare, train
from jobs.command import run
from pipeline.analysis.comparison import group_runs
from pipeline.analysis.label_quality import (
    SavedScores,
    compare_sources,
    count_labels,
    find_labeler,
    join_scores,
    read_saved_scores,
    split_training_time,
)
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.config import STUDENTS, Config
from pipeline.manifest.schema import OTHER_CLASS, read_manifest
from pipeline.methods import build_method
from pipeline.methods.parts.inputs import Setup
from pipeline.methods.parts.pseudo_labels import PseudoLabels
from pipeline.report.report import write_report
from pipeline.report.sections import label_tables
from pipeline.report.sections.label_section import build_label_sections, read_own_thresholds
from pipeline.run_folder.contents import list_score_files, read_metrics
from tests.methods.traces import small_config
from tests.study_folders import write_scores

pytestmark = pytest.mark.usefixtures("undrawn")

LABELERS = ("primary", "auxiliary", "mean")


def said_of(rows: list[tuple[int, int, int, int, float, int, float]], num_classes: int = 3) -> SavedScores:
    """Rows of step, video, true class, and class and confidence of primary and auxiliary; the mean is as the primary."""
    step, video, label, first, sure, second, surer = (np.array(column) for column in zip(*rows, strict=True))
    classes = {"primary": first, "auxiliary": second, "mean": first}
    confidence = {"primary": sure, "auxiliary": surer, "mean": sure}
    return SavedScores(step, video, label, classes, {name: c.astype(np.float32) for name, c in confidence.items()}, num_classes)


BY_HAND = [
    (1, 10, 0, 0, 0.90, 0, 0.95),  # both right
    (1, 11, 1, 0, 0.60, 1, 0.80),  # the auxiliary knows better
    (2, 12, 2, 2, 0.80, 1, 0.85),  # the primary knows better
    (2, 13, -1, 1, 0.99, 1, 0.55),  # nobody knows
]


def test_counts_by_hand() -> None:
    said = said_of(BY_HAND)
    cross = count_labels(said, "primary", "cross", [0.5, 0.8, 0.9])
    assert cross.clips.tolist() == [1, 1, 1, 0, 1]
    assert cross.kept.sum(axis=0).tolist() == [4, 3, 1]  # 0.80 reaches 0.8
    assert cross.compute_coverage() == pytest.approx([1, 0.75, 0.25])
    assert cross.compute_accuracy() == pytest.approx([2 / 3, 2 / 3, 1])  # the clip of unknown class counts for coverage only
    assert cross.compute_differing_share() == pytest.approx([2 / 3, 2 / 3, 0])
    assert cross.compute_differing_accuracy() == pytest.approx([0.5, 0.5, np.nan], nan_ok=True)
    assert cross.right[:, 1].tolist() == [1, 1, 0, 0, 0]
    assert cross.compute_other_share().tolist() == [0, 0, 0] and np.isnan(cross.compute_other_coverage()).all()
    own = count_labels(said, "primary", "self", [0.5, 0.8])
    assert own.compute_accuracy() == pytest.approx([2 / 3, 1]) and own.compute_differing_share().tolist() == [0, 0]


def test_clips_of_none_of_the_classes_by_hand() -> None:
    """They take labels from the classes, and are neither right nor of unknown class."""
    others = [(2, 14, OTHER_CLASS, 2, 0.7, 1, 0.96), (2, 15, OTHER_CLASS, 2, 0.9, 2, 0.6)]
    said = said_of([*BY_HAND, *others])
    cross = count_labels(said, "primary", "cross", [0.5, 0.8])
    assert cross.clips.tolist() == [1, 1, 1, 2, 1]
    assert cross.compute_other_share() == pytest.approx([2 / 5, 1 / 4]) and cross.compute_other_coverage().tolist() == [1, 0.5]
    before = count_labels(said_of(BY_HAND), "primary", "cross", [0.5, 0.8])
    for name in ("accuracy", "differing_share", "differing_accuracy"):  # are of clips of the classes
        assert getattr(cross, f"compute_{name}")().tolist() == getattr(before, f"compute_{name}")().tolist()
    limits = dict.fromkeys(LABELERS, 0.8)
    text = label_tables.describe_comparison(compare_sources(said, "primary", limits))
    assert text.endswith(" 25.0 % of the kept labels are of videos that show none of the classes.")
    table = label_tables.build_thresholds_table(said, limits)
    assert table.columns[-2:] == ("on none %", "of none kept %") and len(table.numeric) == len(table.columns)
    row = next(row for row in table.rows if [cell.text for cell in row[:3]] == ["primary", "cross (auxiliary)", "0.8"])
    assert [cell.text for cell in row[-2:]] == ["25.0", "50.0"]
    last = label_tables.build_classes_table(said, limits, ["a", "b", "c"]).rows[-1]
    assert [cell.text for cell in last[:5]] == ["none of the classes", "2", "50.0", "0.0", "50.0"]
    rows = list(csv.DictReader(label_tables.format_counts_csv(said, limits, ["a", "b", "c"]).splitlines()))
    wanted = {"first_step": "1", "last_step": "2", "learner": "primary", "source": "cross", "threshold": "0.8"}
    found = {row["class"]: row for row in rows if wanted.items() <= row.items()}
    assert list(found) == ["all", "a", "b", "c", "none of the classes"]
    assert [(row["kept"], row["known"], row["right"]) for row in list(found.values())[::4]] == [
        ("4", "3", "2"),
        ("1", "0", "0"),
    ]
    assert "none of the classes" not in label_tables.format_counts_csv(said_of(BY_HAND), limits, ["a", "b", "c"])


def test_a_comparison_by_hand() -> None:
    one = compare_sources(said_of(BY_HAND), "primary", dict.fromkeys(LABELERS, 0.8))
    assert (one.accuracy["cross"], one.accuracy["self"]) == (pytest.approx(2 / 3), 1.0)
    assert one.self_at_equal_coverage == pytest.approx(2 / 3)  # its three surest of known class, as many as cross keeps
    assert (one.differing_share, one.differing_accuracy) == (pytest.approx(2 / 3), 0.5)
    text = label_tables.describe_comparison(one)
    assert text.startswith("At 0.8 the auxiliary labels 75.0 % of the clips, 66.7 % of them right; the primary’s own labels")


def test_each_labeler_has_its_own_threshold(make_run: Any) -> None:
    """``method.labels.primary_threshold``: that of the labels which the primary gives."""
    words = ("method.confidence_threshold=0.6", "method.labels.primary_threshold=0.9", "method.labels.auxiliary_threshold=0.7")
    own = read_own_thresholds(read_run_record(make_run(overrides=words)))
    assert own == {"primary": 0.9, "auxiliary": 0.7, "mean": 0.6}
    said = said_of(BY_HAND)
    one = compare_sources(said, "primary", own)
    kept = {"cross": 3 / 4, "self": 2 / 4, "mean": 1.0}  # of the confidences of auxiliary, primary, mean
    assert one.coverage == pytest.approx(kept)
    assert label_tables.describe_comparison(one).startswith("At 0.7 the auxiliary labels 75.0 % of the clips")
    assert "the primary’s own labels at 0.9 would be 50.0 %" in label_tables.describe_comparison(one)
    table = label_tables.build_classes_table(said, own, ["a", "b", "c"])
    assert "At 0.9 (primary), 0.7 (auxiliary), 0.6 (mean)" in table.caption
    assert [cell.text for cell in table.rows[2][2::2]] == ["0.0", "100.0", "100.0"]
    rows = csv.DictReader(label_tables.format_counts_csv(said, own, ["a", "b", "c"]).splitlines())
    in_windows = [row for row in rows if row["class"] == "a" and row["first_step"] == row["last_step"]]
    assert {row["labeler"]: float(row["threshold"]) for row in in_windows} == own
    assert (
        len(in_windows) == 2 * 2 * len(said.sources) == 2 * 2 * 3
    )  # of two steps and two learners, at the labeler's own threshold alone


def test_a_file_labels_beside_the_students() -> None:
    """Its labels teach both students alike; where it says nothing of a video its confidence is 0."""
    students = said_of(BY_HAND)
    classes = students.classes | {"file": np.array([0, 1, 0, 2])}
    confidence = students.confidence | {"file": np.array([0.9, 0.7, 0.9, 0.0], np.float32)}
    said = SavedScores(students.steps, students.videos, students.labels, classes, confidence, 3)
    assert said.sources == ("cross", "self", "mean", "file") and students.sources == ("cross", "self", "mean")
    counts = count_labels(said, "primary", "file", [0.5, 0.8])
    assert counts.compute_coverage() == pytest.approx([3 / 4, 2 / 4])
    assert counts.compute_accuracy() == pytest.approx([2 / 3, 1 / 2])
    assert counts.compute_differing_share() == pytest.approx([2 / 3, 1 / 2])  # the primary itself says 0, 0, 2
    limits = {**dict.fromkeys(LABELERS, 0.8), "file": 0.6}
    text = label_tables.describe_comparison(compare_sources(said, "auxiliary", limits))
    assert text.endswith(" At 0.6 the file labels 75.0 % of the clips, 66.7 % of them right.")
    table = label_tables.build_classes_table(said, limits, ["a", "b", "c"])
    assert table.columns[-2:] == ("file: kept %", "file: right %") and "0.6 (file)" in table.caption
    assert [cell.text for cell in table.rows[0][-2:]] == ["100.0", "100.0"]
    by = {row[1].text for row in label_tables.build_thresholds_table(said, limits).rows}
    assert by == {"cross (primary)", "cross (auxiliary)", "self (primary)", "self (auxiliary)", "mean", "file"}
    assert join_scores([said, students]).sources == students.sources
    lines = [curve.group for _, curves in label_tables.build_panels(said, "primary", limits) for curve in curves]
    assert max(lines) == 3


def test_of_many_settings_the_baseline_and_the_best_are_shown_and_that_is_said(make_run: Any) -> None:
    folders = []
    for weight in range(6):
        words = (f"method.contrast.weight={weight}", f"run.name=weight-{weight}")
        folders.append(make_run(margin=float(weight), overrides=words))
        scores = {name: torch.full((20, 4), 0.25) for name in STUDENTS}
        write_scores(folders[-1], torch.zeros(20, dtype=torch.int64), scores)
    groups = group_runs([read_run_record(folder) for folder in folders])
    found = build_label_sections(groups, groups[0])
    assert [one.title for one in found.shown] == [f"contrast.weight={weight}" for weight in (0, 3, 4, 5)]
    assert found.note.startswith("4 of the 6 settings that saved scores: the baseline,")
    html = write_report(folders, baseline={"method.contrast.weight": 0}).path.read_text(encoding="utf-8")
    assert found.note in html
    assert build_label_sections(groups[:4], groups[0]).note == ""


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 5))
def test_counts_agree_with_counting_one_by_one(seed: int, clips: int, num_classes: int) -> None:
    generator = np.random.default_rng(seed)
    ints = {key: generator.integers(-2 * (key == "label"), num_classes, clips) for key in ("label", *LABELERS)}
    sure = {name: generator.choice([0.5, 0.57, 0.9, 0.99, 0.3], clips).astype(np.float32) for name in LABELERS}
    classes = {name: ints[name] for name in LABELERS}
    said = SavedScores(np.arange(clips), np.arange(clips), ints["label"], classes, sure, num_classes)
    thresholds = [0.3, 0.5, 0.57, 0.99]
    for learner in STUDENTS:
        for source in said.sources:
            found, who = count_labels(said, learner, source, thresholds), find_labeler(learner, source)
            for place, threshold in enumerate(thresholds):
                for row, true in enumerate([*range(num_classes), -2, -1]):
                    kept = [i for i in range(clips) if ints["label"][i] == true and sure[who][i] >= np.float32(threshold)]
                    news = [i for i in kept if ints[who][i] != ints[learner][i]]
                    right = sum(ints[who][i] == true for i in kept), sum(ints[who][i] == true for i in news)
                    assert (found.kept[row, place], found.differing[row, place]) == (len(kept), len(news))
                    assert (found.right[row, place], found.differing_right[row, place]) == (right if true >= 0 else (0, 0))


def test_windows_part_the_time_and_lose_nothing() -> None:
    said = said_of([(step, 0, 0, 0, 0.9, 0, 0.9) for step in range(3, 38)])
    parts = split_training_time(said)
    assert len(parts) == 10 and (parts[0][0], parts[-1][1]) == (3, 37)
    assert sum(len(part.steps) for *_, part in parts) == 35
    assert len(split_training_time(said.select(said.steps < 5))) == 2


def test_the_mean_is_the_one_that_training_labels_with(tmp_path: Path) -> None:
    """Against ``methods.labels`` itself, through a file as training writes it."""
    config: Config = small_config(method={"labels": {"source": "mean"}, "confidence_threshold": 0.4})
    students = build_method(config, 4).students
    generator = torch.Generator().manual_seed(0)
    scores = {name: (3 * torch.randn(50, 4, generator=generator)).softmax(dim=1) for name in STUDENTS}
    hidden = torch.randint(-1, 4, (50,), generator=generator)
    labels = PseudoLabels(students, Setup(config, 4), source="mean")
    wanted = labels.apply_thresholds(scores, torch.arange(50), torch.zeros(1, dtype=torch.int64))["mean"]

    write_scores(tmp_path, hidden, scores)
    said, problems = read_saved_scores(tmp_path)
    assert said is not None and problems == []
    assert said.classes["mean"].tolist() == wanted.classes.tolist()
    assert (said.confidence["mean"] >= np.float32(0.4)).tolist() == wanted.weights.bool().tolist()


# ----------------------------------------------------------------------------------------------------------- real runs

WORDS = ["train.save_scores_every=1", "train.log_every=1", "method.confidence_threshold=0.27", "train.steps=8"]


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("finished")
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={parent}", *WORDS]) == 0
    return parent / "tiny"


def test_the_command_writes_a_table_a_csv_and_a_page(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(label_quality.main, [str(finished)]) == 0
    out = capsys.readouterr().out
    assert "32 weak views of" in out and "in 8 saved steps (1 to 8)" in out and "cross (auxiliary)" in out
    rows = list(csv.DictReader((finished / "label_quality.csv").read_text(encoding="utf-8").splitlines()))
    at_own = {
        (row["learner"], row["source"]): row for row in rows
        if row["threshold"] == "0.27" and row["class"] == "all" and (row["first_step"], row["last_step"]) == ("1", "8")
    }  # fmt: skip
    lines = read_metrics(finished)
    for learner, who in (("auxiliary", "primary"), ("primary", "auxiliary")):
        cross = at_own[learner, "cross"]
        mask_rate = np.mean([line[f"mask_rate/{who}_to_{learner}"] for line in lines])
        assert float(cross["coverage"]) == pytest.approx(mask_rate, abs=1e-5)
        assert cross["kept"] == at_own[who, "self"]["kept"] and cross["right"] == at_own[who, "self"]["right"]
    whole = [row for row in rows if row["class"] == "all" and (row["first_step"], row["last_step"]) == ("1", "8")]
    assert len({row["threshold"] for row in whole}) == 51 and len(whole) == 6 * 51
    by_class = [row for row in rows if row["class"] not in ("all",) and row["learner"] == "primary" and row["source"] == "mean"]
    assert sum(int(row["videos"]) for row in by_class if row["threshold"] == "0.5") == 32
    page = (finished / "label_quality.html").read_text(encoding="utf-8")
    assert "Primary as the learner" in page and 'href="http' not in page
    assert 6 <= page.count("<svg") <= 10  # accuracies of fewer than 10 labels are not drawn


def test_unlabeled_videos_of_other_classes_are_counted(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the list to the page: the last class of the rendered videos is none of the run's, and a half of its pool."""
    rows = pq.read_table(tiny / "manifest.parquet").select(["uri", "class", "split"]).to_pylist()
    other = rows[-1]["class"]
    lines = [f"{row['uri']},{row['class']},{'unlabeled' if row['class'] == other else row['split']}" for row in rows]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]) + "\n", encoding="utf-8")
    root = read_manifest(tiny / "manifest.parquet").root
    words = ["list", str(tmp_path / "list.csv"), str(tmp_path), "--root", root, "--labeled", "4/class", "--group", "none"]
    assert run(prepare.main, words) == 2
    assert f"say --other-classes:\n  - {other}, for example " in capsys.readouterr().err
    assert run(prepare.main, [*words, "--other-classes"]) == 0
    out = capsys.readouterr().out
    assert f"note: videos of split unlabeled that show none of the classes: 8 ({other})" in out
    assert re.search(r"^none of these +0 +8 +0 +0$", out, re.MULTILINE)
    manifest = read_manifest(tmp_path / "manifest.parquet")
    found = [(row["class"], row["label"]) for row in manifest.table.to_pylist() if row["split"] == "unlabeled"]
    assert len(manifest.classes) == 3 and found == [(other, OTHER_CLASS)] * 8

    here = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", f"data.manifest={tmp_path}/manifest.parquet"]
    assert run(train.main, [*here, *WORDS, "method.confidence_threshold=0.36"]) == 0
    assert run(label_quality.main, [str(tmp_path / "tiny")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"is known for 100 % of them, and \d+ % show none of the classes\.", out) and "of none kept %" in out
    rows = list(csv.DictReader((tmp_path / "tiny" / "label_quality.csv").read_text(encoding="utf-8").splitlines()))
    at_own = {
        (int(row["first_step"]), row["learner"], row["class"]): int(row["kept"]) for row in rows
        if row["source"] == "cross" and row["threshold"] == "0.36" and row["first_step"] == row["last_step"]
    }  # fmt: skip
    shares = {}
    for line in read_metrics(tmp_path / "tiny"):
        for learner, who in (("auxiliary", "primary"), ("primary", "auxiliary")):
            kept = at_own[line["step"], learner, "all"]
            others = at_own.get((line["step"], learner, "none of the classes"), 0)
            shares[line["step"], learner] = others / kept if kept else 0
            assert line.get(f"pseudo_label_other/{who}_to_{learner}", 0) == pytest.approx(shares[line["step"], learner])
    assert len(set(shares.values())) > 2


def test_labels_of_a_file_are_counted_as_training_counted_them(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Soft labels, whose probabilities are kept in 16 bits: a confidence of 0.8 is still one of 0.8."""
    manifest = read_manifest(tiny / "manifest.parquet")
    generator = np.random.default_rng(0)
    ids = manifest.table["id"].to_pylist()
    table = generator.dirichlet(np.ones(len(manifest.classes)), len(ids))
    table[::3] = [0.8, *[0.2 / (len(manifest.classes) - 1)] * (len(manifest.classes) - 1)]
    columns = {name: table[:, index].astype(np.float32) for index, name in enumerate(manifest.classes)}
    kept = [index for index in range(len(ids)) if index % 4]  # of every fourth it says nothing
    pq.write_table(pa.table({"id": ids, **columns}).take(kept), tmp_path / "labels.parquet")
    words = [f"method.file_label.file={tmp_path / 'labels.parquet'}", "method.file_label.weight=1", "method.file_label.start=2",
             "method.file_label.hard=false", "method.file_label.threshold=0.8"]  # fmt: skip
    here = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *WORDS]
    assert run(train.main, [*here, *words]) == 0
    capsys.readouterr()
    assert run(label_quality.main, [str(tmp_path / "tiny")]) == 0
    assert " At 0.8 the file labels " in capsys.readouterr().out
    rows = csv.DictReader((tmp_path / "tiny" / "label_quality.csv").read_text(encoding="utf-8").splitlines())
    at_own = {
        int(row["first_step"]): row for row in rows
        if row["source"] == "file" and row["learner"] == "primary" and row["threshold"] == "0.8" and row["class"] == "all"
        and row["first_step"] == row["last_step"]
    }  # fmt: skip
    lines = {line["step"]: line for line in read_metrics(tmp_path / "tiny") if "mask_rate/file_to_both" in line}
    assert sorted(lines) == [3, 4, 5, 6, 7, 8]
    for step, line in lines.items():
        assert float(at_own[step]["coverage"]) == pytest.approx(line["mask_rate/file_to_both"], abs=1e-5)
    assert sum(int(row["kept"]) for row in at_own.values()) > 0
    assert "labeled by" in (tmp_path / "tiny" / "label_quality.html").read_text(encoding="utf-8")


def test_the_report_has_the_section(finished: Path) -> None:
    html = write_report([finished]).path.read_text(encoding="utf-8")
    assert "Quality of pseudo-labels" in html and re.search(r"At 0\.27 the auxiliary labels [\d.]+ % of the clips", html)


def test_a_damaged_file_and_a_run_under_way_still_give_what_there_is(finished: Path, tmp_path: Path, capsys: Any) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    first, second = list_score_files(half)
    second.write_bytes(second.read_bytes()[:200])
    (half / "evaluation.json").unlink()
    assert run(label_quality.main, [str(half)]) == 0
    out = capsys.readouterr().out
    assert "in 4 saved steps (1 to 4)" in out and f"scores/{second.name} cannot be read" in out
    assert pq.read_table(first).num_rows == 16


def test_runs_without_scores_say_why(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words, why in (
        ("nothing", ["train.save_scores_every=0"], "train.save_scores_every is 0; train it again under another run.name"),
        ("labels", ["method.name=supervised"], "its method sees no unlabeled video"),
        ("early", ["method.supervised_steps=50"], "it stands at step 2, and unlabeled videos count from step 51 on"),
    ):
        here = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", f"run.name={name}"]
        assert run(train.main, [*here, "train.steps=2", "train.warmup_steps=1", *words]) == 0
        assert run(label_quality.main, [str(tmp_path / name)]) == 2
        assert why in capsys.readouterr().err
        assert not (tmp_path / name / "label_quality.csv").exists()
