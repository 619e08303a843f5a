"""Saved scores are what training saw, whatever was killed, and cost nothing that is not asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.run_folder.contents import list_score_files, read_metrics, rewind
from pipeline.training import loop
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run

WORDS = ("train.save_scores_every=1", "method.supervised_steps=1", "method.confidence_threshold=0.27")


def command(tiny: Path, tmp_path: Path, *words: str) -> int:
    return run(train.main, ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *WORDS, *words])


def scores(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in list_score_files(folder)])


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    storage = tmp_path_factory.mktemp("whole")
    assert command(tiny, storage, "train.log_every=1") == 0
    return storage / "tiny"


def test_scores_say_what_the_monitors_say(whole: Path) -> None:
    """Coverage and accuracy at the training's threshold, computed from the files, are those of metrics.jsonl."""
    folder, table = whole, scores(whole)
    assert [path.name for path in list_score_files(folder)] == [
        "000001-000004.parquet", "000005-000008.parquet", "000009-000012.parquet"]  # fmt: skip
    step, label = (table[key].to_numpy() for key in ("step", "label"))
    assert sorted(set(step)) == list(range(2, 13)) and len(step) == 11 * 4  # the first step has labeled videos only
    checked = 0
    for line in read_metrics(folder)[1:]:
        now = step == line["step"]
        for name, learner in (("primary", "auxiliary"), ("auxiliary", "primary")):
            said = np.stack(table[name].to_pylist())[now]
            kept = said.max(axis=1) >= 0.27
            assert kept.mean() == pytest.approx(line[f"mask_rate/{name}_to_{learner}"])
            if kept.any():
                right = (said.argmax(axis=1) == label[now])[kept].mean()
                assert right == pytest.approx(line[f"pseudo_label_accuracy/{name}_to_{learner}"])
                checked += 0 < right < 1 or 0 < kept.mean() < 1
    assert checked, "the threshold parts nothing: this test would not see a wrong score"


def test_a_killed_run_keeps_the_scores_of_an_uninterrupted_one(
    tiny: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", "run.name=cut", *WORDS]))
    save = loop.CheckpointWriter.save

    def killed(self: loop.CheckpointWriter, state: loop.checkpoint.TrainState) -> None:
        if state.step == 8:  # the file of steps 5 to 8 lies there already, the checkpoint does not
            raise KeyboardInterrupt
        save(self, state)

    monkeypatch.setattr(loop.CheckpointWriter, "save", killed)
    prepared.create_folder()
    with pytest.raises(KeyboardInterrupt):
        fit_in_process(prepared)
    monkeypatch.undo()
    assert len(list_score_files(tmp_path / "cut")) == 2
    assert command(tiny, tmp_path, "run.name=cut", "train.checkpoint_every=3") == 0  # not a knob of the result
    assert [steps for steps in list_score_files(tmp_path / "cut").values()] == [(1, 4), (5, 6), (7, 9), (10, 12)]
    assert scores(tmp_path / "cut").equals(scores(whole))


def test_every_third_step_or_none(tiny: Path, tmp_path: Path) -> None:
    assert command(tiny, tmp_path, "run.name=third", "train.save_scores_every=3", "train.steps=7") == 0
    assert sorted(set(scores(tmp_path / "third")["step"].to_pylist())) == [3, 6]
    assert command(tiny, tmp_path, "run.name=none", "train.save_scores_every=0", "train.steps=7") == 0
    assert not (tmp_path / "none" / "scores").exists()
    last = [sorted((tmp_path / name).glob("checkpoint_*"))[-1] / "model.safetensors" for name in ("third", "none")]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_what_lies_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "scores").mkdir()
    for name in ("000001-000004", "000005-000008", "1000001-1000004"):
        (tmp_path / "scores" / f"{name}.parquet").touch()
    assert list(list_score_files(tmp_path).values()) == [(1, 4), (5, 8), (1_000_001, 1_000_004)]
    rewind(tmp_path, 4, 0)
    assert [path.name for path in list_score_files(tmp_path)] == ["000001-000004.parquet"]
