"""Two models on the same videos: counts by hand, the exact test, classes, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from jobs import compare as command
from pipeline.analysis.paired_models import ModelResults, compare_models, read_results
from pipeline.errors import UserError
from pipeline.manifest.schema import Manifest
from pipeline.report.pages.comparison_page import build_summary_table
from tests.study_folders import SaveRun


def model(name: str, right: str, classes: str = "aabb", start: int = 0) -> ModelResults:
    """``right`` has a + for each recognized video."""
    ids = [f"v{start + index}" for index in range(len(right))]
    return ModelResults(
        name, {video: sign == "+" for video, sign in zip(ids, right, strict=True)}, dict(zip(ids, classes, strict=True))
    )


def test_counts_and_classes_by_hand() -> None:
    pair = compare_models(model("A", "++-+"), model("B", "+--+"))
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (2, 1, 0, 1)
    assert [round(value.mean, 6) for value in (*pair.estimates, pair.difference)] == [75, 50, 25]
    assert [(one.name, one.videos, one.first, one.second, one.gap) for one in pair.classes] == [
        ("a", 2, 100, 50, 50), ("b", 2, 50, 50, 0),
    ]  # fmt: skip


def test_p_is_that_of_the_exact_test_and_the_interval_holds_the_difference() -> None:
    pair = compare_models(model("A", "+" * 12 + "-" * 8, "a" * 20), model("B", "+" * 3 + "-" * 16 + "+", "a" * 20))
    assert (pair.only_first, pair.only_second) == (9, 1)
    assert pair.difference.p == pytest.approx(stats.binomtest(9, 10).pvalue)
    assert pair.difference.low is not None and pair.difference.high is not None
    assert pair.difference.mean == pytest.approx(40)
    assert 0 < pair.difference.low < 40 < pair.difference.high


def test_videos_of_one_model_only_are_said_and_do_not_count() -> None:
    pair = compare_models(model("A", "++++"), model("B", "++--", start=2, classes="bbaa"))
    assert pair.ids == ("v2", "v3")
    assert [note.partition(" were tested only with ")[2] for note in pair.notes] == [
        f"{name} and are ignored here." for name in "AB"
    ]
    assert all(note.startswith("2 videos") for note in pair.notes)


def test_protocols_are_compared_by_what_both_tell_and_without_the_step() -> None:
    clip = {"primary": {"fps": 8, "size": 224}, "auxiliary": {"fps": 16, "size": 224}}
    knobs = {"clips": 10, "crops": 3, "average": "probabilities", "checkpoint": "last", "split": "test", **clip}
    newer = {"step": 1000, "protocol": knobs}
    older = {"step": 500, "clips": 10, "crops": 3, "split": "test", "primary": {"top1": 0.5}}

    def compare(one: dict[str, Any], other: dict[str, Any]) -> str:
        pair = compare_models(*(replace(model(name, "++-+"), evaluation=own) for name, own in (("A", one), ("B", other))))
        assert pair.notes == () and build_summary_table(pair).caption.endswith(pair.protocol or "over seeds.")
        return pair.protocol

    phrase = "10 clips x 3 crops, mean of probabilities, last checkpoint"
    both = f"Protocol of both: {phrase}, 8 fps and 16 fps, 224 px, test split."
    assert compare(newer, {"step": 2000, "protocol": knobs}) == both
    assert compare(newer, older) == f"Protocol of both: {phrase}, test split."
    fewer = {"step": 1000, "protocol": knobs | {"clips": 5}}
    assert compare(older, fewer) == f"Protocols differ: {phrase}, test split; {phrase.replace('10', '5')}, test split."
    assert "mean of logits" in compare(older, {"protocol": knobs | {"average": "logits"}})
    elsewhere = phrase.replace("last checkpoint", "weights trained elsewhere")
    assert compare(newer | {"step": 0}, older) == f"Protocols differ: {elsewhere}, test split; {phrase}, test split."
    assert compare(newer, {}).endswith("that of B is unknown.") and compare({}, {}) == ""


def test_other_videos_and_other_classes_are_refused() -> None:
    with pytest.raises(UserError, match="no labeled test video in common"):
        compare_models(model("A", "++++"), model("B", "++++", start=9))
    with pytest.raises(UserError, match="2 of 4 videos have different true classes") as error:
        compare_models(model("A", "++++"), model("B", "++++", classes="aaaa"))
    assert "v2: b and a" in str(error.value)


def test_students_of_runs_are_read(make_run: SaveRun, manifest: Manifest) -> None:
    run = make_run()
    mean, primary = read_results(str(run)), read_results(f"{run}:primary")
    assert (mean.name, primary.name) == ("actnetformer-0:mean", "actnetformer-0:primary")
    assert set(mean.labels.values()) <= set(manifest.classes)
    with pytest.raises(UserError, match="did you mean primary"):
        read_results(f"{run}:primry")
    with pytest.raises(UserError, match="does not exist"):
        read_results(f"{run}-1")
    make_run(seed=1)
    with pytest.raises(UserError, match="contains 2 runs"):
        read_results(str(run.parent))
    (run / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"jobs\.evaluate"):
        read_results(str(run))


def test_the_command_prints_both_tables_and_writes_the_page(
    make_run: SaveRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = make_run(), make_run(method="supervised", margin=0.2)
    page = tmp_path / "page.html"
    assert command.main([str(one), str(other), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "difference" in printed and "McNemar" in printed and str(page) in printed
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html and "actnetformer-0:mean against supervised-0:mean" in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    for text in (printed, html):
        assert text.count("Protocol of both: 10 clips x 3 crops, mean of probabilities, last checkpoint, test split.") == 1
    assert printed.count("last checkpoint (step 1000)") == 2 and "What is missing" not in html
