"""A step in two DDP workers: BatchNorm over both, accumulation without extra collectives, and how often they meet."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.clips.batch import Batch
from pipeline.config import STUDENTS
from pipeline.methods import build_method
from pipeline.training.checkpoints import checkpoint
from pipeline.training.model_options import apply_train_options
from pipeline.training.monitoring.stopwatch import Stopwatch, time_collectives
from pipeline.training.optimizer import build_optimizer
from pipeline.training.step import StepContext, take_step
from tests.methods.traces import CLASSES, VIDEOS, batch_of, small_config
from tests.two_processes import SHARED, run_two

pytestmark = SHARED

CPU = torch.device("cpu")
LATE_SECONDS = 2.0
CLIP = {"frames": 4, "fps": 8, "size": 16}
CASES: dict[str, dict[str, Any]] = {
    "own statistics": {"primary": {"network": {"depth": 10, "width": 8}, "clip": CLIP}},
    "statistics of all": {"primary": {"network": {"depth": 10, "width": 8}, "clip": CLIP}, "train": {"sync_batch_norm": True}},
    "running means": {"train": {"ema_decay": 0.9}},
    "in two parts": {"method": {"name": "supervised"}, "train": {"accumulation": 2}},
}


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    rows = slice(rank * len(batch.rows) // world, (rank + 1) * len(batch.rows) // world)
    names = ("rows", "videos", "labels", "primary", "auxiliary")
    return replace(batch, **{name: getattr(batch, name)[rows] for name in names})


def train(case: str, rank: int = 0, world: int = 1) -> tuple[dict[str, torch.Tensor], list[float], Counter[str], float]:
    """State after two steps, losses, and of a third, which the second worker begins late: how often which collective was
    called, and the seconds of waiting for it."""
    sections = CASES[case]
    config = small_config(**{**sections, "train": {"warmup_steps": 0, **sections.get("train", {})}})
    torch.manual_seed(0)
    method = apply_train_options(build_method(config, CLASSES, VIDEOS, VIDEOS // 2), config.train)
    wrapped: nn.Module = DistributedDataParallel(method) if world > 1 else method
    optimizers = {name: build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS}
    state = checkpoint.TrainState(method, method.students, optimizers, {})
    watch = Stopwatch(CPU)
    time_collectives(wrapped, watch)
    losses, context = [], StepContext(rank, CPU, 1.0)
    for state.step in range(2):
        losses.append(float(take_step(wrapped, state, share_of(batch_of(state.step), rank, world), config, context)["loss"]))
    weights = {name: value.clone() for name, value in method.state_dict().items()}
    watch.read()
    time.sleep(LATE_SECONDS if rank == 1 else 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        take_step(wrapped, state, share_of(batch_of(2), rank, world), config, context)
    counts = Counter({event.key: event.count for event in profile.key_averages() if event.key.startswith("gloo:")})
    return weights, losses, counts, watch.read().get("collective", 0.0)


def worker(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save({case: train(case, rank, 2) for case in CASES}, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    run_two(worker, folder, seconds=110)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["statistics of all", "running means", "in two parts"])
def test_two_workers_equal_one(case: str, two: list[dict[str, Any]]) -> None:
    weights, losses, *_ = train(case)
    for name, value in weights.items():
        if "num_batches_tracked" not in name:
            assert torch.allclose(two[0][case][0][name], value, atol=2e-4), name
            assert torch.allclose(two[1][case][0][name], two[0][case][0][name], atol=1e-6), name
    means = [(one + other) / 2 for one, other in zip(two[0][case][1], two[1][case][1], strict=True)]
    assert means == pytest.approx(losses, rel=1e-3)


def test_own_statistics_are_others(two: list[dict[str, Any]]) -> None:
    """Otherwise the test above could not fail."""
    weights, *_ = train("own statistics")
    name = next(name for name in weights if name.endswith("running_var"))
    assert not torch.allclose(two[0]["own statistics"][0][name], weights[name], rtol=1e-3)


def test_workers_meet_once_a_bucket_and_once_for_the_contrast(two: list[dict[str, Any]]) -> None:
    """All that they exchange in a step. The students fit one bucket. The contrast gathers features and adds up their gradients;
    no loss item costs more. DDP sends the first worker's BatchNorm statistics, numbers and counts, before the passes."""
    counts = {case: {name.removeprefix("gloo:"): number for name, number in two[0][case][2].items()} for case in CASES}
    assert counts["running means"] == {"all_reduce": 2, "all_gather": 1}
    assert counts["in two parts"] == {"all_reduce": 1}
    assert counts["own statistics"] == {"all_reduce": 2, "all_gather": 1, "broadcast": 2}


def test_waiting_for_a_slower_worker_is_collective_time(two: list[dict[str, Any]]) -> None:
    """Without a contrast the two meet in DDP's bucket alone."""
    first, second = (one["in two parts"][3] for one in two)
    assert first > 0.8 * LATE_SECONDS and 0 < second < first
    assert train("in two parts")[3] == 0


def test_no_parameter_is_ever_unused(repository: Path) -> None:
    """DDP's search for unused parameters walks the graph in every step; without it, one that gets no gradient is an error."""
    assert not [path for path in (repository / "pipeline").rglob("*.py") if "find_unused" + "_parameters" in path.read_text()]
