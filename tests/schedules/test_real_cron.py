"""Nights that the real cron starts, every minute: one that still runs, one that is killed, and those after them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

FOREIGN = ["# kept by a person", 'MAILTO=""', "5 4 1 1 *  echo 100\\% 'x  y'  # actnetformer-schedule-like"]


@pytest.fixture
def crontab() -> Iterator[None]:
    """A running cron, and lines of others in this user's crontab, which must be there afterward as they were."""
    if os.getuid() != 0 or not shutil.which("cron") or not shutil.which("crontab"):
        pytest.skip("needs Debian's cron, and root to start it")
    before = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=False)
    own = before.stdout if before.returncode == 0 else ""
    subprocess.run(["crontab", "-"], input=own + "\n".join(FOREIGN) + "\n", text=True, check=True)
    is_there = any(process.info["name"] == "cron" for process in psutil.process_iter(["name"]))
    daemon = None if is_there else subprocess.Popen(["cron", "-f"], start_new_session=True)
    try:
        yield
        left = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=True).stdout
        assert left == own + "\n".join(FOREIGN) + "\n"
    finally:
        restore = ["crontab", "-"] if own else ["crontab", "-r"]
        subprocess.run(restore, input=own, text=True, check=True)
        if daemon is not None:
            daemon.kill()
            daemon.wait()


def wait_until(what: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.5)
    return found


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_nights_every_minute(crontab: None, tiny: Path, tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "schedules"

    def call(*words: str) -> str:
        line = [sys.executable, "-m", "jobs.schedule", "--folder", str(folder), *words]
        done = subprocess.run(line, cwd=repository, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def lines(event: str) -> list[dict[str, Any]]:
        path = folder / "tiny" / "nights.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [line for line in found if line["event"] == event]

    def has_checkpoint(above: int) -> list[str]:
        names = [path.name for path in (tiny / "runs" / "nights").glob("checkpoint_*")]
        return [name for name in names if int(name.rpartition("_")[2]) > above]

    train = ["train", "--config", str(tiny / "tiny.yaml"), "run.name=nights", "train.steps=100000"]
    assert "by cron" in call("add", "every minute", "--name", "tiny", "--by", "cron", "--", *train)
    try:
        first = wait_until(lambda: lines("begun"), 150)[0]
        wait_until(lambda: lines("left out"), 150)  # the first night runs through the next minute
        assert len(lines("begun")) == 1
        assert "running" in call("list")
        wait_until(lambda: has_checkpoint(0), 150)
        night = psutil.Process(first["pid"])
        (command,) = [child for child in night.children() if "jobs.train" in child.cmdline()]
        night.kill()  # the command holds the night's place
        time.sleep(1)
        assert command.is_running()
        left_out = len(lines("left out"))
        wait_until(lambda: len(lines("left out")) > left_out, 150)
        assert len(lines("begun")) == 1
        for process in (*command.children(recursive=True), command):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        reached = max(int(name.rpartition("_")[2]) for name in has_checkpoint(0))

        second = wait_until(lambda: lines("begun")[1:], 150)[0]  # goes on where the killed one was
        nights = json.loads(call("list", "--json"))[0]["nights"]
        assert next(night["state"] for night in nights if night["begun"] == first["night"]) == "killed"
        wait_until(lambda: has_checkpoint(reached), 150)
        psutil.Process(second["pid"]).terminate()
        ended = wait_until(lambda: lines("ended"), 120)[0]
        assert (ended["night"], ended["code"]) == (second["night"], 128 + signal.SIGTERM)
        assert "stopped with a checkpoint" in (folder / "tiny" / second["log"]).read_text()

        page = (folder / "tiny" / "report.html").read_text()
        assert "was killed: it never said how it ended" in page
        assert "was stopped: exit code 143: SIGTERM: stopped with a checkpoint" in page
    finally:
        removed = call("remove", "tiny")
        for line in lines("begun"):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(line["pid"]).terminate()
    assert "is removed" in removed
    wait_until(
        lambda: not any("run.name=nights" in " ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])),
        60,
    )
    begun = len(lines("begun"))
    time.sleep(75)
    assert len(lines("begun")) == begun  # no night begins anymore
