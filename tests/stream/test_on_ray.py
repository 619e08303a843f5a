"""The real Ray stream: in order, each row once, bounded, and started in the same time however long the run."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    ResourceRequestPriority,
    get_or_create_autoscaling_coordinator,
)

from pipeline.clips.plan import compute_worker_rows
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.ray_cluster.resources import Resources
from pipeline.stream.backpressure import TICKETS
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.in_process import load_batches
from pipeline.stream.object_store import read_store_figures, read_store_use
from pipeline.stream.on_ray import build_ray_stream, read_shard_batches
from pipeline.training.on_ray.prometheus import Gauges
from tests.stream.blank_videos import FRAMES, SIZE, blank, is_child


@ray.remote(num_cpus=0)
def consume(shard, share: int, most: int, pause: float) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """Rows of each batch; checks that the clips are those of the rows."""
    torch.set_num_threads(1)
    came: list[list[int]] = []
    for batch in read_shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
        assert batch.primary.shape[2:] == (FRAMES, SIZE, SIZE, 3) and batch.primary.dtype == torch.uint8
        assert (batch.primary == (batch.rows % 251)[:, None, None, None, None, None]).all()
        came.append(batch.rows.tolist())
        if len(came) == most:
            break
        time.sleep(pause)
    return came


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_hundred_million_steps_start_at_once_on_a_fraction_of_a_cpu(tiny: Path) -> None:
    """200 M blocks, none of which is listed anywhere: 20,000 listed ones took minutes. Ray Data is told that there is no CPU:
    docs/measurements.md."""
    source, config = blank(tiny, "train.steps=100000000")
    coordinator = get_or_create_autoscaling_coordinator()
    request = {"resources": [{"CPU": 1.5}], "expire_after_s": 600, "priority": ResourceRequestPriority.HIGH}
    ray.get(coordinator.request_resources.remote("train", **request))
    try:
        begun = time.monotonic()
        dataset = build_ray_stream(source, config, 0, Resources(2, 0.75, 0.5, False))
        assert time.monotonic() - begun < 20
        shards = dataset.streaming_split(2, equal=True)
        came = ray.get([consume.remote(shard, 1, 20, 0.0) for shard in shards], timeout=60)
    finally:
        ray.get(coordinator.cancel_request.remote("train"))
    assert came == [compute_worker_rows(np.arange(20), 2, worker, 2).tolist() for worker in (0, 1)]
    assert lay_out_blocks(source, config, 0, 2).blocks > 10**7 and TICKETS < 1000


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_gets_its_rows_in_order(tiny: Path, workers: int) -> None:
    """Shares that do and do not divide, blocks of several steps, and a last block that is shorter."""
    source, config = blank(tiny, "data.labeled_per_step=4", "train.steps=20", "data.clips_per_block=40")
    layout = lay_out_blocks(source, config, 7, workers)
    assert layout.steps_per_block > 1 and (20 - 7) % layout.steps_per_block
    shards = build_ray_stream(source, config, 7, Resources(workers, 0, 0.5, False)).streaming_split(workers, equal=True)
    came = ray.get([consume.remote(shard, layout.share, 1000, 0.0) for shard in shards])
    for worker, batches in enumerate(came):
        assert batches == compute_worker_rows(np.arange(7, 20), 4, worker, workers).tolist()


@ray.remote(num_cpus=0)
def clips_of_rows(shard, share: int) -> dict[int, tuple[bytes, bytes]]:  # type: ignore[no-untyped-def]
    """By run row, the bytes of both students' clips."""
    torch.set_num_threads(1)
    found = {}
    for batch in read_shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
        for row, one, other in zip(batch.rows.tolist(), batch.primary, batch.auxiliary, strict=True):
            found[row] = one.numpy().tobytes(), other.numpy().tobytes()
    return found


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_segments_are_the_same_bytes_from_ray_and_in_this_process(tiny: Path) -> None:
    """For two workers; what each frame's time is drawn by does not know who decodes."""
    words = ["primary.clip.sampling=segments", "auxiliary.clip.sampling=segments", "auxiliary.clip.frames=6", "train.steps=6"]
    config = load_config(tiny / "tiny.yaml", words)
    source = open_source(config)[0]
    shards = build_ray_stream(source, config, 0, Resources(2, 0, 0.5, False)).streaming_split(2, equal=True)
    share = lay_out_blocks(source, config, 0, 2).share
    came: dict[int, tuple[bytes, bytes]] = {}
    for part in ray.get([clips_of_rows.remote(shard, share) for shard in shards]):
        came |= part
    here: dict[int, tuple[bytes, bytes]] = {}
    for batch in load_batches(source, config, 0):
        for row, one, other in zip(batch.rows.tolist(), batch.primary, batch.auxiliary, strict=True):
            here[row] = one.numpy().tobytes(), other.numpy().tobytes()
    assert came == here and len(here) == 12 and len(set(here.values())) == 12


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_slow_trainer_neither_spills_nor_fills_the_store(tiny: Path) -> None:
    """Blocks of 10 MB, of which the store of 500 MB would hold 50: as many wait as ``blocks_ahead`` says, and no more."""
    source, config = blank(tiny, "train.steps=4000", "data.clips_per_block=260", "data.blocks_ahead=2")
    block = 260 * 2 * FRAMES * SIZE * SIZE * 3
    before = read_store_use()
    (shard,) = build_ray_stream(source, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    slow = consume.remote(shard, 2, 65, 0.12)
    most = 0
    while not ray.wait([slow], timeout=0.2)[0]:
        most = max(most, read_store_use().used - before.used)
    assert ray.get(slow) == compute_worker_rows(np.arange(65), 2, 0, 1).tolist()
    # two that wait, two of tasks that had begun and two that these hold already, and up to four on the consumer's side
    assert 2 * block < most < 10.5 * block
    assert read_store_use().spilled == before.spilled


def test_decode_tasks_do_not_import_torch() -> None:
    """Their processes' first block would wait for it."""
    modules = "clips.isolated_decode, pipeline.clips.source, pipeline.clips.whole_videos"
    modules += ", pipeline.stream.backpressure, pipeline.stream.object_store"
    code = f"import sys, pipeline.{modules}; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False"]


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_gets_the_streams_figures() -> None:
    """From the agent that Prometheus scrapes."""
    record = {"seconds/data_share": 0.25, "quarantined": 3, "loss": 1.0, **read_store_figures()}
    assert record["memory/spilled_megabytes"] >= 0
    Gauges("seen")(record)
    (node,) = ray.nodes()
    wanted = re.compile(r'^ray_actnetformer_seconds{[^}]*of="data_share"[^}]*run="seen"[^}]*} 0.25$', re.MULTILINE)
    until, page = time.monotonic() + 60, ""
    while time.monotonic() < until and not wanted.search(page):
        time.sleep(1)
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
            page = answer.read().decode()
    assert wanted.search(page)
    assert "ray_actnetformer_quarantined{" in page


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("ray_cluster")
def test_rays_loop_does_not_spin_while_nobody_takes_blocks(tiny: Path) -> None:
    """It looked thousands of times a second, and took half a core from the training."""
    source, config = blank(tiny, "train.steps=2000", "data.clips_per_block=6")
    others = _coordinators()
    (shard,) = build_ray_stream(source, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    batches = read_shard_batches(shard, lay_out_blocks(source, config, 0, 1).share, torch.device("cpu"), timeout=60.0)
    next(batches)
    (coordinator,) = _coordinators() - others
    time.sleep(3)  # until as many blocks wait as may
    before = _cpu_seconds(coordinator)
    time.sleep(4)
    assert _cpu_seconds(coordinator) - before < 4 * 0.3


def _coordinators() -> set[int]:
    """Of this test's cluster."""
    numbers = {int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_child(path)}
    return {pid for pid in numbers if "SplitCoordinator" in _name(pid)}


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
