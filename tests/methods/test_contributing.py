"""The example of CONTRIBUTING.md is a working method: its lines are taken from there and run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.command import run
from pipeline import methods
from pipeline.run_folder.contents import read_metrics


def test_the_example_trains_and_is_evaluated(
    tiny: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert 25 <= len(code.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=4", "method.name=mean_teacher"]
    assert run(train.main, words) == 2  # not yet in the dictionary

    monkeypatch.setitem(methods.METHODS, "mean_teacher", names["MeanTeacher"])
    assert run(train.main, words) == 0
    line = read_metrics(tmp_path / "tiny")[-1]
    assert line["step"] == 4
    assert 0 < line["loss_share/pseudo_label"] < 1
    assert json.loads((tmp_path / "tiny" / "evaluation.json").read_text())["videos"] == 8
