"""Nights of a small training run that a real cron or systemd starts every minute."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class RealNights:
    """A schedule of the run ``nights``, and the commands about it. ``enter`` begins each command line, as ``nsenter`` does."""

    tiny: Path
    folder: Path
    repository: Path
    enter: Sequence[str] = ()
    environment: dict[str, str] | None = None
    name: str = field(default="tiny", init=False)

    def add(self, starter: str) -> None:
        """Adds the schedule; its command trains for longer than any test lasts."""
        train = ["train", "--config", str(self.tiny / "tiny.yaml"), "run.name=nights", "train.steps=100000"]
        assert f"by {starter}" in self.call("add", "every minute", "--name", self.name, "--by", starter, "--", *train)

    def call(self, *words: str) -> str:
        """Calls ``jobs.schedule``, which must succeed; returns what it printed."""
        line = [*self.enter, sys.executable, "-m", "jobs.schedule", "--folder", str(self.folder), *words]
        done = subprocess.run(
            line, cwd=self.repository, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read_lines(self, event: str) -> list[dict[str, Any]]:
        """Lines of that kind in the record of nights."""
        path = self.folder / self.name / "nights.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [line for line in found if line["event"] == event]

    def find_states(self, begun: str) -> list[str]:
        """States of the nights that began, or should have, at a time of ISO 8601 with this beginning."""
        nights = json.loads(self.call("list", "--json"))[0]["nights"]
        return [night["state"] for night in nights if night["begun"].startswith(begun)]

    def find_newest_checkpoint(self) -> int:
        """Step of the run's newest checkpoint; 0 if it has none."""
        steps = [int(path.name.rpartition("_")[2]) for path in (self.tiny / "runs" / "nights").glob("checkpoint_??????")]
        return max(steps, default=0)

    def find_command(self, night: int) -> psutil.Process:
        """The command of the night with that process id."""
        (command,) = [child for child in psutil.Process(night).children() if "jobs.train" in child.cmdline()]
        return command

    def is_running(self) -> bool:
        """Whether any process trains the run."""
        lines = (" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))
        return any("run.name=nights" in line and str(self.tiny) in line for line in lines)


def wait_until(what: Callable[[], Any], seconds: float) -> Any:
    """Waits until something is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.5)
    return found
