"""The chain without Ray: real videos in, checkpoints, metrics and predictions out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs import evaluate, train
from jobs.command import run
from pipeline.config import load_config
from pipeline.errors import RunFailed
from pipeline.run_folder.contents import read_metrics, read_quarantine
from pipeline.training import loop
from pipeline.training.checkpoints import checkpoint
from pipeline.training.in_process import fit_in_process
from pipeline.training.prepared_run import prepare_run


def command(tiny: Path, tmp_path: Path, *words: str) -> int:
    return run(train.main, ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *words])


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def comparable(folder: Path) -> list[dict[str, object]]:
    """Metrics without what the clock says."""
    clock = ("seconds", "clips_per_second", "memory", "eta")
    return [{k: v for k, v in line.items() if not k.startswith(clock)} for line in read_metrics(folder)]


def test_a_run_leaves_what_was_promised(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path) == 0
    folder = tmp_path / "tiny"
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert lines[-1]["memory/step_megabytes"] == 2 * 3 * 2 * 4 * 40 * 40 * 3 / 1e6  # rows, videos, clips of 4 frames of 40 x 40
    assert 0 < lines[-1]["seconds/decode_per_clip"] < 10 and 0 <= lines[-1]["seconds/data_share"] < 1
    for line in lines:
        seconds = {kind: line[f"seconds/{kind}"] for kind in ("step", "data", "compute", "collective", "checkpoint")}
        assert seconds["compute"] > 0 and seconds["data"] >= 0 and seconds["collective"] == 0  # one worker waits for none
        assert (seconds["checkpoint"] > 0) == (line["step"] in (6, 10))  # those of 4 and 8: lines are written first
        assert seconds["data"] + seconds["compute"] + seconds["checkpoint"] <= seconds["step"]
        assert line["clips_per_second"] * seconds["step"] == pytest.approx(2 * 3)
        assert 50 < line["memory_mb"] < 20_000 and line["eta_seconds"] >= 0
    assert {"mask_rate/primary_to_auxiliary", "contrast_loss", "lr/primary", "gradient_norm/auxiliary"} <= set(lines[-1])
    assert sorted(path.name for path in folder.glob("checkpoint_*")) == ["checkpoint_000008", "checkpoint_000012"]
    table = pq.read_table(folder / "predictions.parquet")
    assert table.num_rows == 8
    assert sum(table["mean"][0].as_py()) == pytest.approx(1, abs=1e-4)
    summary = json.loads((folder / "evaluation.json").read_text())
    right = [max(range(4), key=row["mean"].__getitem__) == row["label"] for row in table.to_pylist()]
    assert summary["mean"]["top1"] == pytest.approx(sum(right) / 8)
    assert "0:00 left" in capsys.readouterr().out

    before = weights(folder / "checkpoint_000012")
    assert command(tiny, tmp_path) == 0
    assert "is done: 12 steps are trained" in capsys.readouterr().out
    assert weights(folder / "checkpoint_000012") == before


DROPOUT = "auxiliary.network.dropout=0.2"


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; tests must not change it."""
    storage = tmp_path_factory.mktemp("whole")
    assert command(tiny, storage, DROPOUT) == 0
    return storage / "tiny"


def test_a_killed_run_continues_to_the_same_bits(
    tiny: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps equal 7 steps, a kill, and the rest: weights bit for bit, and no line of metrics missing or doubled."""
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", DROPOUT]))
    step, seen = loop.take_step, []

    def killed(wrapped: object, state: object, *rest: object) -> object:
        seen.append(state)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return step(wrapped, state, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "take_step", killed)
    prepared.create_folder()
    with pytest.raises(KeyboardInterrupt):
        fit_in_process(prepared)
    monkeypatch.undo()
    cut = tmp_path / "tiny"
    assert [line["step"] for line in read_metrics(cut)] == [2, 4, 6]
    assert command(tiny, tmp_path, DROPOUT) == 0
    assert comparable(cut) == comparable(whole)
    for name in ("model.safetensors", "optimizer.safetensors"):
        files = [folder / "checkpoint_000012" / name for folder in (cut, whole)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tiny: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "tiny")
    undamaged = weights(folder / "checkpoint_000012")
    (folder / "checkpoint_000012" / "model.safetensors").write_bytes(undamaged[:1000])
    capsys.readouterr()
    assert command(tiny, tmp_path, DROPOUT) == 0
    text = capsys.readouterr().out
    assert "skipped a damaged checkpoint" in text
    assert "continuing at step 8 of 12" in text
    assert weights(folder / "checkpoint_000012") == undamaged


def test_supervised_decodes_no_unlabeled_video(tiny: Path, tmp_path: Path) -> None:
    assert command(tiny, tmp_path, "method.name=supervised", "train.steps=4") == 0
    line = read_metrics(tmp_path / "tiny")[-1]
    assert "contrast_loss" not in line
    config = load_config(tiny / "tiny.yaml", ["method.name=supervised", f"run.storage_path={tmp_path}/x"])
    assert prepare_run(config).run.source.plan.slots == 1


def test_clips_are_counted_that_were_decoded(tiny: Path, tmp_path: Path) -> None:
    """Before method.supervised_steps the unlabeled slots of a row are planned and left empty."""
    assert command(tiny, tmp_path, "method.supervised_steps=2", "train.steps=4") == 0
    lines = read_metrics(tmp_path / "tiny")
    assert [line["clips_per_second"] * line["seconds/step"] for line in lines] == pytest.approx([2, 6])


def test_precision_bf16_trains(tiny: Path, tmp_path: Path) -> None:
    assert command(tiny, tmp_path, "train.precision=bf16", "train.steps=2") == 0
    assert torch.isfinite(torch.tensor(read_metrics(tmp_path / "tiny")[-1]["loss"]))


@pytest.fixture
def damaged(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the data set in which one unlabeled training video was damaged after the manifest was written."""
    copy = tmp_path / "damaged"
    shutil.copytree(tiny / "videos", copy / "videos")
    for name in ("manifest.parquet", "labels.parquet"):
        shutil.copy(tiny / name, copy)
    words = [f"data.manifest={copy}/manifest.parquet", f"data.root={copy}/videos", f"run.storage_path={tmp_path}/none"]
    prepared = prepare_run(load_config(tiny / "tiny.yaml", words))
    victim = Path(prepared.run.source.manifest.locate(int(prepared.run.source.plan.unlabeled[0])))
    assert victim.is_relative_to(copy)
    victim.write_bytes(victim.read_bytes()[:500])
    return copy


def test_an_undecodable_video_is_replaced_and_recorded(tiny: Path, tmp_path: Path, damaged: Path) -> None:
    words = [f"data.manifest={damaged}/manifest.parquet", f"data.root={damaged}/videos"]
    words += ["train.steps=8", "evaluation.clips=1"]
    assert command(tiny, tmp_path, *words, "run.name=one") == 0
    assert command(tiny, tmp_path, *words, "run.name=two") == 0
    records = read_quarantine(tmp_path / "one")
    assert records
    assert {"row", "slot", "video", "uri", "reason", "replaced_by"} == set(records[0])
    assert len({record["uri"] for record in records}) == 1
    assert all(record["replaced_by"] != record["video"] for record in records)
    assert records == read_quarantine(tmp_path / "two")
    assert read_metrics(tmp_path / "one")[-1]["quarantined"] == len(records)
    assert comparable(tmp_path / "one") == comparable(tmp_path / "two")


def test_too_many_failures_stop_the_run(tiny: Path, tmp_path: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.manifest={damaged}/manifest.parquet", f"data.root={damaged}/videos", "data.max_quarantined_share=0.01"]
    assert command(tiny, tmp_path, *words) == 2
    text = capsys.readouterr().err
    assert "1 of 24 videos failed to decode, more than data.max_quarantined_share=0.01" in text
    assert "Traceback" not in text


def test_another_manifest_or_subset_is_refused(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs import prepare as prepare_job

    assert command(tiny, tmp_path, "train.steps=2") == 0
    other = tmp_path / "other"
    prepare_job.main(["folder", str(tiny / "videos"), str(other), "--labeled", "2/class", "--seed", "3"])
    capsys.readouterr()
    assert command(tiny, tmp_path, "train.steps=2", f"data.manifest={other}/manifest.parquet") == 2
    text = capsys.readouterr().err
    assert "manifest: the run's has fingerprint" in text
    assert "label subset: the run's has fingerprint" in text
    assert "choose another run.name" in text
    assert command(tiny, tmp_path, "train.steps=2", "method.contrast.weight=1") == 2
    assert "method.contrast.weight: the run has 2.0, now 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.manifest=/nowhere/m.parquet"], "/nowhere/m.parquet"),
        (["data.labels=/nowhere/l.parquet"], "/nowhere/l.parquet"),
        (["trian.steps=3", "scale.worker=1"], "did you mean scale.workers?"),
        (["run.storage_path=nowhere://bucket/runs"], "nowhere://bucket/runs does not answer"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    tiny: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny, tmp_path, *words) == 2
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text
    assert not (tmp_path / "tiny").exists()


def test_evaluate_by_another_protocol(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "train.steps=2") == 0
    folder = tmp_path / "tiny"
    assert run(evaluate.main, [str(folder), "evaluation.crops=3", "evaluation.clips=1"]) == 0
    assert json.loads((folder / "evaluation.json").read_text())["crops"] == 3
    assert run(evaluate.main, [str(folder), "train.steps=3"]) == 2
    assert "only evaluation.*" in capsys.readouterr().err
    assert run(evaluate.main, [str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_run_with_its_cause(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.warmup_steps=0", "primary.optimizer.lr=1e30", "auxiliary.optimizer.lr=1e30", "method.name=supervised"]
    assert command(tiny, tmp_path, *words, "auxiliary.optimizer.clip_gradient_norm=null") == 1
    text = capsys.readouterr().err
    assert re.search(r"^failed: the loss is (nan|inf) at step \d+ .*lower primary\.optimizer\.lr", text)
    assert "Traceback" not in text


@pytest.mark.parametrize("stops", [False, True])
def test_an_infinite_gradient_is_not_saved(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool) -> None:
    """The loss of the checkpoint's step is finite still; a signal's checkpoint, between two lines, is no other."""
    words = [f"run.storage_path={tmp_path}", f"train.steps={8 if stops else 6}", "train.log_every=4"]
    prepared = prepare_run(load_config(tiny / "tiny.yaml", words))
    step = loop.take_step

    def exploding(wrapped: Any, state: Any, *rest: Any) -> Any:
        if state.step + 1 == 6:
            next(state.students["primary"].parameters()).register_hook(lambda gradient: gradient * float("inf"))
        if stops and state.step + 1 == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(wrapped, state, *rest)

    monkeypatch.setattr(loop, "take_step", exploding)
    prepared.create_folder()
    with pytest.raises(RunFailed, match=r"gradient_norm/primary is (nan|inf) at step 6 .*lower primary\.optimizer\.lr"):
        fit_in_process(prepared)
    assert [path.name for path in prepared.run.folder.glob("checkpoint_*")] == ["checkpoint_000004"]


def test_a_finished_run_that_is_started_again_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    """Ray starts workers again that die after the last checkpoint."""
    assert command(tiny, tmp_path, "train.steps=4") == 0
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", "train.steps=4"]))
    before = (tmp_path / "tiny" / "metrics.jsonl").read_bytes(), weights(tmp_path / "tiny" / "checkpoint_000004")
    assert fit_in_process(prepared) == {}
    assert ((tmp_path / "tiny" / "metrics.jsonl").read_bytes(), weights(tmp_path / "tiny" / "checkpoint_000004")) == before


def test_a_continued_run_reads_its_checkpoint_once_at_each_turn(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finding the newest reads it whole: before training, when training begins, and to evaluate; once for a finished run."""
    find, folders = checkpoint.find_newest, []

    def count(folder: Path, store: str | None = None) -> Any:
        folders.append(folder)
        return find(folder, store)

    monkeypatch.setattr(checkpoint, "find_newest", count)
    counts = []
    for words in (["--max-steps", "2"], ["--max-steps", "4"], [], []):
        folders.clear()
        assert command(tiny, tmp_path, *words, "train.steps=6", "train.checkpoint_every=2", "evaluation.clips=1") == 0
        counts.append(len(folders))
    assert counts == [3, 3, 3, 1] and "is done: 6 steps are trained" in capsys.readouterr().out


def test_an_exception_in_a_step_keeps_the_checkpoints_before(
    tiny: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"run.storage_path={tmp_path}", DROPOUT]))
    monkeypatch.setattr(loop, "_check_rows", lambda batch, plan, step, worker: 1 // (step != 10))
    prepared.create_folder()
    with pytest.raises(ZeroDivisionError):
        fit_in_process(prepared)
    monkeypatch.undo()
    assert command(tiny, tmp_path, DROPOUT) == 0
    assert comparable(tmp_path / "tiny") == comparable(whole)
