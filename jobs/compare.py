"""``python -m jobs.compare RUN[:STUDENT] RUN[:STUDENT]``: compare two models on the same videos, class by class.

STUDENT is primary, auxiliary or mean (the default): RUN:primary RUN:auxiliary compares both students of one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, make_parser, run
from pipeline.analysis.paired_models import compare_models, read_results
from pipeline.report.pages.comparison_page import build_class_gaps_table, build_summary_table, write_comparison_page
from pipeline.report.parts import formats


def main(argv: Sequence[str] | None = None) -> int:
    """Prints both tables, and writes the page if ``--out`` names it."""
    parser = make_parser(
        "compare", __doc__, "runs/first runs/second --out page.html", "runs/first:primary runs/first:auxiliary"
    )
    for name in ("first", "second"):
        about = "folder of an evaluated run or model, or a file of its scores; and which student's scores"
        parser.add_argument(name, metavar="RUN[:STUDENT]", help=about)
    parser.add_argument("--out", metavar="FILE", type=Path, help="write an HTML page, too, on which the differences are drawn")
    options = parser.parse_args(argv)
    pair = compare_models(read_results(options.first), read_results(options.second))
    summary, classes = build_summary_table(pair), build_class_gaps_table(pair)
    tables = [formats.format_text(summary), summary.caption, *pair.notes, formats.format_text(classes), classes.caption]
    print("\n\n".join(tables))
    if options.out:
        write_comparison_page(pair, options.out)
        print(f"\n{options.out}")
    return DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
