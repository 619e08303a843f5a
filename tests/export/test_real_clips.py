"""On real clips of people: a model is trained and exported, all else is deleted, and the model folder does what it should."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import compare, predict, prepare, train
from jobs.command import DONE, run
from tests.model_folders import read
from tests.real_model import CONFIG, make_real_model

CHANCE = 1 / 27


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_model_of_real_clips_needs_nothing_but_its_folder(
    shared_data: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, model, other = shared_data / "utd_mhad_depth", tmp_path / "model", tmp_path / "other"
    make_real_model(videos, model, 200)
    make_real_model(videos, other, 30, "run.seed=1", "method.name=supervised")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["model", "other"]
    evaluation = read(model, "evaluation.json")
    assert evaluation["mean"]["top1"] > 5 * CHANCE
    int8 = read(model, "programs.json")["int8"]
    assert int8["labeled_videos"] == 400 and all(one["agreement"] > 0.8 for one in int8["programs"].values())

    out = tmp_path / "scores.parquet"  # predictions are those of the evaluation
    assert run(predict.main, [str(model), str(videos / "a03_wave"), "--out", str(out)]) == DONE
    found = {Path(row["file"]).name: row["mean"] for row in pq.read_table(out).to_pylist()}
    known = {Path(row["uri"]).name: row["mean"] for row in pq.read_table(model / "predictions.parquet").to_pylist()}
    both = sorted(found.keys() & known.keys())
    assert len(both) > 10
    np.testing.assert_allclose([found[name] for name in both], [known[name] for name in both], rtol=0, atol=1e-6)

    capsys.readouterr()
    assert run(compare.main, [str(model), str(other)]) == DONE
    assert "430" in capsys.readouterr().out

    _check_manual(repository, model, {str(videos / "a03_wave" / name): found[name] for name in both}, capsys)
    _fine_tune(videos, model, tmp_path)


def _check_manual(repository: Path, model: Path, videos: dict[str, list[float]], capsys: pytest.CaptureFixture[str]) -> None:
    """The manual's example sees what ``jobs.predict`` sees, by another decoder and scaler."""
    page = (repository / "docs/models.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import av.*?)```", page, re.DOTALL)
    for path, wanted in videos.items():
        names: dict[str, Any] = {}
        exec(code.replace("models/mine", str(model)).replace("clip.mp4", path), names)
        np.testing.assert_allclose(names["probabilities"], wanted, rtol=0, atol=0.1)
    classes = json.loads((model / "labels.json").read_text(encoding="utf-8"))
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    right = [name == classes[int(np.argmax(wanted))] for name, wanted in zip(printed, videos.values(), strict=True)]
    assert np.mean(right) > 0.7


def _fine_tune(videos: Path, model: Path, folder: Path) -> None:
    """On new data of the same classes, one step that changes nothing starts where the model is."""
    shutil.copy(videos / "clips.csv", folder)
    data = ["list", str(folder / "clips.csv"), str(folder / "data"), "--root", str(videos), "--labeled", "3/class"]
    assert run(prepare.main, data) == DONE
    weights = [f"{name}.network.weights={model}" for name in ("primary", "auxiliary")]
    still = ["train.steps=1", "train.warmup_steps=0", "primary.optimizer.lr=1e-9", "auxiliary.optimizer.lr=1e-9"]
    where = [f"run.storage_path={folder}/runs", f"data.manifest={folder}/data/manifest.parquet", "evaluation.clips=1"]
    assert run(train.main, ["--config", str(CONFIG), *where, *weights, *still, "method.name=supervised"]) == DONE
    tuned, evaluated = read(folder / "runs" / "actions", "evaluation.json"), read(model, "evaluation.json")
    # batch norms take up a tenth of one batch's statistics
    assert tuned["mean"]["top1"] == pytest.approx(evaluated["mean"]["top1"], abs=0.1) and tuned["mean"]["top1"] > 4 * CHANCE
