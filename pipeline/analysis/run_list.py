"""Lists the runs and studies in a folder: how far each one is, how well it does, when it changed and what it takes up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.analysis.records.run_progress import read_last_failure, read_logged_progress, read_outcome
from pipeline.analysis.records.study_reader import read_study_record
from pipeline.errors import UserError
from pipeline.evaluation.protocol import describe_protocol
from pipeline.files.folder_lock import find_writer
from pipeline.run_folder.contents import PREDICTORS
from pipeline.run_folder.study_folder import STUDY_FACTS

UNDER_WAY = "waiting", "running"
"""States of a study's trials that have not come to an end."""


@dataclass(frozen=True)
class ListedRun:
    """What a list of runs says about one run or study."""

    folder: Path
    kind: str
    """``run``, ``ablation`` or ``search``."""
    state: str
    """``running``: a process writes into the folder or one of its runs. Otherwise ``complete``; ``trained``, but not evaluated;
    ``stopped``, to be continued by the same command; ``empty``: no step was logged and no trial is known."""
    method: str
    """The value of ``method.name``; "" for a study."""
    done: int
    """Steps that were logged, or a study's trials that have ended."""
    planned: int | None
    """Steps or trials in all; None if no file tells."""
    top1: dict[str, float | None]
    """Top-1 accuracy in percent by predictor (``PREDICTORS``); empty for a study, and before the evaluation."""
    protocol: str
    """How the accuracy was measured, in one phrase; "" without one."""
    changed: datetime
    """When a file of it changed last, in UTC."""
    bytes: int
    """What its files take up on disk."""
    seconds_per_step: float | None = None
    """Of a run, the mean of the steps that were logged last; None if none was."""
    seconds_left: float | None = None
    """Of a run, the time left, as it estimated when it logged last; None if no step was logged."""
    data_wait: float | None = None
    """Of a run, the share (0..1) of the time of its last logged steps in which it waited for data."""
    last_failure: str | None = None
    """When, where and why a worker of the run failed last; None if none did."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return {**vars(self), "folder": str(self.folder), "changed": self.changed.isoformat(timespec="seconds")}


def list_runs(folder: Path, inside_studies: bool = False) -> list[ListedRun]:
    """Lists the runs and studies in a folder and the folders below it, the one that changed last first.

    The runs of a study are listed only with ``inside_studies``. Hidden folders and symbolic links are left out. Raises
    UserError if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one in which your runs are, which is run.storage_path")
    found = [describe_folder(path) for path in _find_runs(folder, inside_studies)]
    return sorted(found, key=lambda one: one.changed, reverse=True)


def _find_runs(folder: Path, inside_studies: bool) -> Iterator[Path]:
    is_study = (folder / STUDY_FACTS).is_file()
    if is_study or all((folder / name).is_file() for name in ("config.yaml", "facts.json")):
        yield folder
        if not (is_study and inside_studies):
            return
    for path in _list_folders(folder):
        yield from _find_runs(path, inside_studies)


def _list_folders(folder: Path) -> list[Path]:
    """Lists the folders in a folder, without hidden ones and symbolic links. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(one) for one in entries if one.is_dir(follow_symlinks=False) and not one.name.startswith("."))
    except PermissionError:
        raise UserError(f"{folder} cannot be read by you; name a folder below it, or one of your own") from None


def describe_folder(folder: Path) -> ListedRun:
    """Describes a run's or study's folder, whose files may be missing or half-written."""
    changed, size = _measure(folder)
    is_being_written = any(find_writer(path) for path in (folder, *_list_folders(folder)))
    if (folder / STUDY_FACTS).is_file():
        study = read_study_record(folder)
        left = sum(study.counts.get(state, 0) for state in UNDER_WAY)
        ended = "empty" if not study.trials else "stopped" if left else "complete"
        state, done = "running" if is_being_written else ended, len(study.trials) - left
        return ListedRun(folder, study.kind, state, "", done, len(study.trials), {}, "", changed, size)
    progress, outcome = read_logged_progress(folder), read_outcome(folder)
    step, steps = max(progress.step, int(outcome.get("step") or 0)), progress.steps
    has_ended = steps is not None and step >= steps
    ended = "complete" if outcome else "trained" if has_ended else "stopped" if step else "empty"
    state, protocol = "running" if is_being_written else ended, describe_protocol(outcome) if outcome else ""
    return ListedRun(
        folder, "run", state, progress.method, step, steps, read_top1(outcome), protocol, changed, size,
        progress.seconds_per_step, progress.seconds_left, progress.data_wait, _describe_failure(read_last_failure(folder)),
    )  # fmt: skip


def _describe_failure(line: Mapping[str, Any] | None) -> str | None:
    if line is None:
        return None
    step = "" if line.get("step") is None else f", step {line['step']}"
    return f"{line.get('time', 'once')}{step}: {line.get('cause', 'unknown cause')}"


def read_top1(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """Reads the top-1 accuracies, in percent by predictor, from the content of evaluation.json; none if that is empty."""
    shares = {name: (evaluation.get(name) or {}).get("top1") for name in PREDICTORS} if evaluation else {}
    return {name: None if share is None else round(100 * share, 4) for name, share in shares.items()}


def _measure(folder: Path) -> tuple[datetime, int]:
    """Measures when a file of a folder changed last, and what all of them take up on disk, in bytes."""
    changed, size = folder.stat().st_mtime, 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # training has replaced it
                continue
            changed, size = max(changed, status.st_mtime), size + 512 * status.st_blocks
    return datetime.fromtimestamp(changed, UTC), size
