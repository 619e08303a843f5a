"""The real Ray stream: in order, each row once, bounded, and started in the same time however long the run."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from pipeline.clips.plan import compute_worker_rows
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import read_manifest, write_manifest
from pipeline.ray_cluster.resources import Resources
from pipeline.stream.backpressure import TICKETS, read_store_use
from pipeline.stream.batches import lay_out_blocks
from pipeline.stream.in_process import local_batches
from pipeline.stream.object_store import read_store_figures
from pipeline.stream.on_ray import DECODE_RETRIES, NoBatch, find_cause, ray_stream, shard_batches
from pipeline.training.on_ray.prometheus import Gauges

FRAMES, SIZE = 4, 40


class Blank(VideoSource):
    """Decodes nothing: clips say their row. Only what moves them is under test."""

    def decode_rows(self, rows, pool=None):  # type: ignore[no-untyped-def]
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


class Crashing(Blank):
    """Its last block ends the decode task's own process, each time."""

    def decode_rows(self, rows, pool=None):  # type: ignore[no-untyped-def]
        if 15 in rows:
            with Path(self.crashes).open("a") as file:
                file.write("crashed\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().decode_rows(rows, pool)


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
    layout = lay_out_blocks(source, config, 7, workers)
    assert layout.steps_per_block > 1 and (50 - 7) % layout.steps_per_block
    shards = ray_stream(source, config, 7, Resources(workers, 0, 0.5, False)).streaming_split(workers, equal=True)
    came = ray.get([consume.remote(shard, layout.share, 1000, 0.0) for shard in shards])
    for worker, batches in enumerate(came):
        assert batches == compute_worker_rows(np.arange(7, 50), 4, worker, workers).tolist()


@ray.remote(num_cpus=0)
def clips_of_rows(shard, share: int) -> dict[int, tuple[bytes, bytes]]:  # type: ignore[no-untyped-def]
    """By run row, the bytes of both students' clips."""
    torch.set_num_threads(1)
    found = {}
    for batch in shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
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
    shards = ray_stream(source, config, 0, Resources(2, 0, 0.5, False)).streaming_split(2, equal=True)
    share = lay_out_blocks(source, config, 0, 2).share
    came: dict[int, tuple[bytes, bytes]] = {}
    for part in ray.get([clips_of_rows.remote(shard, share) for shard in shards]):
        came |= part
    here: dict[int, tuple[bytes, bytes]] = {}
    for batch in local_batches(source, config, 0):
        for row, one, other in zip(batch.rows.tolist(), batch.primary, batch.auxiliary, strict=True):
            here[row] = one.numpy().tobytes(), other.numpy().tobytes()
    assert came == here and len(here) == 12 and len(set(here.values())) == 12


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
    assert came == [compute_worker_rows(np.arange(600), 2, worker, 2).tolist() for worker in (0, 1)]
    assert lay_out_blocks(source, config, 0, 2).blocks > 10**7 and TICKETS < 1000


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_slow_trainer_neither_spills_nor_fills_the_store(tiny: Path) -> None:
    """Blocks of 10 MB, of which the store of 500 MB would hold 50: as many wait as ``blocks_ahead`` says, and no more."""
    source, config = blank(tiny, "train.steps=4000", "data.clips_per_block=260", "data.blocks_ahead=2")
    block = 260 * 2 * FRAMES * SIZE * SIZE * 3
    before = read_store_use()
    (shard,) = ray_stream(source, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    slow = consume.remote(shard, 2, 65, 0.12)
    most = 0
    while not ray.wait([slow], timeout=0.2)[0]:
        most = max(most, read_store_use().used - before.used)
    assert ray.get(slow) == compute_worker_rows(np.arange(65), 2, 0, 1).tolist()
    # two that wait, two of tasks that had begun and two that these hold already, and up to four on the consumer's side
    assert 2 * block < most < 10.5 * block
    assert read_store_use().spilled == before.spilled


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
            for batch in shard_batches(shard, share, torch.device("cpu"), timeout=60.0):
                file.write("".join(f"{row}\n" for row in batch.rows.tolist()))
        return 0


def decoders() -> list[int]:
    """Processes that run decode tasks of this test's cluster."""
    names = {int(path.parent.name): path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if is_child(path)}
    return [pid for pid, name in names.items() if b"MapBatches(decode_ticket)" in name]


def is_child(path: Path) -> bool:
    pid = int(path.parent.name)
    try:
        while pid > 1 and pid != os.getpid():
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return False
    return pid == os.getpid()


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
        shards = ray_stream(source, config, first, Resources(workers, 0, 0.5, False)).streaming_split(workers, equal=True)
        files = [tmp_path / f"{attempt}-{worker}" for worker in range(workers)]
        trainers = [Trainer.remote(str(file)) for file in files]
        pids = ray.get([trainer.pid.remote() for trainer in trainers])
        share = lay_out_blocks(source, config, first, workers).share
        runs = [trainer.train.remote(shard, share) for trainer, shard in zip(trainers, shards, strict=True)]
        if kills < 8:
            until = time.monotonic() + float(random.uniform(0.5, 3))
            spare = 2  # more would kill each decode task of a slow machine before it ends
            while time.monotonic() < until or not all(file.exists() and file.stat().st_size for file in files):
                if spare and random.random() < 0.05 and (running := decoders()):
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
    (shard,) = ray_stream(open_source(config)[0], config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    write_manifest(was.table.slice(1), path, was.classes, was.root, "made")
    with pytest.raises(UserError, match=r"^manifest \S*manifest\.parquet was written again while a command used it"):
        next(shard_batches(shard, 2, torch.device("cpu"), timeout=60.0))


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
    (shard,) = ray_stream(crashing, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    with pytest.raises(NoBatch, match=r"died 4 times on the same videos .* data\.isolate_decoder=true"):
        list(shard_batches(shard, lay_out_blocks(source, config, 0, 1).share, torch.device("cpu"), timeout=60.0))
    assert len((tmp_path / "crashes").read_text().split()) == 1 + DECODE_RETRIES


class Silent:
    """A shard of a stream whose decoders hang."""

    def iter_batches(self, **_: object):  # type: ignore[no-untyped-def]
        time.sleep(1.5)
        yield from ()


def test_a_stream_that_stands_still_is_said_with_what_it_waits_for() -> None:
    with pytest.raises(NoBatch, match=r"no batch arrived within 1 s \(data\.decode_timeout_seconds\): a decoder hangs"):
        next(shard_batches(Silent(), 1, torch.device("cpu"), timeout=0.1))  # type: ignore[arg-type]


def test_decode_tasks_do_not_import_torch() -> None:
    """Their processes' first block would wait for it."""
    modules = "pipeline.stream.ray_tasks, pipeline.clips.source, pipeline.clips.isolated_decode"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
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
    (shard,) = ray_stream(source, config, 0, Resources(1, 0, 0.5, False)).streaming_split(1, equal=True)
    batches = shard_batches(shard, lay_out_blocks(source, config, 0, 1).share, torch.device("cpu"), timeout=60.0)
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
