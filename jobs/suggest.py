"""``python -m jobs.suggest RUN_FOLDER --count 40``: choose which unlabeled videos people should label next.

It writes suggest.csv and a page on which each video plays and its probable classes are buttons and keys. Its answers go to
``python -m jobs.label MANIFEST --add answers.csv --from labels.parquet --out more.parquet``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, make_parser, run
from pipeline.errors import UserError
from pipeline.labeling.answer_server import AnswerFile, lock_answers, start_server
from pipeline.labeling.candidates import Wish
from pipeline.labeling.labeling_page import render_labeling_page
from pipeline.labeling.strategies import STRATEGIES
from pipeline.labeling.suggest import Suggestions, format_table, suggest_videos
from pipeline.report.loopback import HOST
from pipeline.report.parts.html import write_file, write_page

MAX_COUNT = 1000
"""Videos on a page: their animations take 40 MB."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the table and the page, or serves the page."""
    options = _build_parser().parse_intermixed_args(argv)
    if not 1 <= options.count <= MAX_COUNT:
        raise UserError(f"--count {options.count}: write 1 to {MAX_COUNT}")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative")
    if options.answers and options.serve is None:
        raise UserError("--answers is for --serve; without it the page's button downloads the file")
    folder = Path(options.run).expanduser()
    out = (options.out or folder / "suggest").expanduser().resolve()
    wish = Wish(
        options.count, options.strategy, options.seed, options.balanced, options.skip_groups, options.skip_duplicates,
        tuple(options.without),
    )  # fmt: skip
    suggestions = suggest_videos(folder, wish, options.predictions, options.overrides)
    write_file(format_table(suggestions.videos), out / "suggest.csv", "--out")
    write_page(render_labeling_page(suggestions), out / "label.html", "--out")
    print("\n".join(_describe(suggestions, out)))
    if options.serve is not None:
        _serve(suggestions, (options.answers or out / "answers.csv").expanduser().resolve(), options.serve)
    return DONE


def _describe(suggestions: Suggestions, out: Path) -> list[str]:
    lines = [f"note: {note}" for note in suggestions.notes]
    for video in suggestions.videos[:5]:
        lines.append(f"{video.score:6.3f}  {video.id}  {video.reason}")
    lines += [f"        and {len(suggestions.videos) - 5} more"] if len(suggestions.videos) > 5 else []
    lines += [str(out / "suggest.csv"), str(out / "label.html")]
    add = (
        f"python -m jobs.label {suggestions.source.manifest.path} --add answers.csv --from {suggestions.labels_path} --out FILE"
    )
    return [*lines, "next     open the page, label the videos, and add the answers:", f"         {add}"]


def _serve(suggestions: Suggestions, path: Path, port: int) -> None:
    """Serves the page until Ctrl-C; every answer is in the file before the page says that it is saved."""
    ids = frozenset(video.id for video in suggestions.videos)
    with lock_answers(path):
        answers = AnswerFile(path, suggestions.run.name, suggestions.source.manifest, ids)
        with start_server(lambda token: render_labeling_page(suggestions, token, answers.id), answers, port) as server:
            print(f"open http://{HOST}:{server.server_port}/ and press Ctrl-C when done; answers go to {path}", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print(f"{len(answers.list_answers())} answers in {path}")


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser("suggest", __doc__, "runs/first --count 40 --strategy mixed", "runs/first --serve")
    parser.add_argument("run", metavar="RUN_FOLDER", help="a run that saved scores of its unlabeled videos, finished or not")
    parser.add_argument("overrides", nargs="*", metavar="data.manifest=FILE", help="where the data is now, if it moved")
    which = parser.add_argument_group("which videos")
    which.add_argument("--count", type=int, default=40, metavar="N", help="videos to suggest (default: 40)")
    which.add_argument(
        "--strategy", choices=STRATEGIES, default="mixed", metavar="NAME",
        help="mixed: uncertain and different from each other (default); disagreement of the students; entropy or margin of "
        "their mean; unfamiliar: like no class; unstable over training; diverse; random",
    )  # fmt: skip
    which.add_argument("--seed", type=int, default=0, metavar="N", help="of whatever is drawn (default: 0)")
    which.add_argument("--balanced", action="store_true", help="equally many of each predicted class")
    which.add_argument("--skip-groups", action="store_true", help="no videos of a recording or person that has a label")
    which.add_argument("--skip-duplicates", action="store_true", help="no videos that look like a labeled or a chosen one")
    which.add_argument(
        "--without", action="append", default=[], metavar="FILE", type=Path,
        help="no videos that this file of answers is about; repeatable",
    )  # fmt: skip
    about = "choose by a Parquet table of jobs.predict, and not by the scores that training saved"
    which.add_argument("--predictions", metavar="FILE", type=Path, help=about)
    page = parser.add_argument_group("the page")
    about = "folder of suggest.csv and label.html (default: suggest/ in the run folder)"
    page.add_argument("--out", metavar="FOLDER", type=Path, help=about)
    page.add_argument(
        "--serve", nargs="?", type=int, const=8642, metavar="PORT",
        help="serve the page to browsers of this machine, and save every answer (PORT: 8642; 0: any that is free)",
    )  # fmt: skip
    about = "with --serve: the file of answers (default: answers.csv in --out)"
    page.add_argument("--answers", metavar="FILE", type=Path, help=about)
    return parser


if __name__ == "__main__":
    raise SystemExit(run(main))
