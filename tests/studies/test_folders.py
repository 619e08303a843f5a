"""What the folders of a command line mean, whole, half-written and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.studies.folders import read_given, read_study
from pipeline.studies.runs import read_run
from tests.study_folders import search_lines, write_study


def test_a_study_names_its_runs_in_the_order_of_its_trials(tmp_path: Path, make_run: Any) -> None:
    folders = [make_run(seed=seed) for seed in (0, 1, 2)]
    study = folders[0].parent
    lines = [{"number": n, "state": "complete", "params": {}, "values": {}, "seconds": 1, "run_folder": folders[k].name}
             for n, k in enumerate((2, 0))]  # fmt: skip
    write_study(study, lines, kind="ablation", question="q")
    given = read_given([study, folders[1]])
    assert [run.folder for run in given.runs] == [folders[2], folders[0], folders[1]]
    assert given.study_of(given.runs[0]) is given.studies[0] and given.studies[0].question == "q"


def test_the_last_line_of_a_trial_counts_and_a_half_written_one_waits(tmp_path: Path) -> None:
    first = {"number": 4, "state": "running", "params": {"a": 1}, "values": {"mean": None}, "run_folder": "four"}
    study = write_study(tmp_path, [first, {**first, "state": "complete", "values": {"mean": 0.5}}], kind="search")
    with (study / "trials.jsonl").open("a") as file:
        file.write('{"state": "no number"}\n{"number": 5, "sta')
    found = read_study(study)
    (trial,) = found.trials
    assert (trial.number, trial.state, trial.values, trial.folder) == (4, "complete", {"mean": 0.5}, tmp_path / "four")
    assert any("1 of 4 lines of trials.jsonl" in sentence for sentence in found.missing)
    assert any("Run folders of complete trials that are not there: 4." in sentence for sentence in found.missing)


def test_what_was_planned_and_not_done_is_said(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, search_lines(), kind="search", command="python -m jobs.search"))
    assert study.is_search and study.counts == {"complete": 18, "pruned": 10, "failed": 1, "running": 1}
    assert "1 of 30 trials: 1 under way. python -m jobs.search continues it." in study.missing
    assert "Trial 13 failed: worker 0: the loss is not finite" in study.missing


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"objectives": [3], "baseline": 2, "space": []}'])
def test_a_damaged_study_file_is_told_not_fatal(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    study = read_study(tmp_path)
    assert study.name == tmp_path.name and study.baseline is None and study.space == {}
    assert bool(study.missing) == (not content.endswith("[]}"))


@pytest.mark.parametrize("content", ["{", "[1]", '[{"since_step": 3}]'])
def test_damaged_signatures_are_told_not_fatal(make_run: Any, content: str) -> None:
    folder = make_run()
    (folder / "signatures.json").write_text(content)
    run = read_run(folder)
    assert run.signatures == () and any("signatures.json cannot be read" in sentence for sentence in run.missing)
    (folder / "signatures.json").write_text(json.dumps([{"name": "zero mask"}]))
    assert read_run(folder).signatures == ({"name": "zero mask"},)


def test_cost_is_of_the_logged_steps(make_run: Any) -> None:
    folder = make_run()
    lines = [json.dumps({"step": step, "seconds/step": 0.5, "clips_per_second": 100}) for step in (10, 20, 40)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(folder)
    assert (run.seconds, run.clips) == (pytest.approx(20), pytest.approx(2000))
    (folder / "metrics.jsonl").write_text('{"step": 10, "seconds/step": 0.5}\n')
    assert (read_run(folder).seconds, read_run(folder).clips) == (5.0, None)
