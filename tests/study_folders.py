"""Folders of studies as they lie after a night: an ablation that is not done, a map of two rates, a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.clips.batch import Batch
from pipeline.manifest.schema import Manifest
from pipeline.training.monitoring.score_log import ScoreLog

SaveRun = Callable[..., Path]


def write_study(folder: Path, lines: list[dict[str, Any]], **about: Any) -> Path:
    """study.json and trials.jsonl as jobs.ablate and jobs.search write them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"name": folder.name, "kind": "ablation", **about}, indent=1))
    (folder / "trials.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def line(number: int, run: str, state: str = "complete", **params: Any) -> dict[str, Any]:
    """Of an ablation's trials.jsonl."""
    values = dict.fromkeys(("mean", "primary", "auxiliary"), 0.5 if state == "complete" else None)
    return {
        "number": number, "state": state, "params": params, "values": values, "seconds": None, "run_folder": run, "message": "",
    }  # fmt: skip


def write_scores(folder: Path, hidden: torch.Tensor, scores: dict[str, torch.Tensor], steps: int = 1) -> None:
    """What training saves of the weak views of len(hidden) videos, the same in each step."""
    clips, both = torch.zeros(1), torch.stack([torch.zeros_like(hidden), hidden], dim=1)
    batch = Batch(torch.arange(len(hidden)), torch.arange(len(hidden))[:, None].repeat(1, 2), both, clips, clips)
    log = ScoreLog(1, folder, rank=0, step=0)
    for step in range(1, steps + 1):
        rest = log.keep(step, {"loss": torch.tensor(1.0), **{f"scores/{name}": value for name, value in scores.items()}}, batch)
        assert list(rest) == ["loss"]
    log.write(steps)


def keep_nothing(path: Path, until: int) -> None:
    """Lines in which the primary keeps no label up to this step."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines = [line | {"mask_rate/primary_to_auxiliary": 0.0} if line["step"] <= until else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_weights(parent: Path, manifest: Manifest, save_run: SaveRun) -> Path:
    """Contrast weight 0, 1, 2, 4 x 3 seeds; the last run is waiting, one keeps no label for long."""
    folder, trials = parent / "contrast_weight", []
    for number, (seed, weight) in enumerate((seed, weight) for seed in range(3) for weight in (0, 1, 2, 4)):
        name = f"contrast_weight-{weight}_seed-{seed}"
        if number < 11:
            words = (f"method.contrast.weight={weight}", f"run.name={name}")
            save_run(folder, manifest, seed=seed, margin=4.0 if weight == 1 else 0.2 * weight, overrides=words)
        state = "complete" if number < 11 else "waiting"
        trials.append(line(number, name, state, **{"method.contrast.weight": weight, "run.seed": seed}))
    keep_nothing(folder / "contrast_weight-4_seed-1" / "metrics.jsonl", 500)
    command = "python -m jobs.ablate contrast_weight --config c.yaml --seeds 3"
    baseline = {"method.contrast.weight": 0}
    return write_study(folder, trials, question="How much contrast helps?", command=command, baseline=baseline)


def write_rates(parent: Path, manifest: Manifest, save_run: SaveRun) -> Path:
    """Frame rates 4, 8, 16 x 16, 32, one seed, no study.json."""
    folder = parent / "frame_rate"
    for primary in (4, 8, 16):
        for auxiliary in (16, 32):
            words = (f"primary.clip.fps={primary}", f"auxiliary.clip.fps={auxiliary}", f"run.name=fps-{primary}-{auxiliary}")
            save_run(folder, manifest, margin=1 + primary / 16, overrides=words)
    return folder


def search_trials(trials: int = 30) -> list[dict[str, Any]]:
    """Trials whose value has its best at a learning rate of 0.06 and does not depend on the threshold; one failed, one runs."""
    generator, lines = np.random.default_rng(0), []
    for number in range(trials):
        rate, threshold = 10 ** generator.uniform(-3, 0), generator.uniform(0.5, 0.95)
        source = str(generator.choice(["other", "self", "mean"]))
        value = 0.75 - 0.12 * (np.log10(rate) + 1.2) ** 2 + 0.02 * generator.normal()
        state = {13: "failed", trials - 1: "running"}.get(number, "complete" if number % 3 else "pruned")
        judged = state in ("complete", "pruned")
        lines.append({
            "number": number, "state": state, "seconds": 100.0 + number, "run_folder": f"trial-{number:05d}",
            "params": {"primary.optimizer.lr": rate, "method.confidence_threshold": threshold, "method.labels.source": source},
            "values": {"mean": value if judged else None, "seconds": 400 - 5.0 * number if judged else None},
            "message": "worker 0: the loss is not finite" if state == "failed" else "",
        })  # fmt: skip
    return lines


def write_search(parent: Path, manifest: Manifest, save_run: SaveRun) -> Path:
    """``search_trials`` with run folders of the first twelve."""
    folder, trials = parent / "rates", search_trials()
    for trial in trials[:12]:
        words = (*(f"{key}={value}" for key, value in trial["params"].items()), f"run.name={trial['run_folder']}")
        save_run(folder, manifest, margin=1.0, overrides=(*words, "evaluation.split=validation"))
    space = {
        "primary.optimizer.lr": {"low": 1e-3, "high": 1, "log": True}, "method.labels.source": ["other", "self", "mean"],
        "method.confidence_threshold": {"low": 0.5, "high": 0.95},
    }  # fmt: skip
    return write_study(folder, trials, question="Which rate is best?", space=space, trials=30, **SEARCH)


SEARCH: dict[str, Any] = {
    "kind": "search", "command": "python -m jobs.search --config c.yaml --space s.yaml", "steps": 200,
    "objectives": [{"name": "mean", "direction": "maximize"}, {"name": "seconds", "direction": "minimize"}],
}  # fmt: skip


def write_population(folder: Path) -> Path:
    """Two members of a population, the second of which copied the first at step 100 and is a run folder."""
    key = "primary.optimizer.lr"
    lineage = [{"from": 0, "until": 100, "run": "member-00", "params": {key: 0.1}},
               {"from": 100, "until": None, "run": "member-01_from-000100", "params": {key: 0.12}}]  # fmt: skip
    trials = [line(0, "member-00", **{key: 0.1}), line(1, "member-01_from-000100", **{key: 0.12})]
    (folder / "member-01_from-000100").mkdir(parents=True)
    (folder / "member-01_from-000100" / "facts.json").write_text(json.dumps({"lineage": lineage}))
    about = {**SEARCH, "objectives": SEARCH["objectives"][:1]}
    return write_study(folder, trials, space={key: {"low": 0.01, "high": 1, "log": True}}, **about)
