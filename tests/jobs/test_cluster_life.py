"""Jobs on a real head with token authentication: sent, listed, followed, stopped in order and continued; and no secret in what
they leave."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs import report
from jobs.command import run
from pipeline.run_folder.contents import read_metrics
from tests.ray_heads import NODE_SECRET, Environment

SECRET = f"pl4nted-{secrets.token_hex()}"
"""The value of a variable that is sent with the job."""


@pytest.fixture
def start(head: tuple[str, Environment], repository: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command against the head, from the repository's root and with a secret in its environment."""
    address, environment = head
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def start(command: str, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", f"jobs.{command}", "--address", address, *words]
        return subprocess.Popen(line, cwd=repository, env={**environment, "WANDB_API_KEY": SECRET}, text=True, **pipes)

    return start


Submit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def submitted(head: tuple[str, Environment], repository: Path) -> Submit:
    """``python -m jobs.submit`` against the head, from the repository's root."""
    address, environment = head

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.submit", "--address", address, *words]
        return subprocess.run(command, cwd=repository, env={**environment, **more}, capture_output=True, text=True, timeout=110)

    return run


@pytest.mark.ray
def test_the_exit_code_and_the_message_of_a_mistake_are_passed_on(submitted: Submit) -> None:
    done = submitted("report", "no/such/run")  # a command that imports little
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no run to report on" in done.stdout and "no/such/run: does not exist" in done.stdout
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


FOLLOW = """
import sys
from jobs.submit import Dashboard, follow_job
cluster, job = Dashboard(sys.argv[1]), sys.argv[2]
code = follow_job(cluster, job)
print(cluster.client.get_job_status(job))
sys.exit(code)
"""


def interrupt_follower(head: tuple[str, Environment], job: str, repository: Path) -> None:
    """Follows a job that runs and presses Ctrl-C: the job goes on, and the command that would stop it is told."""
    command = [sys.executable, "-c", FOLLOW, head[0], job]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=repository, env=head[1], text=True, **pipes)
    try:
        assert process.stdout is not None
        while "results go to" not in (line := process.stdout.readline()):
            assert line, "the log ended"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, err
    assert "RUNNING" in out
    assert f"python -m jobs.cluster --address {head[0]} stop raysubmit" in err


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_life_of_a_job(
    start: Callable[..., subprocess.Popen[str]],
    submitted: Submit,
    head: tuple[str, Environment],
    tiny: Path,
    repository: Path,
) -> None:
    said = ""

    def call(command: str, *words: str) -> str:
        nonlocal said
        process = start(command, *words)
        try:
            out, _ = process.communicate(timeout=200)
        finally:
            process.kill()
        said += out
        assert process.returncode == 0, out
        return out

    train = ["train", "--config", str(tiny / "tiny.yaml"), "run.name=lived", "train.steps=100000"]
    train += ["train.checkpoint_every=100000"]
    sent = call("submit", "--env", "WANDB_API_KEY", "--no-wait", *train)
    assert re.search(r"upload: [\d.]+ MB in \d+ files, the largest: ", sent)
    follower = start("cluster", "logs", "lived")
    try:
        metrics = tiny / "runs" / "lived" / "metrics.jsonl"
        deadline = time.monotonic() + 150
        while not metrics.is_file() or not metrics.read_text():
            assert time.monotonic() < deadline, f"no step was logged: {call('cluster', 'logs', 'workers', '--no-follow')}"
            time.sleep(0.5)
        training = find_processes(head, "jobs.train")
        assert training
        for one in training:
            one.suspend()  # the cores are for those who look at it
        listed = json.loads(call("cluster", "jobs", "--json"))
        (job,) = [one for one in listed if one["run"] == "lived"]
        assert job["state"] == "running"
        assert job["folder"] == str(tiny / "runs" / "lived")
        assert job["progress"]["state"] == "running"
        assert 0 < job["progress"]["done"] < job["progress"]["planned"] == 100000
        assert job["progress"]["seconds_per_step"] > 0
        assert job["stop_seconds"] == 60

        interrupt_follower(head, job["name"], repository)
        for one in training:
            one.resume()
        stopped = call("cluster", "stop", "lived")
        assert stopped.endswith(f"job {job['name']} stopped\n")
        step = int(re.search(r"stopped with a checkpoint at step (\d+)", stopped)[1])  # type: ignore[index]
        followed, _ = follower.communicate(timeout=100)
    finally:
        follower.kill()
    said += followed
    assert follower.returncode == 0
    assert re.search(r"step \d+/100000 .* data wait", followed)
    assert followed.count("results go to") == 1
    assert f"stopped with a checkpoint at step {step}" in followed
    assert (tiny / "runs" / "lived" / f"checkpoint_{step:06d}").is_dir()

    done = submitted(*train, "--max-steps", str(step + 4), RAY_ADDRESS="http://127.0.0.1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"at step {step + 4} of 100000, with a checkpoint" in done.stdout
    assert "SUCCEEDED" in done.stdout
    said += done.stdout + done.stderr
    (listed_run,) = json.loads(call("cluster", "runs", str(tiny / "runs" / "lived"), "--json"))
    assert (listed_run["done"], listed_run["planned"], listed_run["state"]) == (step + 4, 100000, "stopped")

    assert run(report.main, [str(tiny / "runs" / "lived")]) == 0
    assert {"config.yaml", "facts.json", "metrics.jsonl", "report.html"} <= {path.name for path in find_files(tiny / "runs")}
    assert find_files(Path(head[1]["RAY_TMPDIR"]), job["name"])  # the search below reads Ray's logs
    for secret in (SECRET, NODE_SECRET):
        assert secret not in said
        assert find_files(tiny / "runs", secret) == []
        assert find_files(Path(head[1]["RAY_TMPDIR"]), secret) == []  # Ray's logs, and what it keeps of the upload
    answers = ask_cluster(head, "/api/jobs/") + ask_cluster(head, f"/api/jobs/{job['name']}/logs")
    answers += ask_cluster(head, "/api/v0/runtime_envs?detail=1") + ask_cluster(head, "/nodes?view=summary")
    assert NODE_SECRET not in answers
    assert SECRET in answers  # cluster/README.md says so; if Ray hides it one day, that page can say less


def find_files(folder: Path, content: str = "") -> list[Path]:
    """Files below a folder whose bytes have ``content``."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if content.encode() in path.read_bytes()]


def ask_cluster(head: tuple[str, Environment], path: str) -> str:
    """What the dashboard answers to whoever has the token."""
    address, environment = head
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    request = urllib.request.Request(address + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_with_a_worker_is_stopped_in_order_and_else_firmly(
    start: Callable[..., subprocess.Popen[str]], head: tuple[str, Environment], tiny: Path, tmp_path: Path
) -> None:
    folder = tiny / "runs" / "workers"
    (tmp_path / "soon.yaml").write_text("env_vars: {RAY_JOB_STOP_WAIT_TIME_S: '6'}")
    train = ["train", "--config", str(tiny / "tiny.yaml"), "run.name=workers", "scale.workers=1"]
    train += ["train.steps=100000", "train.log_every=1", "train.checkpoint_every=100000", "scale.start_timeout_seconds=300"]

    def call(command: str, *words: str) -> str:
        process = start(command, *words)
        try:
            out, _ = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode == 0, out
        return out

    def train_until_step(step: int, *options: str) -> list[psutil.Process]:
        """Submits the run; returns the processes that train it as soon as it has done more than ``step`` steps."""
        call("submit", *options, "--no-wait", *train)
        deadline = time.monotonic() + 600
        while not (folder / "metrics.jsonl").is_file() or read_last_step(folder) <= step:
            assert time.monotonic() < deadline, f"no step was logged: {call('cluster', 'logs', 'workers', '--no-follow')}"
            time.sleep(0.5)
        return find_processes(head, "jobs.train") + find_processes(head, "RayTrainWorker")

    def wait_until_gone(processes: list[psutil.Process]) -> None:
        assert len(processes) >= 2
        _, left = psutil.wait_procs(processes, timeout=120)
        assert left == []

    processes = train_until_step(0)
    stopped = call("cluster", "stop", "workers")
    step = int(re.search(r"stopped with a checkpoint at step (\d+)", stopped)[1])  # type: ignore[index]
    assert stopped.endswith(" stopped\n")
    assert (folder / f"checkpoint_{step:06d}").is_dir()
    assert read_last_step(folder) == step
    wait_until_gone(processes)

    processes = train_until_step(step, "--runtime-env", str(tmp_path / "soon.yaml"))
    for driver in find_processes(head, "jobs.train"):
        driver.send_signal(signal.SIGSTOP)  # it does not obey
    begun = time.monotonic()
    firm = call("cluster", "stop", "workers")
    assert "SIGKILL in 6 s" in firm and firm.endswith(" stopped\n")
    assert 6 <= time.monotonic() - begun < 240
    wait_until_gone(processes)

    continued = call("submit", *train, "--max-steps", str(step + 4))
    assert f"at step {step + 4} of 100000, with a checkpoint" in continued


def read_last_step(folder: Path) -> int:
    lines = read_metrics(folder)
    return int(lines[-1]["step"]) if lines else 0


def find_processes(head: tuple[str, Environment], name: str) -> list[psutil.Process]:
    """The processes of that name which the head's raylet started."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if any(name in word for word in (process.info["cmdline"] or [])[:3]) and any(
                head[1]["RAY_TMPDIR"] in " ".join(parent.cmdline()) for parent in process.parents()
            ):
                found.append(process)
    return found
