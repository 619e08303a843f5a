"""The example of CONTRIBUTING.md is a working method: its lines are put where the text says, in a copy of the code, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.run_folder.contents import read_metrics


def put(path: Path, changes: dict[str, str]) -> None:
    """Replace texts of a file, each of which is there once."""
    text = path.read_text(encoding="utf-8")
    for before, after in changes.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def copy(repository: Path, tmp_path: Path) -> Path:
    """The code with the example's file, and with its two other pieces at the places that CONTRIBUTING.md names."""
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    method, name, field = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert 25 <= len(method.splitlines()) <= 40 and len(name.splitlines()) == 1 and len(field.splitlines()) == 2
    for folder in ("pipeline", "jobs"):
        shutil.copytree(repository / folder, tmp_path / folder)  # what is compiled stays valid where a file is not changed
    (tmp_path / "pipeline" / "methods" / "mean_teacher.py").write_text(method, encoding="utf-8")

    methods = tmp_path / "pipeline" / "methods" / "__init__.py"
    entry, imported = '    "supervised": Supervised,\n', "from pipeline.methods.mvpl import MvPL\n"
    put(methods, {entry: entry + name, imported: f"from pipeline.methods.mean_teacher import MeanTeacher\n{imported}"})
    after = "    labels: LabelSection"
    put(tmp_path / "pipeline" / "config" / "method.py", {after: field + after})
    return tmp_path


def test_the_example_trains_and_is_evaluated(copy: Path, tiny: Path) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(copy)}
        return subprocess.run([sys.executable, *words], cwd=copy, env=env, capture_output=True, text=True, timeout=250)

    words = [
        "method.name=mean_teacher",
        "method.consistency.weight=4",
        "method.consistency.ramp=2",
        "train.steps=4",
        "evaluation.clips=1",
    ]
    done = call("-m", "jobs.train", "--config", str(tiny / "tiny.yaml"), f"run.storage_path={copy}", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    line = read_metrics(copy / "tiny")[-1]
    assert line["step"] == 4
    assert line["consistency_loss/primary"] > 0 and 0 < line["loss_share/consistency"] < 1
    assert json.loads((copy / "tiny" / "evaluation.json").read_text())["videos"] == 8
    recorded = call("-c", "from pipeline.config import Config; print(Config().compute_fingerprint())")
    assert recorded.stdout.strip() == Config().compute_fingerprint()
