"""Nights that the real cron starts, every minute: one that still runs, one that is killed, and those after them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.schedules.real_nights import RealNights, wait_until

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


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_nights_every_minute(crontab: None, tiny: Path, tmp_path: Path, repository: Path) -> None:
    nights = RealNights(tiny, tmp_path / "schedules", repository)
    nights.add("cron")
    try:
        first = wait_until(lambda: nights.read_lines("begun"), 400)[0]
        wait_until(lambda: nights.read_lines("left out"), 400)  # the first night runs through the next minute
        assert len(nights.read_lines("begun")) == 1
        assert "running" in nights.call("list")
        wait_until(nights.find_newest_checkpoint, 400)
        command = nights.find_command(first["pid"])
        psutil.Process(first["pid"]).kill()  # the command holds the night's place
        time.sleep(1)
        assert command.is_running()
        left_out = len(nights.read_lines("left out"))
        wait_until(lambda: len(nights.read_lines("left out")) > left_out, 400)
        assert len(nights.read_lines("begun")) == 1
        for process in (*command.children(recursive=True), command):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        reached = nights.find_newest_checkpoint()

        second = wait_until(lambda: nights.read_lines("begun")[1:], 400)[0]  # goes on where the killed one was
        assert nights.find_states(first["night"]) == ["killed"]
        wait_until(lambda: nights.find_newest_checkpoint() > reached, 400)
        psutil.Process(second["pid"]).terminate()
        ended = wait_until(lambda: nights.read_lines("ended"), 120)[0]
        assert (ended["night"], ended["code"]) == (second["night"], 128 + signal.SIGTERM)
        assert "stopped with a checkpoint" in (nights.folder / nights.name / second["log"]).read_text()

        page = (nights.folder / nights.name / "report.html").read_text()
        assert "was killed: it never said how it ended" in page
        assert "was stopped: exit code 143: SIGTERM: stopped with a checkpoint" in page
    finally:
        removed = nights.call("remove", nights.name)
        for line in nights.read_lines("begun"):
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(line["pid"]).terminate()
    assert "is removed" in removed
    wait_until(lambda: not nights.is_running(), 120)
    begun = len(nights.read_lines("begun"))
    time.sleep(75)
    assert len(nights.read_lines("begun")) == begun  # no night begins anymore
