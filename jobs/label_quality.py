"""``python -m jobs.label_quality RUN_FOLDER ...``: measure how good the pseudo-labels were that the networks gave.

Labels of the other network (cross), of the network itself (self) and of the mean of both are compared, at every threshold, by
the scores that training saved. The run may be finished or under way: scores are written with every checkpoint
(``train.save_scores_every``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, make_parser, run
from pipeline.report.pages.label_report import write_label_report


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the answers and a table for each setting, and writes label_quality.csv into each run folder, and a page."""
    parser = make_parser("label_quality", __doc__, "runs/first")
    parser.add_argument("runs", nargs="+", metavar="RUN_FOLDER", help="runs with saved scores, or a folder of them")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the page (default: label_quality.html in the run's folder)")
    options = parser.parse_args(argv)
    report = write_label_report(options.runs, options.out)
    print("\n".join([report.text, *map(str, report.files)]))
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
