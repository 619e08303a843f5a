"""``python -m jobs.report`` as a user calls it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.command import DONE, USER_ERROR, run
from jobs.report import main


def write_run(parent: Path, name: str, seed: int, method: str, top1: float) -> Path:
    folder = parent / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"run: {{name: {name}, seed: {seed}}}\nmethod: {{name: {method}}}\n")
    scores = {view: {"top1": top1, "per_class": {"a": top1}} for view in ("primary", "auxiliary", "mean")}
    (folder / "evaluation.json").write_text(json.dumps({"videos": 2000, "classes": ["a"], "step": 20000, **scores}))
    return folder


def test_one_run_is_reported_in_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, "first", 0, "supervised", 0.625)
    assert main([str(folder)]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(folder / "report.html") and "<!doctype html>" in Path(lines[-1]).read_text()
    assert lines[0].split()[:5] == ["run", "setting", "labels", "steps", "seed"]
    assert lines[2].split() == ["first", "supervised", "?", "20,000", "0", "62.5", "62.5", "62.5", "–", "–"]
    assert sorted(path.name for path in folder.glob("report.*")) == ["report.csv", "report.html", "report.md", "report.tex"]


def test_several_runs_are_reported_beside_them_with_the_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [
        write_run(tmp_path, f"{method}-{seed}", seed, method, top1 + seed / 100)
        for method, top1 in (("supervised", 0.5), ("actnetformer", 0.6))
        for seed in (0, 1)
    ]
    assert main([str(folder) for folder in folders]) == DONE
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(tmp_path / "report.html")
    assert "60.5 ± 0.7" in out and "+10.0 ± 0.0 percentage points of top-1 (2 seeds, ahead in 2 of 2)" in out
    assert "not distinguishable at n = 2" in out  # two equal differences are no spread, but no proof either


def test_a_folder_of_runs_is_named_as_one_and_the_baseline_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, top1 in (("supervised", 0.5), ("cmpl", 0.55), ("actnetformer", 0.6)):
        write_run(tmp_path / "methods", f"{method}-0", 0, method, top1)
    assert main([str(tmp_path / "methods"), "--baseline", "method.name=cmpl", "--format", "csv"]) == DONE
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "methods" / "report.csv")
    rows = list(csv.DictReader((tmp_path / "methods" / "report.csv").read_text(encoding="utf-8").splitlines()))
    found = {(row["setting"], row["scored_by"]): row for row in rows}
    ours = found["actnetformer", "mean"]
    assert ours["baseline"] == "cmpl" and float(ours["difference"]) == pytest.approx(5)
    assert found["cmpl", "mean"]["baseline"] == "" and len(rows) == 9
    assert run(main, [str(tmp_path / "methods"), "--baseline", "method.nmae=cmpl"]) == USER_ERROR
    assert "method.nmae" in capsys.readouterr().err


def test_out_names_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "first", 0, "supervised", 0.5)
    assert main([str(folder), "--format", "html", "--out", str(tmp_path / "pages" / "x.html")]) == DONE
    assert (tmp_path / "pages" / "x.html").is_file() and not (folder / "report.html").exists()


def test_a_folder_that_is_no_run_is_a_message_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [str(tmp_path)]) == USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == "" and str(tmp_path) in captured.err and "config.yaml" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_without_ray(tmp_path: Path, repository: Path) -> None:
    folder = write_run(tmp_path, "first", 0, "supervised", 0.5)
    loaded = "'ray' in sys.modules, 'torch' in sys.modules"
    code = f"import sys; from jobs.report import main; main([{str(folder)!r}]); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
