"""``python -m jobs.report RUN_FOLDER [RUN_FOLDER ...] [--out FILE]``: a table on the terminal and one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jobs.command import DONE, run
from pipeline.studies.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and the page's path."""
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description="Compare runs: a table and one HTML page.")
    parser.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="folder of a run, whole or partial (storage_path/name)")
    parser.add_argument("--out", metavar="FILE", help="the page (report.html in the run's folder, or beside several runs)")
    words = parser.parse_args(argv)
    report = write_report(words.runs, words.out)
    print(f"{report.table}\n\n{report.path}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
