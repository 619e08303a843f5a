"""What the folders of a command line mean, whole, half-written and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.analysis.records.study_reader import read_report_input, read_study_record
from pipeline.report.parts.sentences import describe_best_trial
from pipeline.report.report import write_report
from tests.study_folders import SEARCH, line, search_trials, write_population, write_search, write_study


def test_a_study_names_its_runs_in_the_order_of_its_trials(make_run: Any) -> None:
    folders = [make_run(seed=seed) for seed in (0, 1, 2)]
    lines = [line(number, folders[k].name) for number, k in enumerate((2, 0))]
    study = write_study(folders[0].parent, lines, question="q", baseline={"train.steps": 5})
    given = read_report_input([study, folders[1]])
    assert [run.folder for run in given.runs] == [folders[2], folders[0], folders[1]]
    found = given.find_study(given.runs[0])
    assert found is given.studies[0] and (found.question, found.baseline, found.missing) == ("q", {"train.steps": 5}, ())


def test_what_was_planned_and_not_done_is_said(make_run: Any) -> None:
    run = make_run()
    lines = [line(0, run.name), line(1, "b", "running"), line(2, "c", "waiting"), line(3, "d"),
             {**line(4, "e", "failed"), "message": "no room"}]  # fmt: skip
    found = read_study_record(write_study(run.parent, lines, command="python -m jobs.ablate a"))
    assert found.missing == (
        "2 of 5 trials: 1 under way or cut off, 1 not begun. python -m jobs.ablate a continues it.",
        "Trial 4 failed: no room", "Run folders of complete trials that are not there: 3.")  # fmt: skip


def test_a_run_that_came_to_its_end_is_complete_whatever_an_older_file_says(make_run: Any) -> None:
    """The study runs, or was killed: its file is of its start."""
    done, begun = make_run(seed=0), make_run(seed=1)
    (begun / "evaluation.json").unlink()
    lines = [line(0, done.name, "waiting"), line(1, begun.name, "waiting"), line(2, "c", "waiting")]
    found = read_study_record(write_study(done.parent, lines))
    assert [trial.state for trial in found.trials] == ["complete", "running", "waiting"]
    assert found.trials[0].values["mean"] > 0
    assert found.missing == ("2 of 3 trials: 1 under way or cut off, 1 not begun.",)


def test_what_a_search_planned_and_did_not_do_is_said(tmp_path: Path) -> None:
    study = read_study_record(write_study(tmp_path, search_trials(), trials=40, **SEARCH))
    assert study.is_search and study.counts == {"complete": 18, "pruned": 10, "failed": 1, "running": 1}
    assert f"11 of 40 trials: 1 under way or cut off, 10 not begun. {SEARCH['command']} continues it." in study.missing
    assert [one.label for one in study.objectives] == ["mean top-1, %", "training, s"]


def test_the_last_line_of_a_trial_counts_and_a_half_written_one_waits(tmp_path: Path) -> None:
    study = write_study(tmp_path, [line(4, "four", "running"), line(4, "four")])
    with (study / "trials.jsonl").open("a") as file:
        file.write('{"state": "no number"}\n{"number": 5, "sta')
    found = read_study_record(study)
    assert [(trial.number, trial.state) for trial in found.trials] == [(4, "complete")]
    assert "1 of 4 lines of trials.jsonl: they cannot be read." in found.missing


def test_cells_have_names_where_they_change_different_keys(tmp_path: Path) -> None:
    lines = [line(0, "none_seed-0", **{"views.strong.ops": 0, "run.seed": 0}), line(1, "all_seed-0", **{"run.seed": 0})]
    study = read_study_record(write_study(tmp_path / "a", lines))
    assert study.has_named_cells and [trial.cell for trial in study.trials] == ["none", "all"]
    assert not read_study_record(write_study(tmp_path / "b", lines[:1])).has_named_cells


def test_a_killed_search_is_read_from_its_run_folders(tmp_path: Path, manifest: Any, write_run: Any) -> None:
    """trials.jsonl is as the search before left it, or not there at all."""
    folder = write_search(tmp_path, manifest, write_run)
    (folder / "trial-00003" / "scores.jsonl").write_text('{"step": 4, "mean": 0.25, "seconds": 7.5}\n{"step": 8, "me')
    (folder / "trial-00003" / "evaluation.json").unlink()
    (folder / "trials.jsonl").unlink()
    study = read_study_record(folder)
    assert [trial.number for trial in study.trials] == list(range(12)) and study.counts == {"complete": 11, "running": 1}
    assert "best of 30" not in describe_best_trial(study).lower() and "no trial is complete" not in describe_best_trial(study)
    fourth, wanted = study.trials[3], search_trials()[3]["params"]
    assert fourth.params == wanted and fourth.values == {"mean": 0.25} and fourth.seconds == 7.5


def test_a_population_has_the_knobs_of_its_whole_way(tmp_path: Path) -> None:
    study = read_study_record(write_population(tmp_path / "pbt"))
    spans = [[(part.first, part.last) for part in trial.lineage] for trial in study.trials]
    assert spans == [[], [(0, 100), (100, None)]]


def test_a_killed_population_is_read_from_its_run_folders(tmp_path: Path, manifest: Any, write_run: Any) -> None:
    folder = write_population(tmp_path / "pbt")
    (folder / "trials.jsonl").unlink()
    for name in ("member-00", "member-01"):
        write_run(folder, manifest, overrides=("primary.optimizer.lr=0.2", f"run.name={name}"))
    study = read_study_record(folder)
    assert [(trial.folder and trial.folder.name, trial.state) for trial in study.trials] == [
        ("member-00", "complete"), ("member-01", "pruned"), ("member-01_from-000100", "running")]  # fmt: skip
    assert [len(trial.lineage) for trial in study.trials] == [0, 0, 2]
    assert study.trials[0].params == {"primary.optimizer.lr": 0.2}


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"objectives": 3, "space": 2, "trials": 7}'])
def test_a_damaged_study_file_is_told_not_fatal(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    study = read_study_record(tmp_path)
    assert study.name == tmp_path.name and study.trials == () and study.space == {}
    assert study.missing[0].startswith("study.json")


def test_signatures_are_what_training_warned_of(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a run that the training made, whose threshold keeps no label."""
    words = ["method.confidence_threshold=1", "method.supervised_steps=0", "monitors.patience_steps=4"]
    assert train.main(["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *words]) == 0
    found = read_run_record(tmp_path / "tiny").signatures
    assert [(one.name, one.since, one.until) for one in found if one.rule == "no_labels"] == [
        ("no_labels/auxiliary_to_primary", 2, 12), ("no_labels/primary_to_auxiliary", 2, 12)]  # fmt: skip
    assert capsys.readouterr().out.count("of labels are kept, in every line since step 2") == 2
    html = write_report([tmp_path / "tiny"]).path.read_text(encoding="utf-8")
    assert "<h2>Failure signatures</h2>" in html and "lower method.confidence_threshold" in html


def test_cost_is_of_the_logged_steps(make_run: Any) -> None:
    folder = make_run()
    lines = [json.dumps({"step": step, "seconds/step": 0.5, "clips_per_second": 100}) for step in (10, 20, 40)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run_record(folder)
    assert (run.seconds, run.clips) == (pytest.approx(20), pytest.approx(2000))
    (folder / "metrics.jsonl").write_text('{"step": 10, "seconds/step": 0.5}\n')
    assert (read_run_record(folder).seconds, read_run_record(folder).clips) == (5.0, None)
