"""What is known about nights from their records, the page about them, and one night after another."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.schedules.nights import (
    Night,
    Schedule,
    append_line,
    find_schedule,
    hold_night,
    is_running,
    list_nights,
    read_schedules,
    write_schedule,
)
from pipeline.schedules.nights_page import describe_problems, write_nights_page
from pipeline.schedules.run_night import run_night

CREATED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def make(folder: Path, *command: str, results: Path | None = None) -> Schedule:
    schedule = Schedule(
        folder.name, "every night at 22:00", "0 22 * * *", command or ("doctor",), os.getcwd(), sys.executable, "cron",
        CREATED.isoformat(), None if results is None else str(results),
    )  # fmt: skip
    write_schedule(folder, schedule)
    return schedule


def at(day: int, hour: int = 22, minute: int = 0) -> str:
    return datetime(2026, 11, day, hour, minute, 1, tzinfo=UTC).isoformat()


def states(nights: list[Night]) -> list[tuple[int, str]]:
    return [(night.begun.day, night.state) for night in nights]


def test_each_night_has_the_state_that_its_records_say(tmp_path: Path) -> None:
    schedule = make(tmp_path / "a")
    for line in (
        {"night": at(20), "event": "begun", "log": "logs/20.log"},
        {"night": at(20), "event": "ended", "code": 0, "seconds": 9.5},
        {"night": at(21), "event": "begun"}, {"night": at(21), "event": "ended", "code": 2, "last": "error: no such file"},
        {"night": at(22), "event": "begun"}, {"night": at(22), "event": "ended", "code": 143},
        {"night": at(24), "event": "begun", "log": "logs/24.log"},
        {"night": at(26), "event": "begun"}, {"night": at(27), "event": "left out"},
    ):  # fmt: skip
        append_line(tmp_path / "a", line)
    with (tmp_path / "a" / "nights.jsonl").open("a") as file:
        file.write('{"night": "2026-11-2')  # a full disk
    with hold_night(tmp_path / "a"):
        nights = list_nights(tmp_path / "a", schedule, datetime(2026, 11, 28, 9, tzinfo=UTC))
    assert states(nights) == [
        (27, "left out"), (26, "running"), (25, "missed"), (24, "killed"), (23, "missed"), (22, "stopped"), (21, "failed"),
        (20, "done"),
    ]  # fmt: skip
    assert nights[-1].seconds == 9.5
    assert nights[-2].explanation == "exit code 2: error: no such file"
    problems = describe_problems(nights)
    assert len(problems) == 6  # neither what runs nor what is done
    assert problems[0] == "The night of 2026-11-27 22:00 was left out: the night before was still running."
    assert problems[-1] == "The night of 2026-11-21 22:00 failed: exit code 2: error: no such file."
    later = list_nights(tmp_path / "a", schedule, datetime(2026, 11, 28, 9, tzinfo=UTC))
    assert (26, "killed") in states(later)  # nobody holds the lock anymore


def test_a_night_is_missed_when_it_is_past(tmp_path: Path) -> None:
    schedule = make(tmp_path / "a")
    tonight = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)
    assert list_nights(tmp_path / "a", schedule, tonight + timedelta(minutes=1)) == []
    assert states(list_nights(tmp_path / "a", schedule, tonight + timedelta(minutes=3))) == [(20, "missed")]
    append_line(tmp_path / "a", {"night": at(20, 22, 4), "event": "begun"})  # late, but it came
    assert states(list_nights(tmp_path / "a", schedule, tonight + timedelta(minutes=5))) == [(20, "killed")]


def test_systemd_leaves_a_night_out_without_a_word(tmp_path: Path) -> None:
    """It does not start a service that still runs."""
    schedule = make(tmp_path / "a")
    for line in (
        {"night": at(20), "event": "begun"}, {"night": at(20), "event": "ended", "code": 0, "seconds": 25 * 3600},
        {"night": at(22), "event": "begun"}, {"night": at(22), "event": "ended", "code": 0, "seconds": 60},
        {"night": at(24), "event": "begun"},
    ):  # fmt: skip
        append_line(tmp_path / "a", line)
    with hold_night(tmp_path / "a"):
        nights = list_nights(tmp_path / "a", schedule, datetime(2026, 11, 25, 23, tzinfo=UTC))
    assert states(nights) == [(25, "left out"), (24, "running"), (23, "missed"), (22, "done"), (21, "left out"), (20, "done")]


def test_a_night_leaves_a_log_a_record_and_a_page_that_leads_to_the_report(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "report.html").write_text("x")
    schedule = make(tmp_path / "a", "runs", str(tmp_path), results=tmp_path / "study")
    assert run_night(tmp_path / "a", schedule) == 0
    (log,) = (tmp_path / "a" / "logs").iterdir()
    assert f"no run in {tmp_path}" in log.read_text()
    page = tmp_path / "a" / "report.html"
    assert '<a href="../study/report.html">' in page.read_text()
    assert "is done." in page.read_text()
    time.sleep(1.1)  # nights are told apart by the second in which they began
    assert run_night(tmp_path / "a", make(tmp_path / "a", "runs", str(tmp_path / "absent"))) == 2
    assert " failed: exit code 2: error: " in page.read_text()
    assert "is not a folder" in page.read_text()
    assert page.read_text().count("<tr><td>") == 2 + len(_missed(tmp_path / "a"))


def _missed(folder: Path) -> list[Night]:
    schedule = read_schedules(folder.parent)[folder.name]
    return [night for night in list_nights(folder, schedule, datetime.now(UTC)) if night.state == "missed"]


def test_a_night_begins_although_somebody_looks_whether_one_is_running(tmp_path: Path) -> None:
    """Looking takes the lock for a moment, in which a night must not be left out."""
    with hold_night(tmp_path) as looking:
        assert looking is not None and is_running(tmp_path)
        looked = threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN))
        looked.start()
        with hold_night(tmp_path) as night:
            assert night is not None
        looked.join()
    with hold_night(tmp_path), hold_night(tmp_path, seconds=0.1) as other:
        assert other is None


def test_one_night_never_overlaps_the_next_even_if_its_starter_was_killed(tmp_path: Path) -> None:
    """The command itself holds the night's place."""
    folder = tmp_path / "a"
    (tmp_path / "jobs").mkdir()
    program = "import sys, time\nprint('here', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "jobs" / "doctor.py").write_text(program)
    (tmp_path / "jobs" / "__init__.py").write_text("")
    schedule = Schedule(**{**vars(make(folder)), "working_dir": str(tmp_path)})
    write_schedule(folder, schedule)
    script = (
        "import sys; from pathlib import Path; from pipeline.schedules.nights import find_schedule\n"
        "from pipeline.schedules.run_night import run_night\n"
        "folder = Path(sys.argv[1]); sys.exit(run_night(folder, find_schedule(folder.parent, folder.name)))"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, str(folder)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    pid = 0
    try:
        deadline = time.monotonic() + 60
        while not any("here" in log.read_text() for log in (folder / "logs").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pid = int(Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()[0])
        starter.kill()
        starter.wait()
        assert run_night(folder, schedule) == 0
        events = [json.loads(line)["event"] for line in (folder / "nights.jsonl").read_text().splitlines()]
        assert events == ["begun", "left out"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            with hold_night(folder) as lock:
                if lock is not None:
                    break
            assert time.monotonic() < deadline
    finally:
        starter.kill()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_sigterm_reaches_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    program = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('here', flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "jobs" / "doctor.py").write_text(program)
    schedule = Schedule(**{**vars(make(folder)), "working_dir": str(tmp_path)})
    ended: dict[str, Any] = {}
    waiter = subprocess.Popen(
        [sys.executable, "-c", f"import os, time, pathlib\nlogs = pathlib.Path({str(folder / 'logs')!r})\n"
         f"while not any('here' in log.read_text() for log in logs.iterdir()): time.sleep(0.05)\nos.kill({os.getpid()}, 15)"]
    )  # fmt: skip
    ended["code"] = run_night(folder, schedule)
    waiter.wait()
    assert ended["code"] == 143
    assert states(list_nights(folder, schedule, CREATED))[0][1] == "stopped"


def test_a_schedule_is_found_by_its_name(tmp_path: Path) -> None:
    make(tmp_path / "search")
    make(tmp_path / "other")
    assert list(read_schedules(tmp_path)) == ["other", "search"]
    with pytest.raises(UserError, match=r"no schedule serach .*did you mean search"):
        find_schedule(tmp_path, "serach")
    with pytest.raises(UserError, match="there is none"):
        find_schedule(tmp_path / "absent", "x")
    (tmp_path / "other" / "schedule.json").write_text("{}")
    with pytest.raises(UserError, match=r"other/schedule\.json is not a schedule of this project"):
        read_schedules(tmp_path)


def test_the_page_shows_no_password_and_escapes(tmp_path: Path) -> None:
    schedule = make(tmp_path / "a", "search", "--storage", "postgresql://ada:pl4nted@db/x", "<b>")
    page = write_nights_page(tmp_path / "a", schedule, []).read_text()
    assert "pl4nted" not in page
    assert "&lt;b&gt;" in page
    assert "No night has begun yet." in page
