"""Runs one night of a schedule: one at a time, with a log, a line that says how it ended, and the page."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import FrameType

from pipeline.errors import UserError
from pipeline.files.url_passwords import hide_passwords
from pipeline.schedules.nights import Schedule, append_line, hold_night, list_nights, now_here
from pipeline.schedules.nights_page import write_nights_page


def run_night(folder: Path, schedule: Schedule) -> int:
    """Runs the schedule's command once, unless the night before still runs, which is recorded. Returns the command's exit code,
    or 0 for a night that was left out.

    SIGTERM and Ctrl-C are passed on to the command, which writes its checkpoints and ends.
    """
    begun = now_here()
    night = begun.isoformat(timespec="seconds")
    with hold_night(folder) as lock:
        if lock is None:
            append_line(folder, {"night": night, "event": "left out"})
            write_nights_page(folder, schedule, list_nights(folder, schedule, now_here()))
            return 0
        log = folder / "logs" / f"{begun:%Y-%m-%dT%H-%M-%S}.log"
        append_line(folder, {"night": night, "event": "begun", "pid": os.getpid(), "log": f"logs/{log.name}"})
        write_nights_page(folder, schedule, list_nights(folder, schedule, now_here()))
        code = _run_command(schedule, log, lock)
        if code == 0 and (report := _build_report_command(schedule)):
            subprocess.run(report, cwd=schedule.working_dir, capture_output=True, check=False)
        seconds = round((now_here() - begun).total_seconds(), 1)
        last = "" if code == 0 else _read_last_line(log)
        append_line(folder, {"night": night, "event": "ended", "code": code, "seconds": seconds, "last": last,
                             "log": f"logs/{log.name}"})  # fmt: skip
    write_nights_page(folder, schedule, list_nights(folder, schedule, now_here()))
    return code


def _run_command(schedule: Schedule, log: Path, lock: int) -> int:
    """Runs the command, which inherits the lock, with its output in ``log``. Returns its exit code as a shell tells it."""
    command, *words = schedule.command
    line = [schedule.python, "-m", f"jobs.{command}", *words]
    with log.open("w", encoding="utf-8") as file:
        file.write(f"{hide_passwords(shlex.join(line))}\n")
        file.flush()
        try:
            process = subprocess.Popen(
                line, cwd=schedule.working_dir, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock]
            )
        except OSError as error:
            file.write(f"error: {error}\n")
            return 127

        def pass_on(number: int, _frame: FrameType | None) -> None:
            process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _build_report_command(schedule: Schedule) -> list[str]:
    """Builds the command that makes the report of what the night's command wrote; none if that wrote it itself, or no results.

    Searches and ablations write theirs.
    """
    results = schedule.results
    if schedule.command[0] != "train" or not results or "://" in results or not Path(results).is_dir():
        return []
    return [schedule.python, "-m", "jobs.report", results]


def _read_last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return hide_passwords(lines[-1][:500]) if lines else ""


def check_command(words: tuple[str, ...], known: list[str]) -> None:
    """Raises UserError unless the words are a command that may be scheduled."""
    if not words:
        raise UserError(
            "name the command to be started, behind --: for example -- search --config FILE --space rates --hours 9"
        )
    if words[0] not in known:
        raise UserError(f"{words[0]} is not a command that can be scheduled: give one of {', '.join(known)}")
