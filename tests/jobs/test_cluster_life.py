"""A training job on a real cluster: sent, listed, followed, stopped in order and continued; and no secret in what it leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SECRET = "pl4nted-0123456789"
Environment = dict[str, str]


@pytest.fixture
def start(head: tuple[str, Environment], repository: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command against the head, from the repository's root and with a secret in its environment."""
    address, environment = head
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def start(command: str, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", f"jobs.{command}", "--address", address, *words]
        return subprocess.Popen(line, cwd=repository, env={**environment, "WANDB_API_KEY": SECRET}, text=True, **pipes)

    return start


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_life_of_a_job(start: Callable[..., subprocess.Popen[str]], tiny: Path, repository: Path) -> None:
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
            assert time.monotonic() < deadline, "no step was logged"
            time.sleep(0.5)
        listed = json.loads(call("cluster", "jobs", "--json"))
        (job,) = [one for one in listed if one["run"] == "lived"]
        assert job["state"] == "running"
        assert job["folder"] == str(tiny / "runs" / "lived")
        assert job["progress"]["state"] == "running"
        assert 0 < job["progress"]["done"] < job["progress"]["planned"] == 100000
        assert job["progress"]["seconds_per_step"] > 0
        assert job["stop_seconds"] == 60

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

    continued = call("submit", *train, "--max-steps", str(step + 4))
    assert f"at step {step + 4} of 100000, with a checkpoint" in continued
    (run,) = json.loads(call("cluster", "runs", str(tiny / "runs" / "lived"), "--json"))
    assert (run["done"], run["planned"], run["state"]) == (step + 4, 100000, "stopped")

    report = [sys.executable, "-m", "jobs.report", str(tiny / "runs" / "lived")]
    assert subprocess.run(report, cwd=repository, capture_output=True, timeout=200).returncode == 0
    left = {path: path.read_bytes() for path in (tiny / "runs" / "lived").rglob("*") if path.is_file()}
    assert {"config.yaml", "facts.json", "metrics.jsonl", "report.html"} <= {path.name for path in left}
    assert [path for path, content in left.items() if SECRET.encode() in content] == []
    assert SECRET not in said
