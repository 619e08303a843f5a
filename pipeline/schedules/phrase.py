"""Times as people say them, ``every weekday at 22:00``, as the five fields of a line of cron, and when the next ones are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from croniter import croniter

from pipeline.errors import UserError, find_nearest_name

DAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
GROUPS = {"night": "*", "day": "*", "evening": "*", "morning": "*", "weekday": "1-5", "weekend": "0,6"}
"""Days of the week by the word for them, as cron writes them. The time of day is always said: an evening is at no fixed
hour."""
UNITS = {"minute": 60, "hour": 24}
"""The largest number of each that may lie between two times."""
WORDS = ("every", "at", "and", *DAYS, *GROUPS, *UNITS, *(f"{unit}s" for unit in UNITS))
EXAMPLES = "'every night at 22:00', 'every weekday at 6:30 and 18:30', 'every monday and thursday at 3:00', 'every 30 minutes'"


@dataclass(frozen=True)
class Times:
    """When a schedule starts, in the time zone of the machine."""

    phrase: str
    cron: str
    """Minute, hour, day of the month, month and day of the week, as crontab(5) has them."""

    def list_next(self, after: datetime, number: int) -> list[datetime]:
        """Lists the next times after ``after``, which has a time zone; they are in the same one."""
        times = croniter(self.cron, after)
        return [times.get_next(datetime) for _ in range(number)]

    def list_between(self, after: datetime, before: datetime, at_most: int) -> list[datetime]:
        """Lists the last times, at most so many, that lie after ``after`` and before ``before``, the earliest first."""
        found: list[datetime] = []
        times = croniter(self.cron, before)
        while len(found) < at_most and (time := times.get_prev(datetime)) > after:
            found.append(time)
        return found[::-1]

    @property
    def calendar(self) -> str:
        """The same as systemd writes it, for example ``Mon..Fri *-*-* 22:00:00``. Raises UserError for what it is not made
        for: days of the month, months and ranges of hours."""
        minute, hour, *rest, weekday = self.cron.split()
        fields = [re.sub(r"^\*/(\d+)$", r"0/\1", field) for field in (minute, hour)]
        if rest != ["*", "*"] or not all(re.fullmatch(r"\*|0/\d+|\d+(,\d+)*", field) for field in fields):
            raise UserError(f"'{self.phrase}' cannot be written for systemd: say it as in {EXAMPLES}, or use --by cron")
        days = "" if weekday == "*" else f"{_name_weekdays(weekday)} "
        minutes, hours = (re.sub(r"\b\d\b(?<!/\d)", lambda found: f"0{found[0]}", field) for field in fields)
        return f"{days}*-*-* {hours}:{minutes}:00"


def parse_times(phrase: str) -> Times:
    """Parses a phrase, or the five fields of cron as they are. Raises UserError with what was probably meant."""
    words = phrase.lower().replace(",", " and ").split()
    if len(words) == 5 and re.fullmatch(r"[\d*/,\- a-z]+", phrase.lower()) and words[0][0] in "*0123456789":
        if not croniter.is_valid(phrase):
            raise UserError(f"'{phrase}' are not five fields of cron; say it as in {EXAMPLES}")
        return Times(phrase, " ".join(phrase.split()))
    words = [_correct(word, phrase) for word in words]
    if words[:1] != ["every"]:
        raise UserError(f"'{phrase}' must begin with 'every', as in {EXAMPLES}")
    before, _, after = " ".join(words[1:]).partition(" at ")
    step = re.fullmatch(r"(?:(\d+) )?(minute|hour)s?", before)
    if step:
        if after:
            raise UserError(f"'{phrase}': what comes every {before} has no time of day; leave out 'at {after}'")
        return Times(phrase, _repeat(int(step[1] or 1), step[2], phrase))
    if not after:
        raise UserError(f"'{phrase}' does not say when: add a time of day, for example '{phrase} at 22:00'")
    weekdays = _join_days([word for word in before.split() if word != "and"], phrase)
    return Times(phrase, f"{_join_hours(after, phrase)} * * {weekdays}")


def _correct(word: str, phrase: str) -> str:
    """Returns a known word in the singular, or a number or time. Raises UserError with the nearest known one."""
    singular = word[:-1] if word.endswith("s") and word[:-1] in (*DAYS, *GROUPS) else word
    if singular in WORDS or re.fullmatch(r"\d+(:\d+)?", word):
        return singular
    nearest = find_nearest_name(word, WORDS)
    meant = f"; did you mean '{nearest}'?" if nearest else f"; say it as in {EXAMPLES}"
    raise UserError(f"'{phrase}': '{word}' is not understood{meant}")


def _repeat(number: int, unit: str, phrase: str) -> str:
    whole = UNITS[unit]
    if not 1 <= number < whole or whole % number:
        fitting = [n for n in range(1, whole) if whole % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - number))
        raise UserError(
            f"'{phrase}': {number} {unit}s do not divide {whole}, so cron cannot keep them apart; did you mean {nearest}?"
        )
    field = "*" if number == 1 else f"*/{number}"
    return f"{field} * * * *" if unit == "minute" else f"0 {field} * * *"


def _join_days(words: Sequence[str], phrase: str) -> str:
    if not words or not all(word in DAYS or word in GROUPS for word in words):
        raise UserError(f"'{phrase}' names no days: say it as in {EXAMPLES}")
    if "*" in (named := [GROUPS.get(word) or str(DAYS.index(word)) for word in words]):
        return "*"
    numbers = {int(n) for part in named for n in (range(1, 6) if part == "1-5" else part.split(","))}
    return ",".join(map(str, sorted(numbers))) if numbers != set(range(1, 6)) else "1-5"


def _join_hours(text: str, phrase: str) -> str:
    """Joins times of day to cron's first two fields; they must share their minutes, because cron combines the two."""
    times = []
    for word in text.split(" and "):
        time = re.fullmatch(r"(\d{1,2}):(\d{2})", word)
        if not time or int(time[1]) > 23 or int(time[2]) > 59:
            raise UserError(f"'{phrase}': '{word}' is not a time of day; write it from 0:00 to 23:59, for example 22:00")
        times.append((int(time[1]), int(time[2])))
    minutes = {minute for _, minute in times}
    if len(minutes) > 1:
        raise UserError(f"'{phrase}': times of one schedule share their minutes; add a second schedule for the others")
    return f"{minutes.pop()} {','.join(str(hour) for hour, _ in sorted(set(times)))}"


def _name_weekdays(field: str) -> str:
    if field == "1-5":
        return "Mon..Fri"
    if not re.fullmatch(r"[0-6](,[0-6])*", field):
        raise UserError(f"days of the week {field} cannot be written for systemd: name them, or use --by cron")
    return ",".join(DAYS[int(number)][:3].capitalize() for number in field.split(","))
