"""Whoever starts a schedule's nights: a timer of systemd for this user, or a line in this user's crontab."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import UserError
from pipeline.schedules.nights import Schedule

MARK = "# actnetformer-schedule "
"""Begins the end of each line of a crontab that is of this project; lines without it are never touched."""
CRON_DAEMONS = ("cron", "crond", "fcron", "bcron-sched")
"""Names of the processes that start what crontabs say."""


def has_systemd() -> bool:
    """Returns whether this user has a systemd that can start things, which machines without a login session have not."""
    if shutil.which("systemctl") is None:
        return False
    asked = subprocess.run(["systemctl", "--user", "show-environment"], capture_output=True, timeout=30, check=False)
    return asked.returncode == 0


def has_cron() -> bool:
    """Returns whether this user may have a crontab."""
    return shutil.which("crontab") is not None


def is_cron_running(processes: Path = Path("/proc")) -> bool:
    """Returns whether a program runs that starts what crontabs say, which containers often lack.

    True also where that cannot be seen, because the machine does not show the processes of other users.
    """
    if not (processes / "1" / "comm").is_file():
        return True
    for file in processes.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # the process ended
            if file.read_text(encoding="utf-8", errors="replace").strip() in CRON_DAEMONS:
                return True
    return False


def choose_starter(wanted: str | None) -> str:
    """Returns ``systemd`` or ``cron``, whichever there is or was asked for. Raises UserError with the remedy."""
    there = {"systemd": has_systemd, "cron": has_cron}
    if wanted is not None:
        if not there[wanted]():
            why = "systemctl --user does not answer" if wanted == "systemd" else "there is no crontab"
            raise UserError(f"--by {wanted}: {why} here; leave --by out to use what there is, or print a file with --print")
        return wanted
    found = next((name for name, is_there in there.items() if is_there()), None)
    if found is None:
        raise UserError(
            "this machine has neither a systemd for users nor cron: install cron (Debian: apt-get install cron), or print a "
            "file for Kubernetes with --print raycronjob"
        )
    return found


def build_night_command(folder: Path, schedule: Schedule) -> list[str]:
    """Builds the command that a timer gives: it runs one night of the schedule."""
    return [schedule.python, "-m", "jobs.schedule", "--folder", str(folder), "night", schedule.name]


def add_timer(folder: Path, schedule: Schedule) -> None:
    """Makes the timer of a new schedule. ``folder`` is the one with all schedules. Raises UserError."""
    if schedule.started_by == "cron":
        write_crontab([*read_crontab(), build_crontab_line(folder, schedule)])
        return
    units = find_units(schedule.name)
    for path, text in build_units(folder, schedule).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    _call_systemctl("daemon-reload")
    _call_systemctl("enable", "--now", units[1].name)


def remove_timer(schedule: Schedule) -> None:
    """Removes the timer of a schedule, and nothing else; if it is already gone, that is not a mistake."""
    if schedule.started_by == "cron":
        lines = read_crontab()
        kept = [line for line in lines if not is_line_of(line, schedule.name)]
        if kept != lines:
            write_crontab(kept)
        return
    units = find_units(schedule.name)
    if units[1].exists():
        _call_systemctl("disable", "--now", units[1].name)
    for path in units:
        path.unlink(missing_ok=True)
    _call_systemctl("daemon-reload")


def has_timer(schedule: Schedule) -> bool:
    """Returns whether something would start the schedule's next night."""
    if schedule.started_by == "cron":
        return has_cron() and any(is_line_of(line, schedule.name) for line in read_crontab())
    return find_units(schedule.name)[1].exists()


def read_crontab() -> list[str]:
    """Reads the lines of this user's crontab; none if there is no crontab."""
    asked = subprocess.run(["crontab", "-l"], capture_output=True, text=True, timeout=30, check=False)
    if asked.returncode != 0 and "no crontab" not in asked.stderr:
        raise UserError(f"the crontab cannot be read: {asked.stderr.strip()}")
    return asked.stdout.removesuffix("\n").split("\n") if asked.returncode == 0 and asked.stdout else []


def write_crontab(lines: list[str]) -> None:
    """Replaces this user's crontab by these lines, or removes it if there is none left."""
    command, text = (["crontab", "-"], "\n".join(lines) + "\n") if lines else (["crontab", "-r"], "")
    said = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    if said.returncode != 0:
        raise UserError(f"the crontab cannot be written: {said.stderr.strip()}")


def build_crontab_line(folder: Path, schedule: Schedule) -> str:
    """Builds the line of a schedule. cron takes ``%`` for the end of a line unless it is escaped."""
    words = shlex.join(build_night_command(folder, schedule))
    command = f"cd {shlex.quote(schedule.working_dir)} && {words} >/dev/null 2>&1".replace("%", r"\%")
    return f"{schedule.cron} {command} {MARK}{schedule.name}"


def is_line_of(line: str, name: str) -> bool:
    """Returns whether a line of a crontab is that of the schedule."""
    return line.endswith(f"{MARK}{name}") and not line.startswith("#")


def find_units(name: str) -> tuple[Path, Path]:
    """Returns the paths of a schedule's service and timer."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    return folder / f"actnetformer-{name}.service", folder / f"actnetformer-{name}.timer"


def build_units(folder: Path, schedule: Schedule) -> dict[Path, str]:
    """Builds the texts of a schedule's service and timer, by their paths."""
    service, timer = find_units(schedule.name)
    words = " ".join(_quote_for_systemd(word) for word in build_night_command(folder, schedule))
    about = f"Description=Nights of {schedule.name} ({schedule.phrase})"
    return {
        service: f"[Unit]\n{about}\n\n[Service]\nType=oneshot\nWorkingDirectory={schedule.working_dir.replace('%', '%%')}\n"
                 f"ExecStart={words}\nKillMode=mixed\nTimeoutStopSec=90\n",
        timer: f"[Unit]\n{about}\n\n[Timer]\nOnCalendar={schedule.times.calendar}\nAccuracySec=1s\n\n[Install]\n"
               "WantedBy=timers.target\n",
    }  # fmt: skip


def _quote_for_systemd(word: str) -> str:
    """Quotes a word of ExecStart; ``%`` and ``$`` are special to systemd even within quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _call_systemctl(*words: str) -> None:
    said = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, timeout=60, check=False)
    if said.returncode != 0:
        raise UserError(f"systemctl --user {' '.join(words)}: {said.stderr.strip()}; use --by cron instead")
