"""``python -m jobs.inspect MANIFEST [--verify] [--html PAGE]``: see what a data set holds: classes, splits, damaged files.

``jobs.inspect clips --config FILE --step N`` makes a page of the clips that both networks see in one training step.
``jobs.inspect labels RUN_FOLDER`` lists labels that are probably wrong. Each has a ``--help`` of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, add_configuration, check_hours, make_parser, run
from pipeline.config import Config, DataSection, load_config
from pipeline.errors import UserError, list_first
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.manifest.summary import format_summary, summarize_manifest
from pipeline.manifest.verify import find_altered_files
from pipeline.report.pages.contact_sheet import write_contact_sheet
from pipeline.report.parts.html import write_file, write_page


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects a manifest or, after the word ``clips`` or ``labels``, the clips of one training step or the labels of a run."""
    words = list(sys.argv[1:] if argv is None else argv)
    kinds = {"clips": _write_step_page, "labels": _check_labels}
    return kinds[words[0]](words[1:]) if words and words[0] in kinds else _inspect_manifest(words)


def _inspect_manifest(argv: Sequence[str]) -> int:
    """Prints what is in a manifest. Returns 1 if ``--verify`` finds a changed file."""
    parser = make_parser(
        "inspect",
        __doc__,
        "data/mine/manifest.parquet --html page.html",
        "clips --config jobs/configs/demo.yaml --step 100",
        "labels runs/first --folds 5",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="manifest.parquet, written by jobs.prepare")
    parser.add_argument("--root", metavar="DIR", help="where the videos are now, if they moved")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its stored hash")
    parser.add_argument(
        "--html", metavar="PAGE", type=Path, help="write a page with frames of each class, and the unusable files"
    )
    about = "with --html: videos of each class on the page (default: 6)"
    parser.add_argument("--per-class", type=int, default=6, metavar="N", help=about)
    options = parser.parse_args(argv)
    if options.per_class < 1:
        raise UserError(f"--per-class {options.per_class} must be at least 1")
    manifest = read_manifest(options.manifest, options.root)
    summary = summarize_manifest(manifest)
    print(format_summary(manifest, summary))
    print(f"\nlabels beside it: {_describe_labels(manifest)}")
    changed = _verify_files(manifest) if options.verify else None
    if options.html:
        write_contact_sheet(manifest, summary, options.html, options.per_class, changed)
        print(f"\npage {options.html}")
    return FAILED if changed else DONE


def _describe_labels(manifest: Manifest) -> str:
    """Describes the label subset that a run takes unless ``data.labels`` names another."""
    try:
        subset = read_labels(Config(data=DataSection(manifest=str(manifest.path))).labels_path, manifest)
    except UserError as error:
        return str(error)  # there is none, or it cannot be used
    held_out = f"; {len(subset.held_out)} more are held out" if len(subset.held_out) else ""
    return f"{len(subset.rows)} videos ({subset.spec}, seed {subset.seed}){held_out}"


def _verify_files(manifest: Manifest) -> list[tuple[str, str]]:
    changed = find_altered_files(manifest)
    print(f"\n{len(changed)} files are not what they were when the manifest was written" + (":" if changed else ""))
    for line in list_first([f"{uri}: {problem}" for uri, problem in changed]):
        print(f"  {line}")
    return changed


def _write_step_page(argv: Sequence[str]) -> int:
    """Writes a page with the views of one step."""
    from pipeline.clips.source import open_source  # with torch, for which a manifest's summary need not wait
    from pipeline.methods import find_first_unlabeled_step
    from pipeline.report.pages.step_views import write_step_page
    from pipeline.saved_models.saved_run import check_inputs

    about = "Make a page of the clips of one training step, as both networks see them: the weakly and the strongly augmented."
    parser = make_parser("inspect clips", about, "--config jobs/configs/demo.yaml --step 100 --out step.html")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="which step of the training, from 0")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="default: NAME-step-N.html in the current folder")
    add_configuration(parser)
    options = parser.parse_intermixed_args(argv)
    config = load_config(options.config, options.overrides)
    out = options.out or Path(f"{config.run.name}-step-{options.step}.html")
    for file in options.config or ():
        if note := check_inputs(Path(file), config):
            print(f"note: {note}", file=sys.stderr)
    write_step_page(config, open_source(config, find_first_unlabeled_step(config))[0], options.step, out)
    print(f"page {out}")
    return DONE


def _check_labels(argv: Sequence[str]) -> int:
    """Trains students on all folds of a run's labels but one, and lists the labels that they reject."""
    # these need Ray, as studies do, and looking at a manifest does not
    from jobs.ablate import add_budget
    from pipeline.labeling.label_check import (
        describe_suspects,
        find_suspects,
        format_suspects,
        plan_label_check,
        run_label_check,
    )
    from pipeline.labeling.labeling_page import render_labeling_page
    from pipeline.studies.on_tune import choose_concurrency

    about = "List labels that are probably wrong: K runs are trained like RUN_FOLDER, each without one K-th of the labels, and "
    about += "say what they think of those. The same command continues them."
    parser = make_parser("inspect labels", about, "runs/first --folds 5")
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path, help="the run whose labels are checked")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes, for shorter runs train.steps=300")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="how many runs (default: 5)")
    add_budget(parser)
    write = parser.add_argument_group("what is written")
    write.add_argument("--count", type=int, default=40, metavar="N", help="labels on the page at most (default: 40)")
    about = "folder of mistakes.csv and label.html (default: the folder of these runs)"
    write.add_argument("--out", metavar="FOLDER", type=Path, help=about)
    options = parser.parse_intermixed_args(argv)
    check_hours(options.hours)
    for name, least in (("folds", 2), ("count", 1), ("concurrent", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}")
    check = plan_label_check(options.run, options.folds, options.overrides)
    problems = run_label_check(check, lambda: choose_concurrency(check.base, options.concurrent), options.hours)
    suspects, checked = find_suspects(check)
    for name, problem in problems.items():
        print(f"failed: {name}: {problem}")
    if checked == 0:
        print("no run is complete: the same command continues them")
        return FAILED if problems else DONE
    out = (options.out or check.folder).expanduser().resolve()
    shown = describe_suspects(check, suspects[: options.count])
    write_file(format_suspects(check, shown), out / "mistakes.csv", "--out")
    write_page(render_labeling_page(shown), out / "label.html", "--out")
    for video in shown.videos[:5]:
        print(f"{video.score:6.3f}  {video.id}  {video.reason}")
    print(f"both students reject {len(suspects)} of {checked} labels; {len(shown.videos)} are on the page")
    print(f"{out / 'mistakes.csv'}\n{out / 'label.html'}")
    add = f"python -m jobs.label {check.manifest.path} --add answers.csv --from {shown.labels_path} --relabel --out FILE"
    print(f"next     open the page, answer, and correct the labels:\n         {add}")
    return FAILED if problems else DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
