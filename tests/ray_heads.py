"""A Ray head of its own with token authentication, as operators have it, for tests that send jobs to one."""

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
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON_FOLDER = str(Path(sys.executable).parent)  # not resolved: the environment's python, not the one it links to
Environment = dict[str, str]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def _environment(token_file: Path) -> Environment:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{PYTHON_FOLDER}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(token_file.parent),
        "OMP_NUM_THREADS": "1",
    }


def _wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert head.poll() is None, f"ray start ended:\n{log.read_text()}"
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
        except urllib.error.HTTPError as refusal:  # it runs, and wants its token
            refusal.close()
            return
        except OSError:
            time.sleep(0.25)
        else:
            raise AssertionError("a head with token authentication answered a request without a token")
    raise AssertionError(f"the head did not answer within a minute:\n{log.read_text()}")


def _stop(head: subprocess.Popen[bytes]) -> None:
    """This head's processes only: ``ray stop`` would end every Ray of the machine."""
    head.terminate()  # ends the node's processes in order
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(head.pid, signal.SIGKILL)
    head.wait()


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Environment]]:
    """Address of a Ray head of one CPU that wants a token, and the environment that has it."""
    folder = tmp_path_factory.mktemp("head")
    (folder / "token").write_text("0123456789abcdef" * 4, encoding="utf-8")
    environment, log = _environment(folder / "token"), folder / "log"
    gcs, dashboard, client, agent = _free_ports(4)
    temp = tempfile.mkdtemp(prefix="ray")  # short, because the path of a socket has at most 107 characters
    command = [
        f"{PYTHON_FOLDER}/ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=1",
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
