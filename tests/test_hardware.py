"""Runs that the machine cannot compute are refused in every command, before anything is written.

There is no GPU here: what torch says of one is made up, through the one function that asks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import bench, evaluate, predict, train
from jobs.command import run
from pipeline.clips.plan import Plan
from pipeline.config import Config, TrainSection, load_config
from pipeline.errors import UserError
from pipeline.hardware import (
    Hardware,
    _warn_of_cudnn,
    check_compiler,
    check_hardware,
    choose_device,
    configure_torch,
    read_hardware,
)
from pipeline.training.dry_run import estimate_memory
from pipeline.training.gpu_memory import check_memory

OLD_DRIVER = Hardware(problem="The NVIDIA driver on your system is too old (found version 11040)", unusable_gpu=True)
NO_GPU = Hardware(problem="torch finds no GPU with an NVIDIA driver on this machine")
V100 = Hardware(gpus=("Tesla V100",), gpu_memory=16 * 10**9, bf16=False)
H100 = Hardware(gpus=("NVIDIA H100",), gpu_memory=80 * 10**9, bf16=True)
TINY_GPU = replace(H100, gpus=("Tiny GPU",), gpu_memory=501_000_000)

Fake = Callable[[Hardware], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Makes this machine another one."""

    def become(hardware: Hardware) -> None:
        for room in ("pipeline.hardware", "pipeline.training.gpu_memory"):
            monkeypatch.setattr(f"{room}.read_hardware", lambda: hardware)

    return become


def _refused(main: Any, *words: object) -> None:
    assert run(main, [str(word) for word in words]) == 2


# --------------------------------------------------------------------------------------------- where one computes


def test_a_gpu_is_used_where_there_is_one_unless_it_is_forbidden(machine: Fake) -> None:
    for hardware, gpu, device in [(H100, None, "cuda"), (H100, "true", "cuda"), (H100, "false", "cpu"), (NO_GPU, None, "cpu"),
                                  (NO_GPU, "false", "cpu"), (OLD_DRIVER, "false", "cpu")]:  # fmt: skip
        machine(hardware)
        assert choose_device(load_config(overrides=[f"scale.gpu={gpu}"] if gpu else [])).type == device


def test_a_driver_that_does_not_answer_is_told_even_where_no_gpu_is_asked_for(machine: Fake) -> None:
    machine(OLD_DRIVER)
    with pytest.raises(UserError, match=r"^CUDA cannot be used: The NVIDIA .*too old.*update the driver.*scale\.gpu=false"):
        choose_device(Config())


def test_a_gpu_without_bf16_is_refused(machine: Fake) -> None:
    machine(V100)
    with pytest.raises(UserError, match=r"train\.precision=bf16: the GPU \(Tesla V100\).*train\.precision=fp16"):
        choose_device(load_config(overrides=["train.precision=bf16"]))
    assert choose_device(load_config(overrides=["train.precision=fp16"])).type == "cuda"
    assert choose_device(load_config(overrides=["train.precision=bf16", "scale.gpu=false"])).type == "cpu"


@pytest.mark.parametrize(("cudnn", "precision", "warned"), [
    (91002, "bf16", True), (91400, "fp16", True), (90701, "bf16", False), (91500, "bf16", False), (91002, "fp32", False),
])  # fmt: skip
def test_a_cudnn_with_poor_convolutions_is_warned_of(
    cudnn: int, precision: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_cudnn.cache_clear()
    config = load_config(overrides=[f"train.precision={precision}"])
    for _ in range(2):
        check_hardware(config, replace(H100, cudnn=cudnn), gpu=True)
    check_hardware(config, replace(H100, cudnn=cudnn), gpu=False)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == warned
    if warned:
        assert f"train.precision={precision} with cuDNN 9.1" in told[0] and "install cuDNN 9.15 or newer" in told[0]


def test_a_compiler_that_is_missing_is_named() -> None:
    config = load_config(overrides=["train.compile=inductor"])
    for gpu, lacks, what in [(True, {"gpu_compiler": False}, "Triton and a C"), (False, {"cpp_compiler": False}, "g++")]:
        with pytest.raises(UserError, match=r"train\.compile=inductor needs .*train\.compile=off") as refused:
            check_compiler(config, Hardware(**lacks), gpu)  # type: ignore[arg-type]
        assert what in str(refused.value)
        check_compiler(config, Hardware(**lacks), not gpu)  # type: ignore[arg-type]
        check_compiler(Config(), Hardware(**lacks), gpu)  # type: ignore[arg-type]


def test_what_this_machine_has_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = read_hardware()
    assert (found.gpus, found.gpu_memory, found.cpp_compiler, found.gpu_compiler) == ((), 0, False, False)
    assert found.problem and not found.unusable_gpu
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    assert read_hardware().cpp_compiler


def test_what_torch_warns_of_a_driver_is_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        import warnings

        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr("torch.cuda.is_available", is_available)
    monkeypatch.setattr("torch.backends.cuda.is_built", lambda: True)
    found = read_hardware()
    assert found.unusable_gpu and found.problem == "CUDA initialization: The NVIDIA driver on your system is too old"


# ------------------------------------------------------------------------------------------------- every command


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two steps."""
    storage = tmp_path_factory.mktemp("runs")
    words = ["--config", tiny / "tiny.yaml", f"run.storage_path={storage}", "train.steps=2", "train.warmup_steps=1"]
    assert run(train.main, [str(word) for word in words]) == 0
    return storage / "tiny"


def test_every_command_refuses_a_gpu_that_is_not_there(
    tiny: Path, trained: Path, tmp_path: Path, machine: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(NO_GPU)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    video = next(tiny.rglob("*.mp4"))
    config = ["--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}/runs", "scale.gpu=true"]
    for main, *words in [
        (train.main, *config), (train.main, "--dry-run", *config), (train.main, "--overfit", 2, *config),
        (evaluate.main, trained, "scale.gpu=true"), (predict.main, trained, video, "scale.gpu=true"),
        (bench.main, "step", *config), (bench.main, "views", *config),
    ]:  # fmt: skip
        capsys.readouterr()
        _refused(main, *words)
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith("error: scale.gpu=true: CUDA cannot be used: torch finds no GPU"), said
    assert not (tmp_path / "runs").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_every_command_leaves_a_gpu_alone_that_it_is_told_to(
    tiny: Path, trained: Path, tmp_path: Path, machine: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine pretends to have a GPU; whatever touched it would fail here."""
    machine(H100)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    video = next(tiny.rglob("*.mp4"))
    config = ["--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}/runs", "scale.gpu=false", "train.steps=2"]
    for main, *words in [
        (train.main, *config, "train.warmup_steps=1"), (evaluate.main, trained, "scale.gpu=false"),
        (predict.main, trained, video, "scale.gpu=false"), (bench.main, "views", *config, "--repeats", 1),
    ]:  # fmt: skip
        assert run(main, [str(word) for word in words]) == 0


def test_a_run_that_does_not_fit_is_refused_before_it_writes(
    tiny: Path, tmp_path: Path, machine: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(TINY_GPU)
    config = ["--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}/runs"]
    config += ["train.precision=bf16", "train.accumulation=2", "train.activation_checkpointing=true"]
    for words in ([], ["--dry-run"], ["--overfit", 2]):
        capsys.readouterr()
        _refused(train.main, *words, *config)
        assert "error: training needs about" in (text := capsys.readouterr().err) and "Tiny GPU has 0.0 GB" in text
    assert not (tmp_path / "runs").exists()


def test_a_compiler_is_missing_before_the_run_writes(
    tiny: Path, tmp_path: Path, machine: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(replace(NO_GPU, cpp_compiler=False))
    _refused(train.main, "--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}/runs", "train.compile=inductor")
    assert "needs a C++ compiler (g++), which this machine lacks" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_a_gpu_that_ray_has_and_torch_cannot_use_is_told_before_anything_is_written(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own, because it starts a Ray that believes in a GPU: in one that no machine has."""
    code = (
        "import sys, ray; from jobs import train; from jobs.command import run;"
        "ray.init(address='local', num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=10**8);"
        "sys.exit(run(train.main, sys.argv[1:]))"
    )
    words = ["--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}/runs", "scale.workers=1"]
    command = [sys.executable, "-c", code, *map(str, words)]
    made = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": "77"})
    assert made.returncode == 2, made.stderr
    assert "error: Ray gives 1 GPU to each worker, but torch cannot use it" in made.stderr
    assert not (tmp_path / "runs").exists()


# -------------------------------------------------------------------------------------------------------- memory


def _estimate(config: Config) -> int:
    """Made up: 40 GB of activations in fp32 at once."""
    train_ = config.train
    halved = 2 if train_.precision != "fp32" else 1
    return int(1e9 + 40e9 / halved / train_.accumulation / (4 if train_.activation_checkpointing else 1))


@pytest.mark.parametrize(
    ("gigabytes", "remedy"),
    [(30, "train.precision=bf16"), (16, "train.activation_checkpointing=true"), (8, "train.accumulation=8"),
     (5, "train.precision=bf16 train.accumulation=8"), (3, "train.activation_checkpointing=true train.accumulation=8"),
     (1, "no value of")],
)  # fmt: skip
def test_the_knob_that_makes_a_run_fit_is_named(gigabytes: int, remedy: str) -> None:
    config = load_config(overrides=["data.labeled_per_step=8"])
    with pytest.raises(UserError, match=r"training needs about 41\.0 GB of each GPU's memory") as refused:
        check_memory(config, replace(H100, gpu_memory=int(gigabytes * 1e9)), _estimate)
    assert remedy in str(refused.value)


def test_a_run_that_fits_is_not_refused() -> None:
    config = load_config(overrides=["data.labeled_per_step=8"])
    check_memory(config, H100, _estimate)
    check_memory(config, replace(H100, gpu_memory=int(41.6e9)), _estimate)
    with pytest.raises(UserError):
        check_memory(config, replace(H100, gpu_memory=int(41.4e9)), _estimate)


def test_without_bf16_the_remedy_is_fp16_and_a_shared_gpu_is_a_smaller_one() -> None:
    with pytest.raises(UserError, match=r"with train\.precision=fp16 "):
        check_memory(Config(), replace(V100, gpu_memory=int(30e9)), _estimate)
    with pytest.raises(UserError, match=r"and 0\.25 of NVIDIA H100 has 19\.5 GB"):
        check_memory(load_config(overrides=["scale.gpus_per_worker=0.25"]), H100, _estimate)


def test_what_is_named_fits_by_the_estimate_of_the_dry_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's setting at 4 + 20 clips, without a GPU of 80 GB: two knobs are tried, and the message is obeyed."""
    config = load_config(overrides=["data.labeled_per_step=4", "train.precision=bf16"])
    plan = Plan(np.arange(100), np.arange(100, 1000), config.unlabeled_per_labeled, 4, 0)
    tried: list[int] = []

    def estimate(one: Config) -> int:
        tried.append(sum(estimate_memory(one, plan, 101).values()))
        return tried[-1]

    with pytest.raises(UserError, match=r"it fits with train\.activation_checkpointing=true \(") as refused:
        check_memory(config, replace(H100, gpu_memory=24 * 10**9), estimate)
    assert len(tried) <= 4 and f"{tried[0] / 1e9:.1f} GB" in str(refused.value) and tried[-1] < 23.5e9


# ------------------------------------------------------------------------------------------------- torch's switches


def test_tensor_cores_are_on_unless_a_run_is_deterministic() -> None:
    try:
        for deterministic, precision in [(False, "tf32"), (True, "ieee"), (False, "tf32")]:
            configure_torch(TrainSection(deterministic=deterministic))
            assert torch.backends.cudnn.benchmark is not deterministic
            assert torch.backends.cuda.matmul.fp32_precision == precision
            assert torch.backends.cudnn.allow_tf32 is not deterministic  # raises if the layers' kinds differ
            for kind in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):  # type: ignore[attr-defined]
                assert (kind.fp32_precision == "tf32") is not deterministic
            assert torch.are_deterministic_algorithms_enabled() is deterministic
    finally:
        configure_torch(TrainSection())


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_training_and_evaluation_set_them(
    what: str, tiny: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.backends.cudnn.benchmark = False
    config = ["--config", tiny / "tiny.yaml", f"run.storage_path={tmp_path}", "--max-steps", 1]
    words = {"train": config, "evaluate": [trained]}[what]
    assert run({"train": train.main, "evaluate": evaluate.main}[what], [str(word) for word in words]) == 0
    assert torch.backends.cudnn.benchmark
