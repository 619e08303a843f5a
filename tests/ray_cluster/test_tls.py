"""A cluster whose processes speak TLS, by Ray's own variables: who has a certificate trains on it, and who has none is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.ray_cluster.certificates import Environment, make_certificates

HERE = ray.util.get_node_ip_address()
"""This machine's address in its network: Ray uses it instead of 127.0.0.1, so the certificate must be for it."""
RAY = str(Path(sys.executable).parent / "ray")
pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Variables of the cluster's machines: a token and certificates."""
    (tmp_path / "token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    token["RAY_worker_niceness"] = "0"  # else workers starve where other programs keep the cores busy
    return {**kept, **token, **make_certificates(tmp_path / "certificates", HERE)}


@pytest.fixture
def address(environment: Environment, tmp_path: Path) -> Iterator[str]:
    """The address of a head without CPUs that one more raylet, of two CPUs, has joined."""
    with socket.create_server((HERE, 0)) as gcs, socket.create_server(("127.0.0.1", 0)) as dashboard:
        address = f"{HERE}:{gcs.getsockname()[1]}"
        unused = dashboard.getsockname()[1]  # Ray wants a free port even for no dashboard
    temporary = tempfile.mkdtemp(prefix="ray")
    shared = [f"--node-ip-address={HERE}", "--object-store-memory=150000000", "--block", "--disable-usage-stats"]
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--dashboard-port={unused}"]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number, words in enumerate(([*head, f"--temp-dir={temporary}"], [f"--address={address}", "--num-cpus=2"])):
            log = tmp_path / f"ray-{number}.log"
            with log.open("wb") as out:
                command = [RAY, "start", *words, *shared]
                nodes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True))
            wait(lambda log=log: "Ray runtime started" in log.read_text(), nodes[-1], log)  # type: ignore[misc]
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def wait(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.25)


def test_a_run_on_a_cluster_that_speaks_tls(address: str, environment: Environment, tiny: Path, repository: Path) -> None:
    def train(name: str, given: Environment) -> subprocess.CompletedProcess[str]:
        words = ["--config", str(tiny / "tiny.yaml"), f"run.name={name}", "scale.workers=1"]
        return subprocess.run(
            [sys.executable, "-m", "jobs.train", *words], cwd=repository, env={**given, "RAY_ADDRESS": address},
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    trained = train("encrypted", environment)
    assert trained.returncode == 0, trained.stderr
    assert (tiny / "runs" / "encrypted" / "checkpoint_000012").is_dir()
    begun = time.monotonic()
    refused = train("plain", {name: value for name, value in environment.items() if "TLS" not in name})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: no Ray cluster can be joined at RAY_ADDRESS={address} (it speaks TLS, ")
    assert "set RAY_USE_TLS=1" in refused.stderr and len(refused.stderr.strip().splitlines()) == 1
    assert time.monotonic() - begun < 240  # Ray itself would try for longer
    assert not (tiny / "runs" / "plain").exists()
