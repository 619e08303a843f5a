"""Nodes that come, go, are drained or run out of memory: raylets of their own, one by ``ray start``, under one driver."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import train
from jobs.command import run
from pipeline.run_folder.contents import read_metrics
from pipeline.training.checkpoints import checkpoint
from pipeline.training.checkpoints.checkpoint_facts import read_facts
from tests.chaos.kills import used_memory

LR = ["primary.optimizer.lr=0.001", "auxiliary.optimizer.lr=0.001"]  # at 0.01 rounding grows to 9 % in 200 steps
WORDS = [*LR, "train.steps=200", "train.checkpoint_every=10", "data.labeled_per_step=3", "train.step_timeout_seconds=30"]
STORE = {"object_store_memory": 200_000_000}
pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(580)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head for the driver alone."""
    from ray.cluster_utils import Cluster

    one = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    yield one
    one.shutdown()


def start(cluster: Any, tiny: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.train", "--config", str(tiny / "tiny.yaml"), *WORDS, *words]
    with (tiny / "driver.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=log, stderr=log, text=True)


def end(driver: subprocess.Popen[str]) -> None:
    driver.kill()
    driver.wait()


def wait(what: Callable[[], bool], driver: subprocess.Popen[str], seconds: float = 240) -> float:
    """Seconds until it is so."""
    begun = time.monotonic()
    while not what():
        assert driver.poll() is None, f"the driver ended with {driver.returncode}"
        assert time.monotonic() - begun < seconds, "it did not come to be so"
        time.sleep(0.1)
    return time.monotonic() - begun


def last(folder: Path) -> int:
    lines = read_metrics(folder)
    return int(lines[-1]["step"]) if lines else 0


def left_alone(tiny: Path, tmp_path: Path, *words: str) -> Path:
    """Folder of the same run in this process."""
    where = [f"run.storage_path={tmp_path}", "run.name=here"]
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *WORDS, *words, *where]) == 0
    return tmp_path / "here"


def failures(folder: Path) -> list[dict[str, Any]]:
    path = folder / "failures.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trainers(raylet: int | None = None) -> list[int]:
    """Train workers, of one raylet or of all."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if "RayTrainWorker" in (folder / "cmdline").read_text() and raylet in (None, parent):
                found.append(int(folder.name))
    return found


def assert_same(one: Path, other: Path) -> None:
    """Losses within what rounding makes of other orders of sums in 200 steps: 2e-7."""
    lines = read_metrics(one), read_metrics(other)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for here, there in zip(*lines, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4), here["step"]
        assert there["lr/primary"] == here["lr/primary"]


@pytest.mark.timeout(
    1800
)  # Ray's picture of what is free lags: a stream beside two workers that may join starts after a minute
def test_workers_leave_and_join_and_the_result_is_the_same(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    """Three rows a step on two workers (2 and 1), then one (3), then two again."""
    nodes = [cluster.add_node(num_cpus=2, **STORE) for _ in range(2)]
    elastic = ["scale.workers=2", "scale.min_workers=1", "scale.cpus_per_worker=1.5", "scale.cpus_per_decoder=0.5"]
    elastic += ["scale.resize_seconds=10", f"run.storage_path={tmp_path}", "run.name=elastic"]
    # one worker does 20 to 50 steps a second, and a node that comes is noticed after some ten seconds; at 0.001 rounding grows
    # to 28 % of the loss in as many
    length = ["train.steps=800", "primary.optimizer.lr=0.0001", "auxiliary.optimizer.lr=0.0001"]
    driver = start(cluster, tiny, *elastic, *length)
    folder, log = tmp_path / "elastic", tiny / "driver.log"
    try:
        wait(lambda: last(folder) >= 20, driver)
        cluster.remove_node(nodes[0], allow_graceful=False)
        gone = last(folder)
        print("one worker after", round(wait(lambda: last(folder) > gone + 10, driver), 1), "s")
        cluster.add_node(num_cpus=2, **STORE)
        _, code = driver.communicate(timeout=300), driver.returncode
        assert code == 0, log.read_text()[-3000:]
    finally:
        end(driver)
    starts = [line for line in log.read_text().splitlines() if "worker" in line and "step" in line]
    print(starts)
    # after the loss steps come again, after the gain none does
    alone = log.read_text().split("with 1 worker", 1)[1]
    lines = re.findall(r"^step (\d+)/", alone, flags=re.MULTILINE)
    assert len(lines) == len(set(lines)), lines
    assert_same(left_alone(tiny, tmp_path, *length), folder)
    assert "with 2 workers" in log.read_text() and "with 1 worker" in log.read_text()


def test_a_node_of_ray_start_is_killed_and_replaced(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    def ray_start() -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "start", f"--address={cluster.address}", "--num-cpus=2", "--object-store-memory=200000000"]
        command.append("--block")
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    nodes = [ray_start()]
    words = ["scale.workers=1", f"run.storage_path={tmp_path}", "run.name=node"]
    folder = tmp_path / "node"
    time.sleep(15)
    driver = start(cluster, tiny, *words)
    try:
        wait(lambda: last(folder) >= 20, driver)
        os.killpg(nodes[0].pid, signal.SIGKILL)
        nodes.append(ray_start())
        gone = last(folder)
        print("back after", round(wait(lambda: last(folder) > gone, driver), 1), "s")
        driver.wait(240)
        assert driver.returncode == 0, (tiny / "driver.log").read_text()[-3000:]
    finally:
        end(driver)
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    assert_same(left_alone(tiny, tmp_path), folder)


def test_a_drained_node_is_left_without_a_failure_or_a_step_twice(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    """What clouds announce before they take a spot machine away."""
    nodes = [cluster.add_node(num_cpus=2, **STORE) for _ in range(2)]
    driver = start(cluster, tiny, "scale.workers=1", "train.steps=400", f"run.storage_path={tmp_path}", "run.name=drained")
    folder, log = tmp_path / "drained", tiny / "driver.log"
    try:
        wait(lambda: last(folder) >= 20, driver)
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        (drained,) = (node for node, raylet in zip(nodes, raylets, strict=True) if trainers(raylet))
        ray = Path(sys.executable).parent / "ray"
        command = [str(ray), "drain-node", f"--address={cluster.address}", f"--node-id={drained.node_id}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=60"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        begun = time.monotonic()
        left = wait(lambda: not trainers(drained.all_processes["raylet"][0].process.pid), driver)
        gone = last(folder)
        wait(lambda: last(folder) > gone, driver)
        print("left after", round(left, 1), "s, back after", round(time.monotonic() - begun, 1), "s")
        cluster.remove_node(drained, allow_graceful=False)
        assert driver.wait(300) == 0, log.read_text()[-3000:]
    finally:
        end(driver)
    steps = re.findall(r"^step (\d+)/", log.read_text(), flags=re.MULTILINE)
    assert len(steps) == len(set(steps)), steps
    assert failures(folder) == []
    assert_same(left_alone(tiny, tmp_path, "train.steps=400"), folder)


def test_sigterm_to_workers_on_two_nodes_loses_no_step(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=2, **STORE)
    words = ["scale.workers=2", "scale.cpus_per_worker=1.5", "scale.cpus_per_decoder=0.5"]
    words += [f"run.storage_path={tmp_path}", "run.name=stopped"]
    folder, log = tmp_path / "stopped", tiny / "driver.log"
    driver = start(cluster, tiny, *words)
    try:
        wait(lambda: last(folder) >= 23, driver)
        driver.terminate()
        begun = time.monotonic()
        assert driver.wait(90) == 128 + signal.SIGTERM, log.read_text()[-3000:]
        print("ended after", round(time.monotonic() - begun, 1), "s")
    finally:
        end(driver)
    newest, _ = checkpoint.find_newest(folder)
    assert newest is not None and read_facts(newest)["step"] - last(folder) in (0, 1)  # a line every other step
    again = start(cluster, tiny, *words)
    assert again.wait(300) == 0, log.read_text()[-3000:]
    assert failures(folder) == []
    assert_same(left_alone(tiny, tmp_path), folder)


def test_a_worker_that_ray_ends_for_memory_comes_back(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    """This process takes memory until Ray's monitor, whose threshold is low on that node, ends the train worker."""
    from ray._common.utils import get_system_memory

    total, used = get_system_memory(), used_memory()
    if total - used < 10e9:
        pytest.skip("10 GB of memory are not free")
    cluster.add_node(num_cpus=2, env_vars={"RAY_memory_usage_threshold": f"{(used + 6e9) / total:.3f}"}, **STORE)
    driver = start(cluster, tiny, "scale.workers=1", f"run.storage_path={tmp_path}", "run.name=memory")
    folder, log = tmp_path / "memory", tiny / "driver.log"
    try:
        wait(lambda: last(folder) >= 20, driver)
        (worker,) = trainers()
        taken = []
        while worker in trainers():
            assert driver.poll() is None and used_memory() < used + 9e9
            taken.append(np.ones(25_000_000))  # 200 MB
            time.sleep(0.2)
        gone = last(folder)
        taken.clear()
        print("back after", round(wait(lambda: last(folder) > gone, driver), 1), "s")
        assert driver.wait(300) == 0, log.read_text()[-3000:]
    finally:
        end(driver)
    causes = [line["cause"] for line in failures(folder)]
    assert causes and all(cause.startswith("Ray's memory monitor ended it") for cause in causes), causes
    assert_same(left_alone(tiny, tmp_path), folder)
