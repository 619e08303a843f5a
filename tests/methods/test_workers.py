"""Whole methods in two DDP workers against one process: same losses, same weights, same statistics; with equally many rows
for each, and with two and one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.collectives import set_worker_rows
from pipeline.config import STUDENTS
from pipeline.methods import build_method, compute_loss_weights, make_views
from pipeline.training.optimizer import build_optimizer, clip_gradient
from tests.methods.test_every_method import config_of
from tests.methods.test_file_labels import draw_table, make_file_labels
from tests.methods.traces import CLASSES, VIDEOS, batch_of
from tests.two_processes import SHARED, run_two

pytestmark = SHARED

STEPS = 5
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "actnetformer": ("actnetformer", {"thresholds": "flexmatch", "distribution_alignment": "labeled"}),
    "ltg": ("ltg", {"thresholds": "freematch"}),  # has projection heads, which step 0 does not use
    "tcl": ("tcl", {"thresholds": "softmatch"}),
    "svformer": ("svformer", {}),  # has teachers, which DDP must leave alone
    "file": ("fixmatch", {"thresholds": "softmatch"}),  # and labels from a file
}
FILE_LABELS = {"weight": 1.0, "file": "labels.parquet", "thresholds": "freematch", "hard": False}


SHARES = {4: [2, 2], 3: [2, 1]}
"""Rows of a step -> those of both workers."""
Parts = dict[tuple[str, int], tuple[dict[str, torch.Tensor], list[float]]]


def _train(case: str, rows: int, rank: int = 0, world: int = 1) -> tuple[dict[str, torch.Tensor], list[float]]:
    name, labels = CASES[case]
    counts = SHARES[rows] if world > 1 else [rows]
    set_worker_rows(counts)
    weight = counts[rank] * world / rows
    config = config_of(name, labels, supervised_steps=1, **({"file_label": FILE_LABELS} if case == "file" else {}))
    if rows == 3:
        # batches of other sizes are rounded otherwise, and a ReLU whose input is 0 but for that may decide 8 % of a gradient
        smooth = config.primary.model_copy(update={"network": config.auxiliary.network})
        config = config.model_copy(update={"primary": smooth})
    torch.manual_seed(0)
    file_labels = make_file_labels(draw_table(), soft=True) if case == "file" else None
    method = build_method(config, CLASSES, VIDEOS, VIDEOS // 2, file_labels=file_labels)
    wrapped: nn.Module = DistributedDataParallel(method) if world > 1 else method
    optimizers = {part: build_optimizer(method.students[part], getattr(config, part).optimizer) for part in STUDENTS}
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        whole, share = batch_of(step), slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        names = ("rows", "videos", "labels", "primary", "auxiliary")
        batch = replace(whole, **{part: getattr(whole, part)[share] for part in names})
        weights = compute_loss_weights(config.method, step)
        results = wrapped(make_views(batch, config, 0, "cpu", unlabeled=weights.has_unlabeled), weights)
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        (weight * results["loss"]).backward()
        for part, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            clip_gradient(method.students[part], None)
            optimizer.step()
        losses.append(weight * float(results["loss"].detach()))
        if case == "file" and world == 1 and step:
            assert 0 < results["mask_rate/file_to_both"] < 1
    return method.state_dict(), losses


def _worker(rank: int, meeting: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save({(case, rows): _train(case, rows, rank, 2) for case in CASES for rows in SHARES}, f"{results}/{rank}.pt")
    dist.destroy_process_group()
    set_worker_rows(())  # the next test's workers have equally many


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Parts]:
    folder = tmp_path_factory.mktemp("two")
    run_two(_worker, folder, seconds=110)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("rows", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_both_workers_end_alike(case: str, rows: int, two: list[Parts]) -> None:
    one, other = (part[case, rows][0] for part in two)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@pytest.mark.parametrize("rows", SHARES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "svformer"])  # which tubes are mixed is each worker's
def test_two_workers_train_as_one(case: str, rows: int, two: list[Parts]) -> None:
    state, losses = _train(case, rows)
    for number, loss in enumerate(losses):
        assert sum(part[case, rows][1][number] for part in two) / 2 == pytest.approx(loss, rel=1e-4), number
    for key, value in state.items():
        assert torch.allclose(two[0][case, rows][0][key].float(), value.float(), rtol=1e-3, atol=1e-4), key
    assert any(".policies." in key for key in state)
