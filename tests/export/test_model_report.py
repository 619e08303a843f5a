"""``jobs.report MODEL``: a page about a model folder's evaluations, without complaints that it is no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import evaluate, report
from jobs.command import DONE, USER_ERROR, run
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.manifest.schema import read_manifest, write_manifest
from tests.model_folders import read, rewrite


def test_a_model_is_reported_with_its_results_of_other_data(
    model: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(report.main, [str(model)]) == USER_ERROR
    assert f"is a model that was not evaluated yet; python -m jobs.evaluate {model} --manifest FILE" in capsys.readouterr().err
    own = read_manifest(tiny / "manifest.parquet")
    other = write_manifest(own.table.slice(1), tmp_path / "other.parquet", own.classes, own.root, "other data")
    assert run(evaluate.main, [str(model), "--manifest", other.path]) == DONE
    evaluation = read(model, f"evaluation_on_{other.fingerprint}.json")
    capsys.readouterr()
    assert run(report.main, [str(model)]) == DONE
    said, html = capsys.readouterr().out, (model / "report.html").read_text(encoding="utf-8")
    top1, data = f"{100 * evaluation['mean']['top1']:.1f} %", f"{tmp_path.name}/other.parquet"
    answer = f"Top-1 on {evaluation['videos']} videos in {data}: {top1} by the mean"
    assert answer in said and "not evaluated" not in said + html
    assert "What is missing" not in html and "metrics.jsonl" not in html and "jobs.train" not in html
    assert 'id="other-data0"' in html and 'id="other-data0-classes"' in html and 'id="curves"' not in html
    assert f"Evaluation of {model.name} on {tmp_path.name}/other.parquet" in html
    record = read_run_record(model)
    assert (record.method, record.last_step, record.seed) == ("actnetformer", 2, 0) and record.missing == ()


def test_a_model_that_was_trained_elsewhere_says_so(model: Path) -> None:
    training = read(model, "training.json")
    rewrite(model, "training.json", {**training, "trained_elsewhere": {"by": "somebody"}, "method": None})
    assert read_run_record(model).method == "trained elsewhere"
