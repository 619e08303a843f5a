"""Nodes that come and go: raylets of their own, one of them by ``ray start``, under one driver."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.command import run
from pipeline.run_folder import read_metrics

LR = ["primary.optimizer.lr=0.001", "auxiliary.optimizer.lr=0.001"]  # at 0.01 rounding grows to 9 % in 200 steps
WORDS = [*LR, "train.steps=200", "train.checkpoint_every=10", "data.labeled_per_step=3", "train.step_timeout_seconds=30"]
pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(580)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head for the driver alone."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 200_000_000}
    one = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    yield one
    one.shutdown()


def start(cluster: Any, tiny: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.train", "--config", str(tiny / "tiny.yaml"), *WORDS, *words]
    with (tiny / "driver.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=log, stderr=log, text=True)


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


def assert_same(one: Path, other: Path) -> None:
    """Losses within what rounding makes of other orders of sums in 200 steps: 2e-7."""
    lines = read_metrics(one), read_metrics(other)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for here, there in zip(*lines, strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-4), here["step"]
        assert there["lr/primary"] == here["lr/primary"]


def test_workers_leave_and_join_and_the_result_is_the_same(cluster: Any, tiny: Path, tmp_path: Path) -> None:
    """Three rows a step on two workers (2 and 1), then one (3), then two again."""
    nodes = [cluster.add_node(num_cpus=2, object_store_memory=200_000_000) for _ in range(2)]
    elastic = ["scale.workers=2", "scale.min_workers=1", "scale.cpus_per_worker=1.5", "scale.cpus_per_decoder=0.5"]
    driver = start(cluster, tiny, *elastic, "scale.resize_seconds=10", f"run.storage_path={tmp_path}", "run.name=elastic")
    folder, log = tmp_path / "elastic", tiny / "driver.log"
    try:
        wait(lambda: last(folder) >= 20, driver)
        cluster.remove_node(nodes[0], allow_graceful=False)
        gone = last(folder)
        print("one worker after", round(wait(lambda: last(folder) > gone + 10, driver), 1), "s")
        cluster.add_node(num_cpus=2, object_store_memory=200_000_000)
        _, code = driver.communicate(timeout=300), driver.returncode
        assert code == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
    starts = [line for line in log.read_text().splitlines() if "worker" in line and "step" in line]
    print(starts)
    # after the loss steps come again, after the gain none does
    alone = log.read_text().split("with 1 worker", 1)[1]
    lines = re.findall(r"^step (\d+)/", alone, flags=re.MULTILINE)
    assert len(lines) == len(set(lines)), lines
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *WORDS, f"run.storage_path={tmp_path}", "run.name=here"]) == 0
    assert_same(tmp_path / "here", folder)
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
        driver.kill()
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    assert run(train.main, ["--config", str(tiny / "tiny.yaml"), *WORDS, f"run.storage_path={tmp_path}", "run.name=here"]) == 0
    assert_same(tmp_path / "here", folder)
