"""A cluster of real raylets with a run on it, and what is done to its processes. Each of them was started here."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray.cluster_utils import Cluster

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run_folder.contents import read_metrics
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import FILES
from pipeline.training.on_ray.restarts import FAILURES, MONITOR

CPUS_PER_NODE = 2
STORE_BYTES = 200_000_000
LOOK_SECONDS = 0.05
NOTICE_SECONDS = 20
"""Between the word that a node will be taken away and its end."""
LEAST_MEMORY = 2_500_000_000
"""Bytes left at which Ray is to end processes; where it would have to be less, the run itself needs them."""
MEMORY_PIECE = 100_000_000
"""Bytes taken at a time when memory is to run low."""
TOLD_SECONDS = 60.0
"""For a failure to be on record."""
THERE_SECONDS = 10.0
"""For a process of a kind to be there: decode tasks come and go."""
EXITS = {"driver": -signal.SIGKILL, "terminate": 128 + signal.SIGTERM, "interrupt": 128 + signal.SIGINT}
"""Exit codes of a driver that was killed, stopped, interrupted."""


def used_memory() -> int:
    """Bytes, as Ray's monitor counts them: what the kernel says is not available, or a container's own. Ray's Python tells the
    latter, but up to 1 GB too little outside of containers."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    assert found is not None
    return int(max(get_used_memory(), get_system_memory() - 1024 * int(found[1])))


@dataclass
class Ring:
    """The cluster and the run on it. ``seed`` chooses kinds and moments."""

    config: Config
    words: Sequence[str]
    """Arguments of jobs.train, less the run's name."""
    cluster: Cluster
    random: random.Random
    kinds: Sequence[str]
    """Of ``KINDS``, that may come."""
    log: Path
    driver: subprocess.Popen[bytes] | None = None
    nodes: list[Any] = field(default_factory=list)
    least_memory: int = field(default_factory=lambda: (get_system_memory() - used_memory()) // 4)
    """Bytes."""

    def start(self, name: str) -> None:
        """Start the driver."""
        command = [sys.executable, "-m", "jobs.train", *self.words, f"run.name={name}"]
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1"}
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def add_node(self) -> None:
        """One more node for workers and decoders. Its memory monitor ends processes when a quarter is left of what was free."""
        limit = {}
        if self.least_memory >= LEAST_MEMORY:
            limit = {"RAY_memory_usage_threshold": f"{1 - self.least_memory / get_system_memory():.3f}"}
        self.nodes.append(self.cluster.add_node(num_cpus=CPUS_PER_NODE, object_store_memory=STORE_BYTES, env_vars=limit))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """metrics.jsonl of a run."""
        return read_metrics(Path(self.config.run.storage_path) / name)

    def over(self) -> bool:
        """Whether the run has ended as it should."""
        assert self.driver is not None
        return self.driver.poll() == 0

    def wait(self, name: str, until: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true before the time was over or the run ended. A driver that was ended is started again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if until():
                return True
            assert self.driver is not None
            code = self.driver.poll()
            if code == 0:
                return until()
            if code is not None:
                if code not in EXITS.values():
                    raise UserError(f"{name} ended with exit code {code}: see {self.log}")
                self.start(name)
            time.sleep(LOOK_SECONDS)
        return False


def possible_kinds(ring: Ring) -> list[str]:
    """Of those that may come. Raises UserError if this machine has no memory for the only one."""
    kinds = [kind for kind in ring.kinds if kind != "full" or ring.least_memory >= LEAST_MEMORY]
    if not kinds:
        raise UserError(f"--kinds full needs {4 * LEAST_MEMORY / 1e9:g} GB of free memory: name another kind, or free some")
    return kinds


def next_kind(ring: Ring, done: Sequence[str]) -> str:
    """At random among the kinds that came least often."""
    counts = {kind: done.count(kind) for kind in possible_kinds(ring)}
    return ring.random.choice([kind for kind, count in counts.items() if count == min(counts.values())])


def _kill_worker(ring: Ring, name: str) -> str:
    return _signal(ring, "RayTrainWorker", signal.SIGKILL, "a train worker was killed")


def _freeze_worker(ring: Ring, name: str) -> str:
    return _signal(ring, "RayTrainWorker", signal.SIGSTOP, "a train worker stood still")


def _freeze_start(ring: Ring, name: str) -> str:
    """A worker is killed, and one of those that come in its place stands still before it has begun."""
    before, deadline = set(_ours("RayTrainWorker")), time.monotonic() + 60
    if not before:
        return ""
    os.kill(ring.random.choice(sorted(before)), signal.SIGKILL)
    while time.monotonic() < deadline:
        for pid in set(_ours("RayTrainWorker")) - before:
            os.kill(pid, signal.SIGSTOP)
            return "a train worker stood still while starting"
        time.sleep(0.01)
    return "a train worker was killed, none came within 60 s"


def _kill_decode_task(ring: Ring, name: str) -> str:
    return _signal(ring, "MapBatches", signal.SIGKILL, "a decode task was killed")


def _kill_decoder(ring: Ring, name: str) -> str:
    return _signal(ring, "pipeline.processes.child", signal.SIGKILL, "a decoding process was killed")


def _take_memory(ring: Ring, name: str) -> str:
    """No more memory for a train worker: its next large allocation fails."""
    pids = list(_ours("RayTrainWorker"))
    if not pids:
        return ""
    pid = ring.random.choice(pids)
    try:
        now = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (now, now))
    except OSError:
        return ""
    return "a train worker got no more memory"


def _fill_memory(ring: Ring, name: str) -> str:
    """Memory of the machine until Ray's monitor, see ``add_node``, ends a train worker, by the run's own record of failures."""
    path = Path(ring.config.run.storage_path) / name / FAILURES
    before, told = set(_ours("RayTrainWorker")), _ended_by_monitor(path)
    taken: list[bytearray] = []
    while before and get_system_memory() - used_memory() > ring.least_memory / 2:
        taken.append(bytearray(b"x" * MEMORY_PIECE))
        time.sleep(LOOK_SECONDS)
        if any(not Path(f"/proc/{pid}").exists() for pid in before):
            taken.clear()
            if ring.wait(name, lambda: _ended_by_monitor(path) > told, TOLD_SECONDS):
                return "the machine ran low on memory, and Ray ended a train worker"
            break
    return ""


def _ended_by_monitor(path: Path) -> int:
    return path.read_text(encoding="utf-8").count(MONITOR) if path.exists() else 0


def _drain_node(ring: Ring, name: str) -> str:
    """As clouds take spot machines away: announced, and some time later gone."""
    ring.add_node()
    node = ring.nodes.pop(ring.random.randrange(len(ring.nodes) - 1))
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={ring.cluster.address}"]
    command += [f"--node-id={node.node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=chaos"]
    subprocess.run([*command, f"--deadline-remaining-seconds={NOTICE_SECONDS}"], check=True, capture_output=True)
    ring.wait(name, lambda: False, NOTICE_SECONDS)
    ring.cluster.remove_node(node, allow_graceful=False)
    return f"a node was drained, and gone {NOTICE_SECONDS} s later"


def _kill_node(ring: Ring, name: str) -> str:
    node = ring.nodes.pop(ring.random.randrange(len(ring.nodes)))
    ring.cluster.remove_node(node, allow_graceful=False)
    ring.add_node()
    return "a node was lost, another came"


def _kill_raylet(ring: Ring, name: str) -> str:
    node = ring.nodes.pop(ring.random.randrange(len(ring.nodes)))
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    ring.add_node()
    return "a raylet vanished, a node came"


def _end_driver(number: int, text: str) -> Callable[[Ring, str], str]:
    def end(ring: Ring, name: str) -> str:
        assert ring.driver is not None
        ring.driver.send_signal(number)
        try:
            code = ring.driver.wait(60)
        except subprocess.TimeoutExpired:
            return f"{text}, which did not end it within 60 s"
        if code != 0:
            ring.start(name)
        return f"{text}, exit code {code}, started again"

    return end


def _kill_after_checkpoint(ring: Ring, name: str) -> str:
    """Within 2 s after a checkpoint, in which Ray would not have committed it."""
    return _at_checkpoint(ring, name, "checkpoint_*", "a train worker was killed right after a checkpoint")


def _kill_in_checkpoint(ring: Ring, name: str) -> str:
    return _at_checkpoint(ring, name, ".checkpoint_*", "all train workers were killed while one wrote a checkpoint")


def _damage(ring: Ring, name: str) -> str:
    newest, _ = checkpoint.find_newest(Path(ring.config.run.storage_path) / name)
    if newest is None:
        return ""
    with (newest / FILES[0]).open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    return _signal(ring, "RayTrainWorker", signal.SIGKILL, "the newest checkpoint was damaged, a train worker killed")


def _at_checkpoint(ring: Ring, name: str, pattern: str, text: str) -> str:
    folder = Path(ring.config.run.storage_path) / name
    before, deadline = set(folder.glob(pattern)), time.monotonic() + 60
    while not set(folder.glob(pattern)) - before:
        if ring.over() or time.monotonic() > deadline:
            return ""
        time.sleep(0.001)
    for pid in _ours("RayTrainWorker"):
        os.kill(pid, signal.SIGKILL)
        if pattern.startswith("checkpoint"):
            break
    return text


KINDS: dict[str, Callable[[Ring, str], str]] = {
    "worker": _kill_worker,
    "freeze": _freeze_worker,
    "starting": _freeze_start,
    "task": _kill_decode_task,
    "decoder": _kill_decoder,
    "memory": _take_memory,
    "full": _fill_memory,
    "drain": _drain_node,
    "node": _kill_node,
    "raylet": _kill_raylet,
    "driver": _end_driver(signal.SIGKILL, "the driver was killed"),
    "terminate": _end_driver(signal.SIGTERM, "SIGTERM to the driver"),
    "interrupt": _end_driver(signal.SIGINT, "Ctrl-C to the driver"),
    "saved": _kill_after_checkpoint,
    "saving": _kill_in_checkpoint,
    "damage": _damage,
}


def _signal(ring: Ring, word: str, number: int, text: str) -> str:
    deadline = time.monotonic() + THERE_SECONDS
    while time.monotonic() < deadline and not ring.over():
        pids = list(_ours(word))
        if pids:
            os.kill(ring.random.choice(pids), number)
            return text
    return ""


def _ours(word: str) -> Iterator[int]:
    """Processes with the word in their command line that descend from this one."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_bytes().decode(errors="replace") and _descends(int(folder.name)):
                yield int(folder.name)
        except OSError:
            continue


def _descends(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    return False
