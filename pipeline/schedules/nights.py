"""What became of each night of a schedule: its folder has the command, a line for each beginning and end, and logs.

FOLDER/NAME/
    schedule.json    when, which command, where, and who starts it
    nights.jsonl     a line when a night begins, one when it ends, and one for a night that was left out
    logs/*.log       what each night's command printed
    report.html      a page about the last nights that leads to the study's report; its path stays
    night.lock       held while a night's command runs
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, suggest
from pipeline.schedules.phrase import Times

NIGHTS = "nights.jsonl"
LISTED = 14
"""How many of the last nights are looked at."""
GRACE = timedelta(minutes=2)
"""How late a night may begin before it counts as missed."""

LEFT_OUT = "the night before was still running"


@dataclass(frozen=True)
class Schedule:
    """A command that is started again and again."""

    name: str
    phrase: str
    cron: str
    command: tuple[str, ...]
    """The words behind ``python -m jobs.``, the command's name first."""
    working_dir: str
    python: str
    """Path of the Python that runs it."""
    started_by: str
    """``cron`` or ``systemd``."""
    created: str
    """When it was made, as ISO 8601 with its time zone."""
    results: str | None = None
    """Folder of the study or run that the command writes; None if it is unknown."""

    @property
    def times(self) -> Times:
        """When it starts."""
        return Times(self.phrase, self.cron)


@dataclass(frozen=True)
class Night:
    """One night, or whatever time the schedule says."""

    begun: datetime
    """When it began, or should have."""
    state: str
    """``done``, ``failed``, ``stopped`` by a signal that it obeyed, ``killed``, ``running``, ``left out`` because the one
    before still ran, or ``missed``: nobody started it."""
    explanation: str
    seconds: float | None = None
    log: str | None = None
    """Path of its log in the schedule's folder."""

    @property
    def is_well(self) -> bool:
        """Whether it ended well, or is still running."""
        return self.state in ("done", "running")


def write_schedule(folder: Path, schedule: Schedule) -> None:
    """Writes ``schedule.json`` into ``folder``, which is made."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    (folder / "schedule.json").write_text(json.dumps(asdict(schedule), indent=1), encoding="utf-8")


def read_schedules(folder: Path) -> dict[str, Schedule]:
    """Reads the schedules in a folder, by their names in alphabetical order."""
    found = {}
    for path in sorted(folder.glob("*/schedule.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            found[path.parent.name] = Schedule(**{**facts, "command": tuple(facts["command"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is not a schedule of this project: {error}; delete the folder if you do not need it"
            ) from None
    return found


def find_schedule(folder: Path, name: str) -> Schedule:
    """Finds a schedule by its name. Raises UserError with the nearest one."""
    known = read_schedules(folder)
    if name not in known:
        remedy = suggest(name, known) or (f"; there are {', '.join(known)}" if known else "; there is none")
        raise UserError(f"no schedule {name} in {folder}{remedy}")
    return known[name]


@contextmanager
def hold_night(folder: Path, seconds: float = 2.0) -> Iterator[int | None]:
    """Holds the schedule for one night within the ``with`` block; yields the lock's file descriptor, or None if another night
    has it. It is tried for so many ``seconds``, because ``is_running`` has it for a moment.

    The kernel releases it when the last process with the descriptor has ended: a command that inherits it holds it even if
    the process that started it was killed.
    """
    descriptor = os.open(folder / "night.lock", os.O_RDWR | os.O_CREAT, 0o644)
    end = time.monotonic() + seconds
    try:
        while not (is_held := _try_lock(descriptor)) and time.monotonic() < end:
            time.sleep(0.05)
        yield descriptor if is_held else None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_running(folder: Path) -> bool:
    """Returns whether a night's command runs now."""
    with hold_night(folder, seconds=0) as lock:
        return lock is None


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Appends a line to ``nights.jsonl``."""
    with (folder / NIGHTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def list_nights(folder: Path, schedule: Schedule, now: datetime) -> list[Night]:
    """Lists the last nights, the newest first: those that began, were left out, or were missed."""
    lines: dict[str, dict[str, Any]] = {}
    path = folder / NIGHTS
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
            lines[line["night"]] = {**lines.get(line["night"], {}), **line}
        except (ValueError, KeyError, TypeError):  # a kill or a full disk has cut it off
            continue
    last_begun = max((night for night, line in lines.items() if line["event"] == "begun"), default=None)
    running = last_begun if last_begun and is_running(folder) else None
    nights = [_describe(line, line["night"] == running) for line in lines.values()]
    nights += _list_missed(schedule, nights, now)
    return sorted(nights, key=lambda night: night.begun, reverse=True)[:LISTED]


def _describe(line: Mapping[str, Any], is_running_now: bool) -> Night:
    begun = datetime.fromisoformat(line["night"])
    log = line.get("log")
    if line["event"] == "left out":
        return Night(begun, "left out", LEFT_OUT)
    if line["event"] == "begun":
        if is_running_now:
            return Night(begun, "running", "", log=log)
        return Night(begun, "killed", "it never said how it ended: it was killed, or the machine was switched off", log=log)
    code = int(line["code"])
    state = "done" if code == 0 else "stopped" if code in (130, 143) else "failed"
    why = "" if code == 0 else f"exit code {code}" + (f": {line['last']}" if line.get("last") else "")
    return Night(begun, state, why, line.get("seconds"), log)


def _list_missed(schedule: Schedule, nights: list[Night], now: datetime) -> list[Night]:
    """Lists the times at which a night should have begun and none did.

    systemd does not start a service that still runs, and tells nobody: such a night was left out.
    """
    expected = schedule.times.list_between(datetime.fromisoformat(schedule.created), now - GRACE, LISTED)
    ends = [*expected[1:], *schedule.times.list_next(expected[-1], 1)] if expected else []
    empty = [due for due, end in zip(expected, ends, strict=True) if not any(due <= one.begun < end for one in nights)]
    return [
        Night(due, "left out", LEFT_OUT)
        if any(_was_running(night, due) for night in nights)
        else Night(due, "missed", "nobody started it: the machine was off or asleep, or its timer is gone")
        for due in empty
    ]


def _was_running(night: Night, moment: datetime) -> bool:
    if night.begun > moment:
        return False
    return night.state == "running" or (night.seconds is not None and moment < night.begun + timedelta(seconds=night.seconds))


def now_here() -> datetime:
    """Returns the time in the machine's time zone."""
    return datetime.now(UTC).astimezone()
