"""What must not become a prediction, and commands that must not disturb each other. Nothing is trained here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.files.folder_lock import FolderInUse
from pipeline.prediction import prediction_run, timeline
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import NOT_FINITE, summarize_views
from pipeline.prediction.prediction_parts import Parts
from pipeline.prediction.prediction_run import PredictionRun
from pipeline.prediction.prediction_tables import make_row
from pipeline.prediction.timeline import Windows, predict_timelines

VIDEO = InputVideo("a.mp4", "a.mp4")
NAN = float("nan")


def make_views(primary: list[float], auxiliary: list[float], row: int = 0) -> dict[str, Any]:
    return {"video": np.array([row]), "reason": np.array([""], dtype=object),
            "primary": np.array([primary]), "auxiliary": np.array([auxiliary])}  # fmt: skip


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_scores_that_are_not_finite_are_no_prediction(average: str) -> None:
    prediction = summarize_views(VIDEO, make_views([NAN, NAN], [0.0, -1.0]), average)
    row = make_row(prediction, ["a", "b"], 1)
    assert (row["status"], row["class"], row["probability"], row["mean"]) == (NOT_FINITE, None, None, None)
    assert "the scores of the primary student are not finite" in row["reason"]
    assert summarize_views(VIDEO, make_views([0.5, 0.5], [0.0, 1.0]), average).status == "ok"


def test_a_timeline_has_no_segment_where_the_scores_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two videos has one window that was scored, and one that was not."""
    names = ("status", "reason", "start", "end", "duration")
    files = pa.table(dict(zip(names, (["ok"] * 2, [""] * 2, [0.0] * 2, [2.0, 4.0], [2.0, 4.0]), strict=True)))
    monkeypatch.setattr(timeline, "make_manifest", lambda *_: SimpleNamespace(table=files))
    monkeypatch.setattr(timeline, "_make_window_manifest", lambda *_: None)
    monkeypatch.setattr(timeline, "replace", lambda source, **_: source)
    good, bad = [0.1, 0.9], [NAN, NAN]
    scored = [make_views(bad, good, 0), make_views(good, good, 1), make_views(bad, bad, 2)]
    source: Any = SimpleNamespace(manifest=SimpleNamespace(classes=("a", "b")))
    inputs = [VIDEO, InputVideo("b.mp4", "b.mp4")]
    first, second = predict_timelines(source, inputs, Windows(2, 2), "probabilities", lambda *_: scored)
    assert [(row["status"], row["class"], row["segment"]) for row in first] == [(NOT_FINITE, None, None)]
    assert [(row["status"], row["class"], row["start"], row["end"]) for row in second] == [("ok", "b", 0, 2)]
    assert "primary and the auxiliary student are not finite" in str(second[0]["reason"])


def test_parts_of_a_file_whose_name_is_a_pattern_are_deleted_and_no_others(tmp_path: Path) -> None:
    theirs = Parts(tmp_path / "scores1.parquet", "e" * 16)
    for parts in (theirs, mine := Parts(tmp_path / "scores[1].parquet", "f" * 16)):
        parts.folder.mkdir()
        parts.write(0, pa.table({"a": [1]}))
    mine.delete()
    assert [path.name for path in tmp_path.iterdir()] == [theirs.folder.name]


def test_another_command_with_the_same_output_file_is_refused(tmp_path: Path) -> None:
    """It would delete the parts of the first."""
    first, second = (Parts(tmp_path / "scores.parquet", letter * 16) for letter in "ef")
    with first.locked():
        first.write(0, pa.table({"a": [1]}))
        with pytest.raises(FolderInUse, match=r"scores\.parquet is being written.*choose another --out"), second.locked():
            raise AssertionError("both have it")
        assert not second.folder.exists()
    with second.locked():
        second.delete()
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_file_keep_their_own_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their name is the same, whether they are predicted now or were by a command that was killed after the first chunk."""
    inputs = [InputVideo("a.mp4", "a.mp4", start=float(second), end=second + 1.0) for second in range(3)]
    base = dict.fromkeys(timeline.SEGMENT_SCHEMA.names)

    def predict(source: object, videos: list[InputVideo], *_: object) -> Any:
        for video in videos:
            yield [{**base, "file": video.name, "start": video.start, "segment": 0, "status": "ok", "class": "a"}]

    monkeypatch.setattr(prediction_run, "predict_timelines", predict)
    monkeypatch.setattr(prediction_run, "choose_scorer", lambda *_: None)
    monkeypatch.setattr(prediction_run, "CHUNK", 16)
    source: Any = SimpleNamespace(manifest=SimpleNamespace(classes=("a",)))
    config: Any = SimpleNamespace(evaluation=SimpleNamespace(average="probabilities", model_dump=lambda mode: {}))
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(PredictionRun, "compute_fingerprint", lambda run: "f" * 16)
    run = PredictionRun(source, config, tmp_path, inputs, 1, None, out, Windows(1, 1))
    shown: dict[int, Any] = {}

    def stop_after_two(index: int, rows: Any) -> None:
        if index == 2:
            raise KeyboardInterrupt
        shown[index] = rows[0]["start"]

    with pytest.raises(KeyboardInterrupt):
        run.run(stop_after_two)
    assert shown == {0: 0.0, 1: 1.0}
    shown.clear()
    run.run(lambda index, rows: shown.update({index: rows[0]["start"]}))
    assert shown == {0: 0.0, 1: 1.0, 2: 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
