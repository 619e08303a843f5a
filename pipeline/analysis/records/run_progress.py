"""How far a run is, which is two questions.

What is left to train is asked of a configuration, whose folder may not exist yet: the run goes on at its newest checkpoint, and
only an evaluation by this very configuration ends it. What was trained is asked of a folder, whose configuration may be of
another version or gone: the log is ahead of the newest checkpoint, and steps between them are trained again after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.analysis.records.run_reader import read_config_values, read_json_lines, read_json_object
from pipeline.config import Config
from pipeline.evaluation.protocol import is_of_finished_run, is_of_trained_run


@dataclass(frozen=True)
class RunProgress:
    """How many steps of a run are saved, so that it need not train them again."""

    step: int
    steps: int
    """The steps that it is trained for."""
    is_done: bool
    """Whether it is evaluated, too."""

    def __str__(self) -> str:
        """Returns a word for the list of trials."""
        if self.is_done:
            return "done"
        return f"at {self.step}/{self.steps}" if self.step else "missing"


def read_saved_progress(config: Config) -> RunProgress:
    """Reads how far the run of a configuration is from the names of its checkpoints and from its evaluation.json."""
    folder = config.run_folder
    steps = config.train.steps
    path = folder / "evaluation.json"
    if path.is_file():
        summary = json.loads(path.read_text(encoding="utf-8"))
        if is_of_finished_run(summary, config):
            return RunProgress(steps, steps, True)
    reached = max((int(path.name.rpartition("_")[2]) for path in folder.glob("checkpoint_*")), default=0)
    return RunProgress(min(reached, steps), steps, False)


def read_outcome(folder: Path) -> Mapping[str, Any]:
    """Reads evaluation.json if the run has come to its end, else returns nothing; no other large file is read."""
    evaluation = read_json_object(folder / "evaluation.json", [])
    steps = read_config_values(folder / "config.yaml", []).get("train.steps") if evaluation else None
    return evaluation if steps and is_of_trained_run(evaluation, steps) else {}


@dataclass(frozen=True)
class LoggedProgress:
    """How far a run's log is."""

    method: str
    """The value of ``method.name``, or ``unknown``."""
    step: int
    """The last step that was logged; 0 if none was."""
    steps: int | None
    """The steps that it is trained for; None if config.yaml does not tell."""
    seconds_per_step: float | None = None
    """The mean of the last logged steps; None if none was logged."""
    seconds_left: float | None = None
    """The time left as the last logged line estimates it; None if none was logged."""
    data_wait: float | None = None
    """The share (0..1) of its last logged steps that the run waited for data."""


def read_logged_progress(folder: Path) -> LoggedProgress:
    """Reads how far a run's log is from config.yaml and metrics.jsonl, either of which may be missing."""
    config, lines = read_config_values(folder / "config.yaml", []), read_json_lines(folder / "metrics.jsonl")
    last = lines[-1] if lines else {}
    seconds, waited = last.get("seconds/step"), last.get("seconds/data")
    return LoggedProgress(
        str(config.get("method.name") or "unknown"),
        int(last.get("step", 0)),
        config.get("train.steps"),
        seconds,
        last.get("eta_seconds"),
        waited / max(seconds, 1e-9) if seconds is not None and waited is not None else None,
    )


def read_last_failure(folder: Path) -> Mapping[str, Any] | None:
    """Reads the last line of failures.jsonl: when and at which step a worker failed, and why; None if none did."""
    path = folder / "failures.jsonl"
    for text in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []):
        try:
            line = json.loads(text)
        except ValueError:  # a kill has cut it off
            continue
        if isinstance(line, dict):
            return line
    return None
