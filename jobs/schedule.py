"""``python -m jobs.schedule add "every night at 22:00" -- search ...``: start a command at set times, for example every night.

A timer of systemd for this user starts the nights, or a line in this user's crontab. One night never overlaps the next. What
became of them is in FOLDER/NAME, with a log for each and a page, report.html, that leads to the newest report.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.__main__ import COMMANDS
from jobs.command import DONE, FAILED, describe_command, make_parser, name_arguments, parse_folder, parse_positive, run
from jobs.runs import format_table
from pipeline.errors import UserError
from pipeline.files.url_passwords import has_password, hide_passwords
from pipeline.run_folder.results_folder import find_results
from pipeline.schedules.kubernetes import BASES, build_kustomization
from pipeline.schedules.nights import (
    Schedule,
    find_schedule,
    is_running,
    list_nights,
    now_here,
    read_schedules,
    write_schedule,
)
from pipeline.schedules.nights_page import describe_problems, write_nights_page
from pipeline.schedules.phrase import parse_times
from pipeline.schedules.run_night import check_command, run_night
from pipeline.schedules.timers import add_timer, choose_starter, has_timer, is_cron_running, remove_timer

DEFAULT_FOLDER = Path("runs/schedules")
SCHEDULED = [name for name in COMMANDS if name not in ("schedule", "cluster", "completion", "serve", "watch")]
NO_CRON = "No cron runs on this machine, so nothing would start it: start cron, for example with: service cron start"

ACTIONS = {
    "add": "start the command behind -- at set times, in this folder and with this Python",
    "list": "schedules, and what became of their last nights",
    "remove": "start a schedule's command no longer; what its nights wrote stays",
    "next": "when the next nights begin",
    "night": "run one night now, as the timer does",
}
EXAMPLES = {
    "add": 'add "every night at 22:00" -- search --config FILE --space rates --trials 99 --hours 9',
    "list": "list",
    "remove": "remove nightly",
    "next": "next nightly --count 5",
    "night": "night nightly",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Does one of the actions. Raises UserError for any mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    options = build_parser().parse_args(words[:end])
    options.command = tuple(words[end + 1 :])
    options.folder = options.folder.expanduser().resolve()
    if options.command and options.action != "add":
        raise UserError(f"{options.action} takes no command: leave out -- and what follows")
    actions = {"add": _add, "list": _list, "remove": _remove, "next": _show_next, "night": _run_night}
    return actions[options.action](options)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of what comes before ``--``."""
    parser = make_parser("schedule", __doc__, EXAMPLES["add"], "list")
    about = f"folder with all schedules (default: {DEFAULT_FOLDER})"
    parser.add_argument("--folder", type=parse_folder, default=DEFAULT_FOLDER, metavar="FOLDER", help=about)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions (ACTION --help has more)")
    made = {name: _add_action(actions, parser.prog, name, about) for name, about in ACTIONS.items()}
    add = made["add"]
    add.add_argument("times", metavar="TIMES", help="for example 'every weekday at 22:00', or five fields of cron")
    add.add_argument("--name", metavar="NAME", help="of the schedule (default: the command's name)")
    add.add_argument("--by", choices=("systemd", "cron"), help="who starts it (default: systemd where it is, else cron)")
    printed = add.add_argument_group("instead")
    about = "write nothing, and print a file for Kubernetes"
    printed.add_argument("--print", choices=sorted(BASES), help=about)
    printed.add_argument("--time-zone", default="Etc/UTC", metavar="ZONE", help="of the printed file (default: Etc/UTC)")
    made["list"].add_argument("--json", action="store_true", help="print a list of objects")
    made["remove"].add_argument("name", metavar="NAME", help="of the schedule")
    coming = made["next"]
    coming.add_argument("name", nargs="?", metavar="NAME", help="of a schedule, or TIMES in quotes (default: all schedules)")
    coming.add_argument("--count", type=parse_positive, default=3, metavar="N", help="how many of each (default: 3)")
    made["night"].add_argument("name", metavar="NAME", help="of the schedule")
    return parser


def _add_action(actions: Any, program: str, name: str, about: str) -> argparse.ArgumentParser:
    described = describe_command(f"{program} {name}", f"{about}.", EXAMPLES[name].removeprefix(name).strip())
    made: argparse.ArgumentParser = actions.add_parser(name, help=about, **described)
    return name_arguments(made)


def _add(options: argparse.Namespace) -> int:
    times = parse_times(options.times)
    check_command(options.command, SCHEDULED)
    if secret := next((word for word in options.command if has_password(word)), None):
        raise UserError(
            f"{hide_passwords(secret)} has a password, which would be stored with the schedule: leave it out, and give it by a "
            "file that the program knows, for PostgreSQL ~/.pgpass"
        )
    name = options.name or options.command[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,40}", name):
        raise UserError(f"--name {name}: use small letters, digits and -, for example nightly-search")
    if options.print:
        print(build_kustomization(options.print, name, times, options.command, options.time_zone), end="")
        return DONE
    folder = options.folder / name
    if (folder / "schedule.json").exists():
        raise UserError(f"there is a schedule {name} in {options.folder}: remove it first, or give another --name")
    starter = choose_starter(options.by)
    if starter == "systemd":
        times.calendar  # noqa: B018 - refuses what systemd cannot say, before anything is written
    schedule = Schedule(
        name, times.phrase, times.cron, options.command, os.getcwd(), sys.executable, starter,
        now_here().isoformat(timespec="seconds"), _find_results(options.command),
    )  # fmt: skip
    write_schedule(folder, schedule)
    try:
        add_timer(options.folder, schedule)
    except UserError:
        shutil.rmtree(folder)
        raise
    page = write_nights_page(folder, schedule, [])
    first = times.list_next(now_here(), 1)[0]
    print(f"{name}: {times.phrase} ({times.cron}), by {starter}; first on {first:%A, %Y-%m-%d at %H:%M}\nreport {page}")
    if starter == "cron" and not is_cron_running():
        print(f"note: {NO_CRON}", file=sys.stderr)
    return DONE


def _find_results(command: tuple[str, ...]) -> str | None:
    """Finds the folder of the study or run that the command writes on this machine, as an absolute path or a URI."""
    if command[0] not in ("train", "search", "ablate"):
        return None
    found = find_results(command[0], command[1:], Path.cwd())
    return found if found is None or "://" in found else str(Path(found).expanduser().resolve())


def _list(options: argparse.Namespace) -> int:
    schedules = read_schedules(options.folder)
    described = [_describe(options.folder, schedule) for schedule in schedules.values()]
    if options.json:
        print(json.dumps(described, indent=1))
        return DONE
    if not schedules:
        print(f"no schedule in {options.folder}; python -m jobs.schedule add TIMES -- COMMAND makes one")
        return DONE
    rows = [("name", "times", "by", "next", "last night", "command")]
    for one in described:
        last = one["nights"][0] if one["nights"] else None
        said = f"{last['begun'][:16].replace('T', ' ')} {last['state']}" if last else "none yet"
        rows.append((one["name"], one["phrase"], one["started_by"], one["next"][:16].replace("T", " "), said, one["command"]))
    print("\n".join([*format_table(rows, ()), ""]))
    for one in described:
        print("\n".join([*(f"{one['name']}: {problem}" for problem in one["problems"]), f"{one['name']}: {one['page']}"]))
    return DONE


def _describe(folder: Path, schedule: Schedule) -> dict[str, Any]:
    now = now_here()
    nights = list_nights(folder / schedule.name, schedule, now)
    problems = describe_problems(nights)
    if not has_timer(schedule):
        problems.insert(0, f"Its timer is gone from {schedule.started_by}: remove the schedule and add it again.")
    elif schedule.started_by == "cron" and not is_cron_running():
        problems.insert(0, NO_CRON)
    return {
        "name": schedule.name, "phrase": schedule.phrase, "cron": schedule.cron, "started_by": schedule.started_by,
        "next": schedule.times.list_next(now, 1)[0].isoformat(timespec="seconds"), "command": shlex.join(schedule.command),
        "working_dir": schedule.working_dir, "results": schedule.results,
        "page": str(write_nights_page(folder / schedule.name, schedule, nights)), "problems": problems,
        "nights": [{**vars(night), "begun": night.begun.isoformat(timespec="seconds")} for night in nights],
    }  # fmt: skip


def _remove(options: argparse.Namespace) -> int:
    schedule = find_schedule(options.folder, options.name)
    folder = options.folder / options.name
    remove_timer(schedule)
    (folder / "schedule.json").rename(folder / "removed.json")
    running = "; the command that it started is still running" if is_running(folder) else ""
    print(f"{options.name} is removed{running}; logs and report stay in {folder}")
    return DONE


def _show_next(options: argparse.Namespace) -> int:
    if options.name and " " in options.name:
        asked = {options.name: parse_times(options.name)}
    elif options.name:
        asked = {options.name: find_schedule(options.folder, options.name).times}
    else:
        asked = {name: schedule.times for name, schedule in read_schedules(options.folder).items()}
    for name, times in asked.items():
        for time in times.list_next(now_here(), options.count):
            print(f"{time:%a %Y-%m-%d %H:%M %Z}  {name}")
    if not asked:
        print(f"no schedule in {options.folder}")
    return DONE


def _run_night(options: argparse.Namespace) -> int:
    code = run_night(options.folder / options.name, find_schedule(options.folder, options.name))
    return DONE if code == 0 else FAILED if code == 1 else code


if __name__ == "__main__":
    raise SystemExit(run(main))
