"""That training on the device learns: the demo's pair of runs, two seeds, by the commands that users type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.gpu.table import Row, at_least, guarded, measured

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"supervised": ["method.name=supervised"], "actnetformer": []}


def check_learning(device: torch.device, small: bool, end: float) -> Iterator[Row]:
    """Top-1 of the mean of both students, on test videos of eight actions; all runs at the same time, or they would not fit the
    check's time."""
    yield from guarded("the demo's runs", lambda: _learn(device, small))


def _learn(device: torch.device, small: bool) -> Iterator[Row]:
    videos, steps, seeds = (64, 8, [0]) if small else (320, 360, [0, 1])
    short = [f"train.checkpoint_every={steps}", "train.warmup_steps=2", "method.supervised_steps=2"] if small else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        labeled = ["--videos", str(videos), "--classes", "8", "--seed", "0", "--labeled", "4/class"]
        run_together({"data": ["prepare", "synthetic", str(data), *labeled]}, Path(folder))
        commands = {
            f"{name}_{seed}": [
                "train", "--config", "jobs/configs/demo.yaml", f"run.name={name}_{seed}", f"run.seed={seed}",
                f"run.storage_path={folder}/runs", f"data.manifest={data}/manifest.parquet", "scale.workers=0",
                f"scale.gpu={'true' if device.type == 'cuda' else 'false'}", f"train.steps={steps}", *words, *short,
            ]
            for seed in seeds for name, words in METHODS.items()
        }  # fmt: skip
        seconds = run_together(commands, Path(folder))
        read = {run: json.loads((Path(folder) / "runs" / run / "evaluation.json").read_text("utf-8")) for run in commands}
    found = {name: [100 * read[f"{name}_{seed}"]["mean"]["top1"] for seed in seeds] for name in METHODS}
    for name, values in found.items():
        yield measured(f"{name}: top-1 of the mean of both students", values, "%")
    note = f"{len(commands)} at the same time"
    yield measured(f"a run of {steps} steps, with start and evaluation", list(seconds.values()), "s", note)
    gain = sum(found["actnetformer"]) / len(seeds) - sum(found["supervised"]) / len(seeds)
    yield at_least("ActNetFormer over supervised", gain, 5, "points")


def run_together(commands: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """Seconds of each of the commands of ``jobs``, which share the cores. Raises RuntimeError with the words of the first that
    fails, and ends the others."""
    threads = str(max(1, (os.cpu_count() or 1) // len(commands)))
    begun = time.perf_counter()
    seconds: dict[str, float] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, (command, *words) in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", f"jobs.{command}", *words], cwd=ROOT, stdout=log, stderr=log,
                    env=os.environ | {"OMP_NUM_THREADS": threads},
                )  # fmt: skip
        while len(seconds) < len(commands):
            for name in commands.keys() - seconds.keys():
                if (code := running[name].poll()) is None:
                    continue
                if code:
                    told = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()[-400:]
                    raise RuntimeError(f"{name} ended with {code}: {told}")
                seconds[name] = time.perf_counter() - begun
            time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return seconds
