"""The real Ray stream: in order, each row once, bounded, and started in the same time however long the run."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from pipeline.clips.plan import worker_rows
from pipeline.clips.pressure import TICKETS, store_use
from pipeline.clips.source import Source, open_source
from pipeline.clips.stream import make_deal, ray_stream, shard_batches
from pipeline.config import load_config
from pipeline.resources import Resources

FRAMES, SIZE = 4, 40


class Blank(Source):
    """Decodes nothing: clips say their row. Only what moves them is under test."""

    def rows(self, rows, pool=None):  # type: ignore[no-untyped-def]
        slots = (len(rows), self.plan.slots)
        clips = np.broadcast_to((rows % 251).astype(np.uint8)[:, None, None, None, None, None], (*slots, FRAMES, SIZE, SIZE, 3))
        return {
            "row": rows,
            "video": self.plan.videos(np.maximum(rows, 0)),
            "label": np.zeros(slots, np.int64),
            "primary": clips.copy(),
            "auxiliary": clips.copy(),
            "quarantined": np.array(["[]"] * len(rows)),
            "seconds": np.zeros(len(rows)),
        }


def blank(tiny: Path, *words: str):  # type: ignore[no-untyped-def]
    config = load_config(tiny / "tiny.yaml", ["data.isolate_decoder=false", *words])
    return Blank(**vars(open_source(config)[0])), config


@ray.remote(num_cpus=0)
def consume(shard, share: int, most: int, pause: float) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """Rows of each batch; checks that the clips are those of the rows."""
    torch.set_num_threads(1)
    came: list[list[int]] = []
    for batch in shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
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
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_gets_its_rows_in_order(tiny: Path, workers: int) -> None:
    """Shares that do and do not divide, blocks of several steps, and a last block that is shorter."""
    source, config = blank(tiny, "data.labeled_per_step=4", "train.steps=50", "data.clips_per_block=40")
    deal = make_deal(source, config, 7, workers)
    assert deal.steps_per_block > 1 and (50 - 7) % deal.steps_per_block
    shards = ray_stream(source, config, 7, Resources(workers, 0, 0.5, False)).streaming_split(workers, equal=True)
    came = ray.get([consume.remote(shard, deal.share, 1000, 0.0) for shard in shards])
    for worker, batches in enumerate(came):
        assert batches == worker_rows(np.arange(7, 50), 4, worker, workers).tolist()


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_of_a_hundred_million_steps_starts_at_once(tiny: Path) -> None:
    """200 M blocks, none of which is listed anywhere: 20,000 listed ones took minutes."""
    source, config = blank(tiny, "train.steps=100000000")
    begun = time.monotonic()
    dataset = ray_stream(source, config, 0, Resources(2, 0, 0.5, False))
    assert time.monotonic() - begun < 20
    shards = dataset.streaming_split(2, equal=True)
    came = ray.get([consume.remote(shard, 1, 600, 0.0) for shard in shards])
    assert came == [worker_rows(np.arange(600), 2, worker, 2).tolist() for worker in (0, 1)]
    assert make_deal(source, config, 0, 2).blocks > 10**7 and TICKETS < 1000


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_slow_trainer_neither_spills_nor_fills_the_store(tiny: Path) -> None:
    """Blocks of 10 MB, of which the store of 500 MB would hold 50: as many wait as ``blocks_ahead`` says, and no more."""
    source, config = blank(tiny, "train.steps=4000", "data.clips_per_block=260", "data.blocks_ahead=2")
    block = 260 * 2 * FRAMES * SIZE * SIZE * 3
    before = store_use()
    (shard,) = ray_stream(source, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    slow = consume.remote(shard, 2, 130, 0.12)
    most = 0
    while not ray.wait([slow], timeout=0.2)[0]:
        most = max(most, store_use().used - before.used)
    assert ray.get(slow) == worker_rows(np.arange(130), 2, 0, 1).tolist()
    # two that wait, two decode tasks that had begun, and in the consumer's hands one, one fetched and one on its way
    assert 2 * block < most < 8 * block
    assert store_use().spilled == before.spilled
