"""Evaluation on held-out labeled videos, and on test, of one small run in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import evaluate, label, train
from jobs.command import DONE, USER_ERROR, run


@pytest.mark.timeout(240)
def test_validation_is_what_was_held_out(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.parquet"
    words = ["--per-class", "4", "--hold-out", "25%", "--out", str(labels)]
    assert run(label.main, [str(tiny / "manifest.parquet"), *words]) == DONE
    config = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "run.name=one", f"data.labels={labels}"]
    short = ["train.steps=1", "train.warmup_steps=0", "evaluation.split=validation"]
    assert run(train.main, [*config, *short]) == DONE
    first = json.loads((tmp_path / "one" / "evaluation.json").read_text(encoding="utf-8"))
    assert (first["split"], first["videos"]) == ("validation", 4)
    capsys.readouterr()
    assert run(evaluate.main, [str(tmp_path / "one"), "evaluation.split=test"]) == DONE
    second = json.loads((tmp_path / "one" / "evaluation.json").read_text(encoding="utf-8"))
    assert (second["split"], second["videos"]) == ("test", 8)
    assert "8 test videos, step 1" in capsys.readouterr().out
    assert run(evaluate.main, [str(tmp_path / "one"), "evaluation.split=all"]) == USER_ERROR
