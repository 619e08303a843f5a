"""A Ray head of its own with token authentication, as operators have it, for tests that send jobs to one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON_FOLDER = str(Path(sys.executable).parent)  # not resolved: the environment's python, not the one it links to
NODE_SECRET = f"pl4nted-{secrets.token_hex()}"
"""A secret in the environment of the head, where operators put those of a cluster. It is in no file: code is uploaded."""
Environment = dict[str, str]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def _environment(token_file: Path, temp: str) -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_LOGGER_LEVEL": "warning",  # as in cluster/ and docker/: Ray would log the variables that are sent with jobs
        "RAY_worker_niceness": "0",  # else workers starve where other programs keep the cores busy
        "RAY_TMPDIR": temp,
        "AWS_SECRET_ACCESS_KEY": NODE_SECRET,
        "PATH": f"{PYTHON_FOLDER}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(token_file.parent),
        "OMP_NUM_THREADS": "1",
    }


def _wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(480):
        assert head.poll() is None, f"ray start ended:\n{log.read_text()}"
        if "Ray runtime started" not in log.read_text():  # the dashboard answers before, and Ray may give up until then
            time.sleep(0.25)
            continue
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
        except urllib.error.HTTPError as refusal:  # it runs, and wants its token
            refusal.close()
            return
        except OSError:
            time.sleep(0.25)
        else:
            raise AssertionError("a head with token authentication answered a request without a token")
    raise AssertionError(f"the head did not answer within two minutes:\n{log.read_text()}")


def _stop(head: subprocess.Popen[bytes]) -> None:
    """This head's processes only: ``ray stop`` would end every Ray of the machine."""
    head.terminate()  # ends the node's processes in order
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


@pytest.fixture(scope="module")  # idle, it takes CPU from the tests of other files
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Environment]]:
    """Address of a Ray head of two CPUs that wants a token, and its environment, which has it. RAY_TMPDIR has its logs."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    temp = tempfile.mkdtemp(prefix="ray")  # short, because the path of a socket has at most 107 characters
    environment, log = _environment(folder / "token", temp), folder / "log"
    gcs, dashboard, client, agent = _free_ports(4)
    command = [
        f"{PYTHON_FOLDER}/ray",
        "start",
        "--head",
        "--block",
        "--no-monitor",  # it adds no nodes
        "--num-cpus=2",
        "--num-gpus=0",
        "--object-store-memory=100000000",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={temp}",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}", process, log)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        _stop(process)
        shutil.rmtree(temp, ignore_errors=True)
