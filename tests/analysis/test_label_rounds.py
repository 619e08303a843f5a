from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.label_rounds import compare_with_random, is_rounds, read_curves
from pipeline.analysis.records.study_reader import read_report_input, read_study_record
from pipeline.manifest.schema import Manifest
from pipeline.report.sections.rounds_section import build_rounds_sections, build_rounds_table
from tests.study_folders import SaveRun, line, write_study


def write_rounds(folder: Path, accuracies: dict[tuple[str, int], list[float]], start: tuple[float, ...] = (0.3, 0.3)) -> Path:
    """Of (strategy, seed): accuracies after the first and each later round, of 10 labels more each."""
    lines: list[dict[str, Any]] = []

    def add(strategy: str, seed: int, number: int, value: float) -> None:
        params = {"strategy": strategy, "round": number, "number_of_labels": 10 + 10 * number, "run.seed": seed}
        one = line(len(lines), f"{strategy}_round-{number}_seed-{seed}", **params)
        lines.append({**one, "values": dict.fromkeys(one["values"], value)})

    for seed, value in enumerate(start):
        add("start", seed, 0, value)
    for (strategy, seed), values in accuracies.items():
        for number, value in enumerate(values, start=1):
            add(strategy, seed, number, value)
    return write_study(folder, lines)


def test_labels_needed_are_read_off_the_mean_of_the_seeds(tmp_path: Path) -> None:
    given = {
        ("entropy", 0): [0.5, 0.7], ("entropy", 1): [0.5, 0.9], ("random", 0): [0.4, 0.5], ("random", 1): [0.4, 0.6],
        ("margin", 0): [0.3, 0.3], ("margin", 1): [0.3, 0.3],
    }  # fmt: skip
    study = read_study_record(write_rounds(tmp_path / "rounds", given))
    curves = read_curves(study)
    assert is_rounds(study) and [curve.strategy for curve in curves] == ["random", "entropy", "margin"]
    random, entropy, margin = curves
    assert random.labels == (10, 20, 30) and random.accuracy.tolist() == [[0.3, 0.4, 0.5], [0.3, 0.4, 0.6]]
    assert entropy.find_labels_for(0.55) == pytest.approx(20 + 10 * 0.05 / 0.3)
    assert entropy.find_labels_for(0.3) == 10 and margin.find_labels_for(0.55) is None
    gain = compare_with_random(entropy, curves)
    assert gain is not None and gain.mean == pytest.approx((0.1 + 0.2 + 0.1 + 0.3) / 4) and gain.seeds == 2
    assert compare_with_random(random, curves) is None
    table = build_rounds_table(curves)
    assert [row[0].text for row in table.rows] == ["random", "entropy", "margin"]
    assert [row[-1].text for row in table.rows] == ["30", "22", "–"] and "55.0 % at 30 labels" in table.caption


def test_the_table_tells_the_protocol_of_the_runs(tmp_path: Path, manifest: Manifest, write_run: SaveRun) -> None:
    study = write_rounds(tmp_path / "rounds", {("random", 0): [0.4], ("random", 1): [0.4]})
    write_run(study, manifest)
    (section,) = build_rounds_sections(read_report_input([study]))
    phrase = "10 clips x 3 crops, mean of probabilities, last checkpoint, test split"
    assert section.table.caption.endswith(f"a dash if that was not reached. Protocol: {phrase}.")


def test_a_strategy_counts_up_to_the_round_that_all_its_seeds_have(tmp_path: Path) -> None:
    study = read_study_record(write_rounds(tmp_path / "rounds", {("random", 0): [0.4, 0.5], ("random", 1): [0.4]}))
    (random,) = read_curves(study)
    assert random.labels == (10, 20) and random.seeds == (0, 1)
    one = read_study_record(write_rounds(tmp_path / "one", {("random", 0): [0.4], ("random", 1): [0.4]}, start=(0.3,)))
    assert [curve.seeds for curve in read_curves(one)] == [(0,)]


def test_other_studies_are_no_rounds(tmp_path: Path) -> None:
    assert not is_rounds(read_study_record(write_study(tmp_path / "other", [line(0, "a", **{"method.contrast.weight": 1})])))
