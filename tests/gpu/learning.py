"""That training on the device learns: the demo's pair of runs, two seeds, by the commands that users type."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.gpu.table import Row, at_least, measured

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"supervised": ["method.name=supervised"], "actnetformer": []}


def check_learning(device: torch.device, small: bool) -> list[Row]:
    """Top-1 of the mean of both students, on test videos of eight actions."""
    videos, steps, seeds = (64, 8, [0]) if small else (320, 360, [0, 1])
    short = [f"train.checkpoint_every={steps}", "train.warmup_steps=2", "method.supervised_steps=2"] if small else []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        labeled = ["--videos", str(videos), "--classes", "8", "--seed", "0", "--labeled", "4/class"]
        _run("prepare", "synthetic", str(data), *labeled)
        found: dict[str, list[float]] = {name: [] for name in METHODS}
        seconds = []
        for seed in seeds:
            for name, words in METHODS.items():
                run, begun = f"{name}_{seed}", time.perf_counter()
                _run(
                    "train", "--config", "jobs/configs/demo.yaml", f"run.name={run}", f"run.seed={seed}",
                    f"run.storage_path={folder}/runs", f"data.manifest={data}/manifest.parquet", "scale.workers=0",
                    f"scale.gpu={'true' if device.type == 'cuda' else 'false'}", f"train.steps={steps}", *words,
                    *short,
                )  # fmt: skip
                seconds.append(time.perf_counter() - begun)
                evaluation = json.loads((Path(folder) / "runs" / run / "evaluation.json").read_text(encoding="utf-8"))
                found[name].append(100 * evaluation["mean"]["top1"])
    rows = [measured(f"{name}: top-1 of the mean of both students", values, "%") for name, values in found.items()]
    rows.append(measured(f"a run of {steps} steps, with start and evaluation", seconds, "s"))
    gain = sum(found["actnetformer"]) / len(seeds) - sum(found["supervised"]) / len(seeds)
    return [*rows, at_least("ActNetFormer over supervised", gain, 5, "points")]


def _run(*words: str) -> None:
    command, *others = words
    done = subprocess.run([sys.executable, "-m", f"jobs.{command}", *others], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"jobs.{command} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-400:]}")
