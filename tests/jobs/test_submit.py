"""Submission to a real Ray head with token authentication, and the mistakes that are told before or instead."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from ray.job_submission import JobDetails

from jobs import submit
from jobs.__main__ import COMMANDS
from pipeline.errors import UserError

PYTHON_FOLDER = str(Path(sys.executable).parent)  # not resolved: the environment's python, not the one it links to


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")


def test_entrypoint_keeps_every_word() -> None:
    line = submit.build_entrypoint("train", ["--config", "a b.yaml", "run.name=it's"])
    assert line == """python -m jobs.train --config 'a b.yaml' 'run.name=it'"'"'s'"""


@pytest.mark.parametrize(("command", "remedy"), [("trian", "did you mean train"), ("xyzzy", "evaluate"), ("submit", "itself")])
def test_what_is_no_command_is_told_before_connecting(command: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        submit.main(["--address", "http://127.0.0.1:1", command])


def test_options_after_the_command_belong_to_it() -> None:
    args = submit._parse_arguments(["--no-wait", "report", "--help", "--address", "x", "runs/a"])
    assert (args.no_wait, args.address, args.command) == (True, None, "report")
    assert args.arguments == ["--help", "--address", "x", "runs/a"]


def test_runtime_env_adds_the_working_dir(tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {A: b}\n", encoding="utf-8")
    folder = {"working_dir": str(tmp_path.resolve())}
    assert submit.read_runtime_env(str(file), str(tmp_path)) == {"env_vars": {"A": "b"}, **folder}
    assert submit.read_runtime_env(None, str(tmp_path)) == folder


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("working_dir: x", "use --working-dir"), ("- a", "a mapping"), ("a: [", "cannot be read"), (None, "cannot be read")],
)
def test_runtime_env_mistakes(tmp_path: Path, text: str | None, remedy: str) -> None:
    file = tmp_path / "env.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=remedy):
        submit.read_runtime_env(str(file), str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        submit.read_runtime_env(None, str(tmp_path / "absent"))


def test_address_given_first_then_rays_variables() -> None:
    environ = {"RAY_ADDRESS": "http://b:1", "RAY_API_SERVER_ADDRESS": "https://c:2/"}
    assert submit.find_dashboard_address("http://a:3", environ) == "http://a:3"
    assert submit.find_dashboard_address(None, environ) == "https://c:2"
    assert submit.find_dashboard_address(None, {}) == submit.DEFAULT_ADDRESS


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("ray://head:10001", "--address http://head:8265"),
        ("head:6379", "names port 6379, where drivers join the cluster.*--address http://head:8265"),
        ("[fd00::1]:6379", r"--address http://\[fd00::1\]:8265"),
        ("head:9000", "--address http://head:9000"),
        ("head", "--address http://head:8265"),
        ("http://head:dashboard", "port must be a number.*--address http://HEAD:8265"),
        ("head:dashboard", "port must be a number.*--address http://HEAD:8265"),
        ("http://head:99999", "port must be a number"),
        ("auto", "which cluster to join.*--address http://HEAD:8265, where HEAD is the address of the .*head node"),
        ("local", "which cluster to join.*--address http://HEAD:8265.*on that node itself http://127.0.0.1:8265"),
        ("http://", "names no host; give .*--address http://HEAD:8265"),
        ("ray://:10001", "names no host; give .*--address http://HEAD:8265"),
        ("http://[x", "is no URL; give .*--address http://HEAD:8265"),
    ],
)
def test_what_is_no_dashboards_address_is_refused_with_the_one_that_was_meant(address: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"^--address .*{meant}"):
        submit.find_dashboard_address(address, {})
    with pytest.raises(UserError, match=f"^RAY_ADDRESS .*{meant}"):
        submit.find_dashboard_address(None, {"RAY_ADDRESS": address})


def test_a_clusters_other_port_is_told_from_its_dashboard() -> None:
    """What answers a web request there are bytes of HTTP/2."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(UserError, match=r"no Ray cluster answers at .*--address http://HEAD:8265") as refused:
            submit.connect_client(f"http://127.0.0.1:{port}")
    finally:
        server.stop(None)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_exit_code(status: str, code: int | None, expected: int) -> None:
    details = JobDetails(type="SUBMISSION", entrypoint="x", status=status, driver_exit_code=code)
    assert submit.read_exit_code(details) == expected


def test_a_server_that_never_answers_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"no Ray cluster answers .* within 0.3 s"):
            submit.connect_client(address)


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>hello</html>"), (200, b"{}"), (404, b""), (500, b"")])
def test_a_server_that_is_no_ray_is_told(status: int, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(UserError, match="is not the dashboard of a Ray cluster"):
                submit.connect_client(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_only_the_code_is_uploaded(repository: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    kept = {"pipeline/config.py", "pipeline/data/keep.py", "jobs/configs/demo.yaml", "pyproject.toml"}
    left = {
        "data/video.mp4",
        "runs/a/checkpoint/model",
        ".venv/bin/python",
        ".git/HEAD",
        "tests/test_x.py",
        ".mypy_cache/a.json",
        "pipeline/__pycache__/config.pyc",
        "actnetformer.egg-info/PKG-INFO",
    }
    for name in kept | left:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(name, encoding="utf-8")
    shutil.copy(repository / ".rayignore", tmp_path / "project")
    create_package(str(tmp_path / "project"), tmp_path / "project.zip", include_gitignore=False)
    with zipfile.ZipFile(tmp_path / "project.zip") as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert names == kept | {".rayignore"}


# ---------------------------------------------------------------------------------------------- a real head

Environment = dict[str, str]
Submit = Callable[..., subprocess.CompletedProcess[str]]


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


@pytest.fixture(scope="module")
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


@pytest.fixture
def submitted(head: tuple[str, Environment], repository: Path) -> Submit:
    """``python -m jobs.submit`` against the head, from the repository's root."""
    address, environment = head

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.submit", "--address", address, *words]
        return subprocess.run(command, cwd=repository, env={**environment, **more}, capture_output=True, text=True, timeout=110)

    return run


@pytest.mark.ray
def test_a_job_that_succeeds(submitted: Submit) -> None:
    done = submitted("report", "--help", RAY_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage:" in done.stdout
    assert "SUCCEEDED" in done.stdout


@pytest.mark.ray
def test_the_exit_code_and_the_message_of_a_mistake_are_passed_on(submitted: Submit) -> None:
    done = submitted("train", "no.such.key=1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "unknown key no" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.parametrize(
    "more",
    [{"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": "/absent"}],
    ids=["wrong", "none", "no file"],
)
def test_a_wrong_or_missing_token_is_told(submitted: Submit, more: Environment) -> None:
    done = submitted("report", "--help", **more)
    assert done.returncode == 2
    assert "refused the token" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_ctrl_c_leaves_the_job_running(head: tuple[str, Environment], repository: Path) -> None:
    address, environment = head
    script = (
        "import sys; from jobs.submit import connect_client, follow_job\n"
        "client = connect_client(sys.argv[1]); job = client.submit_job(entrypoint='echo started; sleep 600')\n"
        "code = follow_job(client, sys.argv[1], job); print(client.get_job_status(job)); client.stop_job(job); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=repository, env=environment, text=True, **pipes)
    try:
        assert process.stdout is not None
        while "started" not in (line := process.stdout.readline()):
            assert line, "the log ended"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert "RUNNING" in out
    assert f"ray job stop --address {address}" in err


def test_every_command_can_be_submitted() -> None:
    for name in set(COMMANDS) - {"submit"}:
        assert submit.build_entrypoint(name, []) == f"python -m jobs.{name}"
