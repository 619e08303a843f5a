"""What a study leaves beside its runs: study.json and trials.jsonl, which docs/report.md describes and reports read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files.folder_lock import get_command_line
from pipeline.run_folder.contents import write_text

ABOUT, TRIALS = "study.json", "trials.jsonl"


def write_about(folder: Path, facts: Mapping[str, Any]) -> None:
    """``study.json``: name, kind, question, objectives, baseline, space, and the command that continues the study."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ABOUT, json.dumps({**facts, "command": get_command_line()}, indent=1))


def read_about(folder: Path) -> dict[str, Any] | None:
    """Content of ``study.json``, None without one."""
    path = folder / ABOUT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_trials(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """``trials.jsonl``, as a whole or not at all."""
    write_text(folder / TRIALS, "".join(json.dumps(line) + "\n" for line in lines))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Lines of ``trials.jsonl``, empty without one."""
    path = folder / TRIALS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
