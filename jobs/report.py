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
    about = "Compare runs, ablations and searches: tables and one HTML page."
    parser = make_parser("report", about, "runs/first runs/second --out page.html")
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="a run, or a folder of runs (ablation, search), whole or partial"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the page (report.html in the run's or study's folder, or beside several)"
    )
    parser.add_argument("--format", dest="formats", action="append", choices=FORMATS, help="write only these (default: all)")
    parser.add_argument("--baseline", nargs="+", metavar="KEY=VALUE", help="configuration keys of the setting to compare with")
    parser.add_argument(
        "--copy", metavar="OUT", type=Path, help="write no page, but a small copy of the runs to OUT: all that a page needs"
    )
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
