"""The page of a schedule's last nights: what went wrong is said first, and a link leads to the study's own report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.files.url_passwords import hide_passwords
from pipeline.report.parts.html import write_file
from pipeline.schedules.nights import Night, Schedule

PAGE = "report.html"


def describe_problems(nights: Sequence[Night]) -> list[str]:
    """Describes, a sentence each, the nights that went wrong since the last one that was done; the newest first."""
    sentences = []
    for night in nights:
        if night.state == "done":
            break
        if not night.is_well:
            why = f": {night.explanation}" if night.explanation else ""
            became = "failed" if night.state == "failed" else f"was {night.state}"
            sentences.append(f"The night of {night.begun:%Y-%m-%d %H:%M} {became}{why}.")
    return sentences


def write_nights_page(folder: Path, schedule: Schedule, nights: Sequence[Night]) -> Path:
    """Writes the page, with a link to the report of the command's study or run if that is on this machine."""
    problems = describe_problems(nights)
    report = Path(schedule.results) / "report.html" if schedule.results and "://" not in schedule.results else None
    html = Environment(
        loader=PackageLoader("pipeline.schedules"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("nights.html.j2").render(
        name=schedule.name, phrase=schedule.phrase, command=hide_passwords(shlex.join(schedule.command)),
        sentences=problems or [f"The last night, of {nights[0].begun:%Y-%m-%d %H:%M}, is {nights[0].state}." if nights else
                               "No night has begun yet."],
        bad=len(problems), results=Path(schedule.results or "").name,
        report=os.path.relpath(report, folder) if report is not None and report.is_file() else "",
        nights=[{"begun": f"{night.begun:%Y-%m-%d %H:%M}", "state": night.state, "explanation": night.explanation,
                 "hours": "" if night.seconds is None else f"{night.seconds / 3600:.1f}", "log": night.log or "",
                 "is_well": night.is_well} for night in nights],
    )  # fmt: skip
    write_file(html, folder / PAGE, "the page")
    return folder / PAGE
