"""The short ways to look at a run: on paper, on a few videos, up to a step, under the profiler."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import train
from jobs.command import run
from pipeline.clips.plan import Plan
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.hardware import Hardware
from pipeline.lifecycle.overfit import choose_videos, make_overfit_config
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.memory_mapped import open_manifest
from pipeline.manifest.schema import read_manifest
from pipeline.methods import METHODS, build_method, make_views
from pipeline.run_folder.contents import read_metrics, read_run
from pipeline.training.dry_run import estimate_memory, measure_activations
from pipeline.training.gpu_memory import check_training
from pipeline.training.model_options import apply_train_options
from pipeline.training.monitoring.profiling import PROFILED, SKIPPED, STEP_PHASES, choose_profiled_steps, format_profile
from pipeline.training.prepared_run import open_inputs
from tests.methods.traces import CLASSES, batch_of, small_config


def command(tiny: Path, tmp_path: Path, *words: str) -> int:
    return run(train.main, ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *words])


def plan_of(rows: int = 4, mu: int = 2) -> Plan:
    return Plan(np.arange(24), np.arange(24, 48), mu, rows, 0)


# ------------------------------------------------------------------------------------------------------- on paper


def test_a_dry_run_says_what_follows_and_writes_nothing(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path / "runs", "--dry-run", "method.supervised_steps=2") == 0
    text = capsys.readouterr().out
    assert "a step: 2 labeled + 4 unlabeled videos; 1 worker, at most 2 rows each, computed in parts of 2" in text
    assert f"decoding: 8 frames of each of 6 videos a step; {12 * 2 + 10 * 4} videos in the run" in text
    assert "stream: 7 blocks to decode, each of at most 2 steps and 12 videos" in text
    assert "schedule: 2 steps of warm-up, then cosine; unlabeled videos count from step 2 on" in text
    assert "a checkpoint every 4 (3 in the run, 2 kept)" in text
    assert "nothing is trained yet" in text and "reserves: nothing, it runs in this process" in text
    assert "activations" in text and "together" in text
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_what_is_decoded_from_the_first_start(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tiny, tmp_path, "--dry-run", "method.pseudo_label.start=3", "method.contrast.start=5") == 0
    assert f"; {12 * 2 + 9 * 4} videos in the run" in capsys.readouterr().out


def test_a_dry_run_asks_no_cluster_that_is_not_there(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # the port of "discard", where nobody listens
    assert command(tiny, tmp_path, "--dry-run", "scale.workers=2") == 0
    text = capsys.readouterr().out
    assert "2 workers, at most 1 rows each" in text and "gradients in DDP's buckets" in text
    assert "reserves: no Ray cluster answers" in text


def test_a_dry_run_finds_mistakes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "--dry-run", "train.accumulation=3") == 2
    assert "train.accumulation=3 must divide" in capsys.readouterr().err
    assert command(tiny, tmp_path, "--dry-run", "--max-steps", "3") == 2
    assert "take neither --profile nor --max-steps" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_memory_of_every_method_is_counted(method: str) -> None:
    counted = estimate_memory(small_config(method={"name": method}), plan_of(), CLASSES)
    parameters = sum(p.numel() for p in build_method(small_config(method={"name": method}), CLASSES).students.parameters())
    assert counted["weights"] == counted["gradients"] == counted["optimizer state"] == 4 * parameters  # SGD with momentum
    assert counted["decoded clips of a step, uint8"] == 4 * 3 * 2 * 4 * 20 * 20 * 3
    (kept,) = (value for name, value in counted.items() if name.startswith("activations"))
    assert kept > counted["views of a part, float32"]
    others = counted["running means, teachers, label statistics"]
    assert others >= counted["weights"] if method == "svformer" else others == 0


@pytest.mark.parametrize("train", [{}, {"precision": "bf16"}, {"activation_checkpointing": True}])
def test_what_is_counted_without_values_is_what_a_real_pass_keeps(train: dict[str, object]) -> None:
    config = small_config(train=train)
    method = apply_train_options(build_method(config, CLASSES, 48, 24), config.train)
    views = make_views(batch_of(0), config, 0, "cpu")
    real = measure_activations(method, views, config)["activations"]
    assert estimate_memory(config, plan_of(), CLASSES)["activations"] == pytest.approx(real, rel=0.02)


def test_memory_follows_the_knobs() -> None:
    config = small_config()
    plain = estimate_memory(config, plan_of(), CLASSES)
    adam = {"optimizer": {"algorithm": "adamw", "lr": 0.001}}
    network = {name: getattr(config, name).model_dump() | adam for name in ("primary", "auxiliary")}
    assert estimate_memory(small_config(**network), plan_of(), CLASSES)["optimizer state"] == pytest.approx(
        2 * plain["optimizer state"], rel=0.01
    )
    averaged = estimate_memory(small_config(train={"ema_decay": 0.99}), plan_of(), CLASSES)
    assert averaged["running means, teachers, label statistics"] == plain["weights"]
    halves = estimate_memory(small_config(train={"accumulation": 2}), plan_of(), CLASSES)
    assert halves["views of a part, float32"] * 2 == plain["views of a part, float32"]
    assert halves["activations"] < 0.6 * plain["activations"]
    small = estimate_memory(small_config(train={"activation_checkpointing": True}), plan_of(), CLASSES)
    assert small["activations"] < 0.5 * plain["activations"]


@pytest.mark.parametrize("hard", [True, False])
def test_labels_from_a_file_are_counted_and_checked_for_a_gpu(
    hard: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run shows their bytes, and a run on a GPU is refused where they do not fit as well."""
    manifest = read_manifest(tiny / "manifest.parquet")
    columns = {name: np.full(manifest.table.num_rows, 0.25, np.float32) for name in manifest.classes}
    pq.write_table(pa.table({"id": manifest.table["id"], **columns}), tmp_path / "file.parquet")
    words = [
        f"method.file_label.file={tmp_path / 'file.parquet'}",
        "method.file_label.weight=1",
        f"method.file_label.hard={hard}",
    ]
    assert command(tiny, tmp_path, "--dry-run", *words) == 0
    assert "  labels from a file " in capsys.readouterr().out
    training = open_inputs(load_config(tiny / "tiny.yaml", words))[0]
    assert training.file_labels is not None
    counted = estimate_memory(training.config, training.plan, 4, training.file_labels)["labels from a file"]
    assert counted == 4 * training.plan.sizes[0] + len(training.plan.unlabeled) * (12 if hard else 12 + 2 * 4)
    small = Hardware(gpus=("Small GPU",), gpu_memory=501_000_000, bf16=True)
    for hardware in (small, replace(small, gpu_memory=10**9)):
        monkeypatch.setattr("pipeline.training.gpu_memory.read_hardware", lambda found=hardware: found)
        if hardware is small:
            with pytest.raises(UserError, match="of each GPU's memory"):
                check_training(training, None)
        else:
            check_training(training, None)


# ------------------------------------------------------------------------------------------------- on a few videos


def test_two_videos_are_learned_by_heart(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--overfit", "2", "train.steps=60", "primary.optimizer.lr=0.03"]
    assert command(tiny, tmp_path, *words) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert all(line.endswith("100% of 2 videos classified correctly after 60 steps: learned") for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-overfit-2"]
    config, facts = read_run(tmp_path / "tiny-overfit-2")
    assert (config.method.name, config.views.weak.flip, facts["overfit"]) == ("supervised", 0.0, 2)
    assert command(tiny, tmp_path, *words, "train.steps=2") == 1  # from the start again, though the knobs are others
    assert "NOT learned" in capsys.readouterr().out
    assert read_metrics(tmp_path / "tiny-overfit-2")[-1]["step"] == 2


def test_another_runs_folder_is_left_alone(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "run.name=x-overfit-2", "--max-steps", "1") == 0
    assert command(tiny, tmp_path, "run.name=x", "--overfit", "2") == 2
    assert "is another run's folder" in capsys.readouterr().err
    assert (tmp_path / "x-overfit-2" / "checkpoint_000001").is_dir()


def test_the_videos_are_of_different_classes(tiny: Path) -> None:
    source = open_inputs(load_config(tiny / "tiny.yaml"))[0].source
    assert set(source.columns["label"][choose_videos(source, 4)]) == {0, 1, 2, 3}
    assert len(set(choose_videos(source, 7))) == 7


@pytest.mark.parametrize("number", ["1", "17"])
def test_too_few_or_too_many_videos(number: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "--overfit", number) == 2
    assert f"--overfit {number}: give 2 to 16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_keeps_students_from_learning_by_heart_is_off() -> None:
    config = small_config(
        method={"supervised": {"mixup": 0.2, "label_smoothing": 0.1}},
        train={"ema_decay": 0.999, "schedule": "step", "milestones": [5]},
    )
    network = {"dropout": 0.5, "drop_path": 0.2}
    auxiliary = config.auxiliary.model_dump()
    config = small_config(auxiliary={**auxiliary, "network": auxiliary["network"] | network})
    plain = make_overfit_config(config, 3)
    assert (plain.auxiliary.network.dropout, plain.auxiliary.network.drop_path) == (0, 0)  # type: ignore[union-attr]
    assert (plain.method.supervised.mixup, plain.method.supervised.label_smoothing, plain.train.ema_decay) == (0, 0, None)
    assert plain.views.weak.min_scale == 1 and plain.train.schedule == "cosine" and plain.scale.workers == 0
    assert plain.data.labeled_per_step == 3 and plain.unlabeled_per_labeled == 0


# ---------------------------------------------------------------------------------------------------- up to a step


def test_a_run_cut_at_a_step_goes_on_to_the_same_bits(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "run.name=whole") == 0
    assert command(tiny, tmp_path, "run.name=cut", "--max-steps", "6") == 0
    assert (
        "at step 6 of 12, with a checkpoint; the same command without --max-steps continues the run" in capsys.readouterr().out
    )
    assert (tmp_path / "cut" / "checkpoint_000006").is_dir() and not (tmp_path / "cut" / "evaluation.json").exists()
    assert command(tiny, tmp_path, "run.name=cut", "--max-steps", "5") == 0
    assert "at step 6 of 12" in capsys.readouterr().out
    assert command(tiny, tmp_path, "run.name=cut") == 0
    files = [tmp_path / name / "checkpoint_000012" / "model.safetensors" for name in ("cut", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = [[line["loss"] for line in read_metrics(tmp_path / name)] for name in ("cut", "whole")]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------ its inputs, once


def test_a_run_in_this_process_opens_its_inputs_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens them: what checks, trains, validates or evaluates is handed what was opened first."""
    opened: list[str] = []

    def count(function: Any) -> Any:
        return lambda *arguments, **options: opened.append(function.__name__) or function(*arguments, **options)

    for function in (open_manifest, read_labels):
        for module in [module for module in sys.modules.values() if vars(module).get(function.__name__) is function]:
            monkeypatch.setattr(module, function.__name__, count(function))
    assert command(tiny, tmp_path, "run.name=once", "train.steps=1", "train.warmup_steps=0") == 0
    assert (tmp_path / "once" / "evaluation.json").is_file()
    assert opened == ["open_manifest", "read_labels"]


# ---------------------------------------------------------------------------------------------- under the profiler


def test_a_profile_is_a_trace_and_a_table_and_changes_nothing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end = SKIPPED + PROFILED
    assert command(tiny, tmp_path, "run.name=one", "--max-steps", str(end)) == 0
    capsys.readouterr()
    assert command(tiny, tmp_path, "run.name=two", "--max-steps", str(end), "--profile") == 0
    text = capsys.readouterr().out
    assert f"of {PROFILED} steps" in text and f"trace: {tmp_path / 'two' / 'profile.json'}" in text
    events = json.loads((tmp_path / "two" / "profile.json").read_text())["traceEvents"]
    counts = {name: sum(event.get("name") == name and event.get("cat") == "user_annotation" for event in events)
              for name in ("batch", *STEP_PHASES)}  # fmt: skip
    assert counts == dict.fromkeys(("batch", *STEP_PHASES), PROFILED)
    checkpoints = [tmp_path / name / f"checkpoint_{end:06d}" / "model.safetensors" for name in ("one", "two")]
    assert checkpoints[0].read_bytes() == checkpoints[1].read_bytes()
    assert command(tiny, tmp_path, "run.name=two", "--profile") == 2
    assert f"from step {end} to 12 are fewer" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_asked(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tiny, tmp_path, "--dry-run", "scale.workers=2") == 0
    assert "reserves: 2 x 0.5 CPU to train, 0.5 CPU per decode task" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_the_worker_of_a_cluster_is_profiled(tiny: Path, tmp_path: Path) -> None:
    assert command(tiny, tmp_path, "scale.workers=1", "--max-steps", str(SKIPPED + PROFILED), "--profile") == 0
    assert (tmp_path / "tiny" / "profile.json").is_file()
    assert (tmp_path / "tiny" / f"checkpoint_{SKIPPED + PROFILED:06d}").is_dir()


def _averages(name: str, cpu: float, gpu: float, of: str, is_range: bool = False) -> Any:
    kind = SimpleNamespace(name=of)
    return SimpleNamespace(key=name, cpu_time_total=cpu, self_cpu_time_total=cpu, self_device_time_total=gpu, device_type=kind,
                           is_user_annotation=is_range)  # fmt: skip


def test_the_gpus_time_is_told_once_in_a_profile() -> None:
    """Made up as CUDA's profiles are: a kernel's time also counts for the operator that launched it and for ranges."""
    events = [
        _averages("forward", 10_000, 0, "CPU"), _averages("aten::conv3d", 9_000, 6_000, "CPU"),
        _averages("sm90_conv", 0, 6_000, "CUDA"), _averages("relu_kernel", 0, 2_000, "CUDA"),
        _averages("Optimizer.step#SGD.step", 0, 8_000, "CUDA", True), _averages("forward", 0, 8_000, "CUDA", True),
    ]  # fmt: skip
    text = format_profile(events, 1)
    assert re.search(r"they call, GPU:\n  sm90_conv +6\.00 ms +75\.0%\n  relu_kernel +2\.00 ms +25\.0%$", text), text
    assert "CPU:\n  aten::conv3d" in format_profile(events[:2], 1)


def test_steps_that_need_unlabeled_videos_are_profiled() -> None:
    config = small_config(method={"supervised_steps": 40})
    assert choose_profiled_steps(config.method, 0, 100) == range(40, 40 + PROFILED)
    assert choose_profiled_steps(config.method, 50, 100) == range(50 + SKIPPED, 50 + SKIPPED + PROFILED)
    assert choose_profiled_steps(config.method, 0, 20) == range(SKIPPED, SKIPPED + PROFILED)
    assert choose_profiled_steps(config.method, 0, SKIPPED + PROFILED - 1) is None


def test_options_that_are_no_numbers(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        command(tiny, tmp_path, "--max-steps", "0")
