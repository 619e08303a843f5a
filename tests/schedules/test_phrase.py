"""Times as people say them, as cron and systemd write them, and what is said of those that are not understood."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime

import pytest

from pipeline.errors import UserError
from pipeline.schedules.phrase import parse_times

KNOWN = [
    ("every night at 22:00", "0 22 * * *", "*-*-* 22:00:00"),
    ("Every Day at 6:05", "5 6 * * *", "*-*-* 06:05:00"),
    ("every weekday at 6:30 and 18:30", "30 6,18 * * 1-5", "Mon..Fri *-*-* 06,18:30:00"),
    ("every weekend at 1:00", "0 1 * * 0,6", "Sun,Sat *-*-* 01:00:00"),
    ("every monday and thursday at 3:00", "0 3 * * 1,4", "Mon,Thu *-*-* 03:00:00"),
    ("every fridays, weekend at 3:00", "0 3 * * 0,5,6", "Sun,Fri,Sat *-*-* 03:00:00"),
    ("every 30 minutes", "*/30 * * * *", "*-*-* *:00/30:00"),
    ("every minute", "* * * * *", "*-*-* *:*:00"),
    ("every 2 hours", "0 */2 * * *", "*-*-* 00/2:00:00"),
    ("0 22 * * 1-5", "0 22 * * 1-5", "Mon..Fri *-*-* 22:00:00"),
]


@pytest.mark.parametrize(("phrase", "cron", "calendar"), KNOWN)
def test_times_that_are_understood(phrase: str, cron: str, calendar: str) -> None:
    times = parse_times(phrase)
    assert (times.cron, times.calendar) == (cron, calendar)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("phrase", [phrase for phrase, _, _ in KNOWN])
def test_systemd_means_the_same_as_cron(phrase: str) -> None:
    times = parse_times(phrase)
    start = datetime(2026, 11, 29, 12, 34, 30, tzinfo=UTC)
    command = ["systemd-analyze", "calendar", "--iterations=5", "--base-time=2026-11-29 12:34:30 UTC", times.calendar]
    said = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"}
    ).stdout
    stamps = [line.split(": ", 1)[1] for line in said.splitlines() if "elapse:" in line or "Iter" in line]
    assert len(stamps) == 5
    assert [stamp.split()[1:3] for stamp in stamps] == [
        time.strftime("%Y-%m-%d %H:%M:%S").split() for time in times.list_next(start, 5)
    ]


@pytest.mark.parametrize(
    ("phrase", "remedy"),
    [
        ("evry night at 22:00", "'evry' is not understood; did you mean 'every'?"),
        ("every nihgt at 22:00", "did you mean 'night'?"),
        ("every tusday at 22:00", "did you mean 'tuesday'?"),
        ("tomorrow", "say it as in 'every night at 22:00'"),
        ("22:00", "must begin with 'every'"),
        ("", "must begin with 'every'"),
        ("every night", "for example 'every night at 22:00'"),
        ("every at 22:00", "is not understood|names no days|does not say when"),
        ("every night at 25:00", "'25:00' is not a time of day"),
        ("every night at 10:60", "'10:60' is not a time of day"),
        ("every night at 22", "'22' is not a time of day; write it from 0:00 to 23:59"),
        ("every night at 6:00 and 7:30", "share their minutes; add a second schedule"),
        ("every 7 minutes", "7 minutes do not divide 60.*did you mean 6"),
        ("every 0 hours", "did you mean 1"),
        ("every 5 minutes at 3:00", "leave out 'at 3:00'"),
        ("61 * * * *", "not five fields of cron"),
    ],
)
def test_times_that_are_not_understood(phrase: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        parse_times(phrase)


@pytest.mark.parametrize("cron", ["0 22 1 * *", "0 22 * 6 *", "0 9-17 * * *", "0 22 * * 1-3"])
def test_what_systemd_cannot_say_is_refused(cron: str) -> None:
    with pytest.raises(UserError, match=r"for systemd.*--by cron"):
        parse_times(cron).calendar  # noqa: B018


def test_next_and_past_times() -> None:
    times = parse_times("every weekday at 22:00")
    friday = datetime(2026, 11, 27, 21, 0, tzinfo=UTC)
    assert [time.day for time in times.list_next(friday, 3)] == [27, 30, 1]
    assert [time.day for time in times.list_between(friday, datetime(2026, 12, 2, tzinfo=UTC), 9)] == [27, 30, 1]
    assert [time.day for time in times.list_between(friday, datetime(2026, 12, 2, tzinfo=UTC), 2)] == [30, 1]
