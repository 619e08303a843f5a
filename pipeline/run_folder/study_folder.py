"""Reads and writes what a study leaves beside its runs: study.json and trials.jsonl, which docs/report.md describes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.files.lock_holder import get_command_line
from pipeline.run_folder.contents import write_text

STUDY_FACTS, TRIALS = "study.json", "trials.jsonl"


def write_study_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes ``study.json``: name, kind, question, objectives, baseline, space, and the command that continues the study."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / STUDY_FACTS, json.dumps({**facts, "command": get_command_line()}, indent=1))


def read_study_facts(folder: Path) -> dict[str, Any] | None:
    """Reads ``study.json``; None if there is none."""
    path = folder / STUDY_FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_trials(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``trials.jsonl``, whole or not at all."""
    write_text(folder / TRIALS, "".join(json.dumps(line) + "\n" for line in lines))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of ``trials.jsonl``; none if there is no such file."""
    path = folder / TRIALS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
