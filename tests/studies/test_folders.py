"""What the folders of a command line mean, whole, half-written and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.studies.folders import read_given, read_study
from pipeline.studies.runs import read_run
from tests.study_folders import search_trials, write_population, write_search, write_study, write_trials


def test_a_study_names_its_runs_in_the_order_of_its_trials(make_run: Any) -> None:
    folders = [make_run(seed=seed) for seed in (0, 1, 2)]
    lines = [{"run": folders[k].name, "cell": "a", "seed": k, "values": {}} for k in (2, 0)]
    study = write_study(folders[0].parent, lines, question="q")
    given = read_given([study, folders[1]])
    assert [run.folder for run in given.runs] == [folders[2], folders[0], folders[1]]
    assert given.study_of(given.runs[0]) is given.studies[0] and given.studies[0].question == "q"
    assert given.studies[0].missing == ()


def test_an_ablation_knows_what_is_done_under_way_and_not_begun(make_run: Any) -> None:
    folders = [make_run(seed=seed) for seed in (0, 1)]
    (folders[1] / "evaluation.json").unlink()
    names = [*(folder.name for folder in folders), "later"]
    lines = [{"run": name, "cell": "a", "seed": place, "values": {}} for place, name in enumerate(names)]
    found = read_study(write_study(folders[0].parent, lines, command="python -m jobs.ablate a"))
    assert [trial.state for trial in found.trials] == ["complete", "running", "waiting"]
    assert found.missing == ("2 of 3 trials: 1 under way or cut off, 1 not begun. python -m jobs.ablate a continues it.",)


def test_what_a_search_planned_and_did_not_do_is_said(tmp_path: Path) -> None:
    study = read_study(write_trials(tmp_path, search_trials(), planned=40, command="python -m jobs.search"))
    assert study.is_search and study.counts == {"complete": 18, "pruned": 10, "failed": 1, "running": 1}
    assert "11 of 40 trials: 1 under way or cut off, 10 not begun. python -m jobs.search continues it." in study.missing
    assert "Trial 13 failed: worker 0: the loss is not finite" in study.missing
    assert any("Run folders of complete trials that are not there: 1, 2, 4" in sentence for sentence in study.missing)


def test_a_killed_search_is_read_from_its_run_folders(tmp_path: Path, manifest: Any, write_run: Any) -> None:
    """trials.json is as the search before left it, or not there at all."""
    folder = write_search(tmp_path, manifest, write_run)
    (folder / "trial-00003" / "scores.jsonl").write_text('{"step": 4, "mean": 0.25, "seconds": 7.5}\n{"step": 8, "me')
    (folder / "trials.json").unlink()
    study = read_study(folder)
    assert [trial.number for trial in study.trials] == list(range(12)) and study.counts == {"running": 12}
    fourth, wanted = study.trials[3], search_trials()[3]["params"]
    assert fourth.params == wanted and fourth.values == {"accuracy": 0.25} and fourth.seconds == 7.5


def test_a_population_has_the_knobs_of_its_whole_way(tmp_path: Path) -> None:
    study = read_study(write_population(tmp_path))
    spans = [[(part.first, part.last) for part in trial.lineage] for trial in study.trials]
    assert spans == [[(0, None)], [(0, 100), (100, None)]]


def test_a_killed_population_is_read_from_its_run_folders(tmp_path: Path, manifest: Any, write_run: Any) -> None:
    folder = write_population(tmp_path / "pbt")
    for name in ("member-00", "member-01", "member-01_from-000100"):
        write_run(folder, manifest, overrides=("primary.optimizer.lr=0.2", f"run.name={name}"))
    facts = json.loads((folder / "member-01_from-000100" / "facts.json").read_text())
    lineage = json.loads((folder / "trials.json").read_text())[1]["lineage"]
    (folder / "member-01_from-000100" / "facts.json").write_text(json.dumps({**facts, "lineage": lineage}))
    (folder / "trials.json").unlink()
    study = read_study(folder)
    assert [(trial.folder and trial.folder.name, trial.state) for trial in study.trials] == [
        ("member-00", "running"), ("member-01", "pruned"), ("member-01_from-000100", "running")]  # fmt: skip
    assert [len(trial.lineage) for trial in study.trials] == [0, 0, 2]
    assert study.trials[0].params == {"primary.optimizer.lr": 0.2}


@pytest.mark.parametrize("name", ["study.json", "search.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{", '{"objectives": 3, "space": 2, "trials": 7}'])
def test_a_damaged_study_file_is_told_not_fatal(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    study = read_study(tmp_path)
    assert study.name == tmp_path.name and study.trials == () and study.space == {}
    assert study.missing[0].startswith(name)


def test_damaged_trials_are_told_not_fatal(tmp_path: Path) -> None:
    write_trials(tmp_path, [])
    (tmp_path / "trials.json").write_text("[{")
    assert read_study(tmp_path).missing[0].startswith("trials.json cannot be read")


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
