"""``python -m jobs.report FOLDER [FOLDER ...]``: tables on the terminal, one HTML page, and the tables as files beside it.

``--copy OUT`` keeps what the page was made of as small files, without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.command import DONE, make_parser, run
from pipeline.config import convert_to_type_of, explain_unknown, list_keys
from pipeline.config.text import parse_word
from pipeline.errors import UserError
from pipeline.report.report import FORMATS, write_report
from pipeline.report.small_copy import copy_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables and the files' paths."""
    about = "Compare runs, ablations and searches: tables on the terminal, and one HTML page that needs no other file."
    parser = make_parser("report", about, "runs/first runs/second --out page.html", "runs/baseline")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a run, or a folder of runs (ablation, search), whole or partial"
    )
    page = parser.add_argument_group("the page")
    about = "its file (default: report.html in the folder of the run or study, or in the one that has all of several)"
    page.add_argument("--out", metavar="FILE", help=about)
    about = "write only this: the page, or its tables for Markdown, spreadsheets or LaTeX; repeatable (default: all)"
    page.add_argument("--format", dest="formats", action="append", choices=FORMATS, help=about)
    about = "the setting that others are compared with, by its configuration keys (default: the study's, or supervised)"
    page.add_argument("--baseline", nargs="+", metavar="KEY=VALUE", help=about)
    copy = parser.add_argument_group("instead of the page")
    about = "write a small copy of the runs to OUT, without weights: all that a page needs"
    copy.add_argument("--copy", metavar="OUT", type=Path, help=about)
    options = parser.parse_args(argv)
    if options.copy:
        print("\n".join(map(str, copy_runs(options.folders, options.copy))))
        return DONE
    formats = tuple(dict.fromkeys(options.formats or FORMATS))
    report = write_report(options.folders, options.out, formats, _parse_baseline(options.baseline))
    print("\n".join([report.table, "", *map(str, report.files[1:]), str(report.files[0])]))
    return DONE


def _parse_baseline(words: Sequence[str] | None) -> dict[str, Any] | None:
    if words is None:
        return None
    pairs = [word.partition("=") for word in words]
    wrong = [key if not equals else explain_unknown(key) for key, equals, _ in pairs if not equals or key not in list_keys()]
    if wrong:
        raise UserError("--baseline wants configuration keys as key=value, for example method.contrast.weight=2:", wrong)
    try:
        return {key: convert_to_type_of(key, parse_word(value)) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise UserError(f"--baseline {' '.join(words)}: {str(error).splitlines()[0]}") from None


if __name__ == "__main__":
    raise SystemExit(run(main))
