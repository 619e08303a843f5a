"""Lists runs and studies: ``python -m jobs.runs [FOLDER]``, the one that changed last first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from jobs.command import DONE, make_parser, parse_folder, run
from pipeline.analysis.run_list import ListedRun, list_runs

COLUMNS = ("run", "what", "state", "done", "top-1 %", "changed", "size")
NUMBERS = ("done", "top-1 %", "size")
UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or with ``--json`` a list of objects."""
    about = "List the runs and studies in a folder: state, steps, accuracy of the mean of both students, age, size."
    parser = make_parser("runs", about, "runs --all")
    parser.add_argument("folders", nargs="*", type=parse_folder, metavar="FOLDER", help="a folder of runs (default: runs)")
    parser.add_argument("--all", action="store_true", help="list the runs that studies and searches consist of, too")
    parser.add_argument("--json", action="store_true", help="print a list of objects, with all accuracies and bytes")
    options = parser.parse_args(argv)
    folders = options.folders or [Path("runs")]
    found = _list_all(folders, options.all)
    if options.json:
        print(json.dumps([one.to_dict() for one in found], indent=1))
        return DONE
    if not found:
        print(f"no run in {', '.join(map(str, folders))}; python -m jobs.train --config FILE begins one")
        return DONE
    print("\n".join(format_list([one.to_dict() for one in found], _find_base(folders), datetime.now(UTC))))
    return DONE


def _list_all(folders: Sequence[Path], inside_studies: bool) -> list[ListedRun]:
    """Lists the runs of all ``folders``. Of several, those that are not there are only noted. Raises UserError otherwise."""
    there = [folder for folder in folders if folder.is_dir()]
    for folder in folders:
        if there and folder not in there:
            print(f"note: {folder} is not a folder", file=sys.stderr)
    found = [one for folder in there or folders for one in list_runs(folder, inside_studies)]
    return sorted(found, key=lambda one: one.changed, reverse=True)


def _find_base(folders: Sequence[Path]) -> str:
    """Finds the folder without which names of runs are shown: the one that was given, if it was only one."""
    return str(folders[0]) if len(folders) == 1 else ""


def format_list(found: Sequence[Mapping[str, Any]], folder: str, now: datetime) -> list[str]:
    """Formats the objects of ``--json`` for a terminal: a line for each run or study, then the protocols of the accuracies.

    Runs are named by their paths in ``folder``, or by their whole paths if they are not in it.
    """
    rows = [COLUMNS, *(_format_row(one, folder, now) for one in found)]
    protocols = dict.fromkeys(one["protocol"] for one in found if one["protocol"])
    shown = [f"top-1 of the mean of both students: {'; '.join(protocols)}"] if protocols else []
    return [*format_table(rows, NUMBERS), *(["", *shown] if shown else [])]


def format_table(rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> list[str]:
    """Formats rows of cells as lines with aligned columns; the first row names them, and those in ``numbers`` end aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(rows[0], row, widths, strict=True)
        lines.append("  ".join(t.rjust(width) if name in numbers else t.ljust(width) for name, t, width in cells).rstrip())
    return lines


def _format_row(one: Mapping[str, Any], folder: str, now: datetime) -> tuple[str, ...]:
    path = PurePath(one["folder"])
    name = str(path.relative_to(folder)) if folder and path.is_relative_to(folder) and str(path) != folder else str(path)
    top1 = one["top1"].get("mean")
    done = f"{one['done']:,}" if one["planned"] is None else f"{one['done']:,}/{one['planned']:,}"
    what, unit = (one["method"], "steps") if one["kind"] == "run" else (one["kind"], "trials")
    accuracy = "" if top1 is None else f"{top1:.1f}"
    age = format_age((now - datetime.fromisoformat(one["changed"])).total_seconds())
    return name, what, one["state"], f"{done} {unit}", accuracy, age, format_bytes(one["bytes"])


def format_age(seconds: float) -> str:
    """Formats how long ago something was, in its largest whole unit: ``3 hours ago``."""
    for unit, length in UNITS:
        if seconds >= length:
            number = int(seconds // length)
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"


def format_bytes(number: int) -> str:
    """Formats a number of bytes with at least two digits: ``12 KiB``, ``3.4 GiB``."""
    size, unit = number / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}" if 0 < size < 10 else f"{size:.0f} {unit}"


if __name__ == "__main__":
    raise SystemExit(run(main))
