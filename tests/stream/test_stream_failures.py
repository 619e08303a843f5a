"""What ends a stream of decoded clips, and what it survives: killed decoders, files that change, tasks that crash."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from pipeline.clips.plan import compute_worker_rows
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.ray_cluster.resources import Resources
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.on_ray import DECODE_RETRIES, NoBatch, build_ray_stream, find_cause, read_shard_batches
from tests.stream.blank_videos import Blank, blank, is_child


class Crashing(Blank):
    """Its last block ends the decode task's own process, each time."""

    def decode_rows(self, rows, pool=None):  # type: ignore[no-untyped-def]
        if 15 in rows:
            with Path(self.crashes).open("a") as file:
                file.write("crashed\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().decode_rows(rows, pool)


@ray.remote(num_cpus=0)
class Trainer:
    """Takes batches as a train worker does, and writes each row that it trained to a file of its own, at once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def pid(self) -> int:
        return os.getpid()

    def train(self, shard, share: int) -> int:  # type: ignore[no-untyped-def]
        torch.set_num_threads(1)
        with open(self.path, "a", encoding="ascii", buffering=1) as file:
            for batch in read_shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
                file.write("".join(f"{row}\n" for row in batch.rows.tolist()))
        return 0


def decoders() -> list[int]:
    """Processes that run decode tasks of this test's cluster."""
    names = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_child(path)}
    return [pid for pid, name in names.items() if b"MapBatches(decode_ticket)" in name]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("seed", range(3))
def test_kills_and_other_numbers_of_workers_train_the_plan_once(tiny: Path, tmp_path: Path, seed: int) -> None:
    """Trainers and decode processes die at random moments; 2 workers, then 1, 3 and 2 go on from the last checkpoint, a
    multiple of 10 steps. What stands in the files before each checkpoint, together, is the plan, each row once."""
    steps, every, random = 240, 10, np.random.default_rng(seed)
    source, config = blank(tiny, "data.labeled_per_step=6", f"train.steps={steps}", "data.clips_per_block=30")
    trained: list[int] = []
    first, kills, decoders_killed = 0, 0, 0
    for attempt in range(100):
        workers = (2, 1, 3, 2)[attempt % 4]
        shards = build_ray_stream(source, config, first, Resources(workers, 0, 0.5, False)).streaming_split(workers, equal=True)
        files = [tmp_path / f"{attempt}-{worker}" for worker in range(workers)]
        trainers = [Trainer.remote(str(file)) for file in files]
        pids = ray.get([trainer.pid.remote() for trainer in trainers])
        share = lay_out_blocks(source, config, first, workers).share
        runs = [trainer.train.remote(shard, share) for trainer, shard in zip(trainers, shards, strict=True)]
        if kills < 8:
            until = time.monotonic() + float(random.uniform(0.5, 3))
            spare = 2  # more would kill each decode task of a slow machine before it ends
            while time.monotonic() < until or not all(file.exists() and file.stat().st_size for file in files):
                if spare and random.random() < 0.25 and (running := decoders()):
                    os.kill(int(random.choice(running)), signal.SIGKILL)
                    spare, decoders_killed = spare - 1, decoders_killed + 1
                time.sleep(0.05)
            os.kill(int(random.choice(pids)), signal.SIGKILL)
            kills += 1
        ray.wait(runs, num_returns=workers, timeout=120 if kills == 8 else 0)
        for trainer in trainers:
            ray.kill(trainer)
        come = [[int(line) for line in file.read_text().split("\n")[:-1]] for file in files]
        reached = min(len(rows) // len(compute_worker_rows([0], 6, worker, workers)[0]) for worker, rows in enumerate(come))
        saved = first + reached // every * every if first + reached < steps else steps
        for worker, rows in enumerate(come):
            planned = compute_worker_rows(np.arange(first, steps), 6, worker, workers).reshape(-1).tolist()
            assert rows == planned[: len(rows)]
            trained += [row for row in rows if row < saved * 6]
        first = saved
        if first == steps:
            break
    assert kills == 8 and decoders_killed > 0
    assert sorted(trained) == list(range(steps * 6))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_manifest_that_is_written_again_under_its_tasks_ends_the_stream(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would decode other videos than the plan means."""
    monkeypatch.setattr("pipeline.manifest.memory_mapped.open_manifest.__defaults__", (None, 1))
    was = read_manifest(tiny / "manifest.parquet")
    path, labels = tmp_path / "manifest.parquet", tmp_path / "labels.parquet"
    written = write_manifest(was.table, path, was.classes, was.root, "made")
    write_labels(draw_labels(written, "2/class", 0), written, labels)
    config = load_config(tiny / "tiny.yaml", [f"data.manifest={path}", f"data.labels={labels}"])
    (shard,) = build_ray_stream(open_source(config)[0], config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    write_manifest(was.table.slice(1), path, was.classes, was.root, "made")
    with pytest.raises(UserError, match=r"^manifest \S*manifest\.parquet was written again while a command used it"):
        next(read_shard_batches(shard, 2, torch.device("cpu"), timeout=60.0))


def test_a_task_that_died_is_said_with_the_remedy() -> None:
    died = find_cause(ray.exceptions.WorkerCrashedError())
    assert isinstance(died, NoBatch) and "data.isolate_decoder=true" in str(died)
    assert find_cause(ValueError("something else")) is None
    mistake = UserError("no such file")
    mistake.__cause__ = OSError("2")
    assert str(find_cause(mistake)) == "no such file"


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_decode_task_that_crashes_each_time_ends_in_a_message(tiny: Path, tmp_path: Path) -> None:
    """Without a limit Ray starts it again for ever."""
    source, config = blank(tiny, "train.steps=8")
    crashing = Crashing(**vars(source))
    object.__setattr__(crashing, "crashes", str(tmp_path / "crashes"))
    (shard,) = build_ray_stream(crashing, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    with pytest.raises(NoBatch, match=r"died 4 times on the same videos .* data\.isolate_decoder=true"):
        list(read_shard_batches(shard, lay_out_blocks(source, config, 0, 1).share, torch.device("cpu"), timeout=60.0))
    assert len((tmp_path / "crashes").read_text().split()) == 1 + DECODE_RETRIES


class Silent:
    """A shard of a stream whose decoders hang."""

    def iter_batches(self, **_: object):  # type: ignore[no-untyped-def]
        time.sleep(1.5)
        yield from ()


def test_a_stream_that_stands_still_is_said_with_what_it_waits_for() -> None:
    with pytest.raises(NoBatch, match=r"no batch arrived within 1 s \(data\.decode_timeout_seconds\): a decoder hangs"):
        next(read_shard_batches(Silent(), 1, torch.device("cpu"), timeout=0.1))  # type: ignore[arg-type]
