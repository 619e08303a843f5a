"""The evaluation of one run on the report's page: figures, temperatures that fit, hardest videos, an order of many classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from pipeline.analysis.records.run_reader import read_run_record
from pipeline.analysis.records.run_record import Predictions
from pipeline.evaluation.calibration import apply_temperature
from pipeline.report.plots.confusion_order import list_cells, order_by_confusion
from pipeline.report.report import write_report
from pipeline.report.sections.evaluation_section import build_evaluation_section, choose_hardest, choose_most_confused

PROTOCOL = {"clips": 10, "crops": 3, "average": "probabilities", "checkpoint": "last", "split": "test", "precision": "fp32"}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def calibrated(make_run: Any) -> Path:
    """A run with temperatures for all but the auxiliary, and a video that could not be decoded."""
    folder: Path = make_run()
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    lost = {"undecodable": {"videos/<lost>.mp4": "moov atom not found"}, "labeled_without_scores": 1}
    write_json(folder / "evaluation.json", evaluation | {"protocol": PROTOCOL, "weights_sha256": "ab"} | lost)
    students = {name: {"temperature": value} for name, value in (("primary", 2.0), ("auxiliary", None), ("mean", 0.5))}
    held_out = {**PROTOCOL, "split": "validation"}
    own = {"step": 1000, "protocol": held_out, "weights_sha256": "ab", "videos": 120}
    write_json(folder / "calibration.json", own | students)
    return folder


def test_temperatures_change_the_figures_of_test_videos(calibrated: Path) -> None:
    run = read_run_record(calibrated)
    section = build_evaluation_section(run)
    assert section is not None and section.calibration is not None and run.predictions is not None
    assert [row[0].text for row in section.calibration.rows] == ["primary", "mean"]
    scores = run.predictions.scores["primary"]
    for values, cell in ((scores, 2), (apply_temperature(scores, 2.0), 3)):
        expected = log_loss(run.predictions.labels, values / values.sum(axis=1, keepdims=True), labels=range(4))
        assert section.calibration.rows[0][cell].sort == pytest.approx(expected, abs=1e-5)
    assert "on 120 held-out videos" in section.note
    assert section.protocol == "10 clips x 3 crops, mean of probabilities, last checkpoint (step 1000), test split"
    assert section.without_scores == [("videos/<lost>.mp4", "moov atom not found")]
    assert len(section.hardest) == len(section.most_confused) == 4
    assert not {one.id for one in section.hardest} & {one.id for one in section.most_confused}
    html = write_report([calibrated]).path.read_text(encoding="utf-8")
    assert "videos/&lt;lost&gt;.mp4" in html and "Dashed, in the second color: after temperature scaling." in html
    assert "Top-1 in percent. Protocol: 10 clips x 3 crops, mean of probabilities, last checkpoint, test split." in html


@pytest.mark.parametrize(
    "change",
    [
        {"step": 500},
        {"protocol": {**PROTOCOL, "clips": 1}},
        {"protocol": None},
        {"weights_sha256": "cd"},
        {"weights_sha256": None},
    ],
)
def test_temperatures_of_other_weights_or_protocols_are_not_applied(calibrated: Path, change: dict[str, Any]) -> None:
    path = calibrated / "calibration.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | change)
    section = build_evaluation_section(read_run_record(calibrated))
    assert section is not None and section.calibration is None
    assert "of another checkpoint or protocol, and are not applied" in section.note


def test_hardest_are_the_surest_mistakes_and_most_confused_the_closest_calls() -> None:
    mean = np.array([[0.9, 0.1], [0.1, 0.9], [0.51, 0.49], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.5, 0.5]])
    labels = np.array([1, 1, 0, 0, 1, 1, -1])
    ids = tuple(f"v{index}" for index in range(len(mean)))
    predictions = Predictions(ids, labels, dict.fromkeys(("primary", "auxiliary", "mean"), mean), ("a", "b"))
    assert choose_hardest(predictions) == [0, 3, 2, 5]
    assert choose_most_confused(predictions)[:3] == [2, 5, 4]


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    """Pairs (0, 20), (1, 21), ... are confused with each other, and with nothing else."""
    counts = 8 * np.eye(40, dtype=np.int64)
    for first in range(20):
        counts[first, first + 20] = counts[first + 20, first] = 3
    order = order_by_confusion(counts).tolist()
    assert sorted(order) == list(range(40))
    assert all({order[place] % 20} == {order[place + 1] % 20} for place in range(0, 40, 2))
    cells = json.loads(list_cells(counts, [f"c{index}" for index in range(40)])["cells"])
    assert len(cells) == 80 and [0, 20, 3] in cells
