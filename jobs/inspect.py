"""Look at data: ``python -m jobs.inspect MANIFEST [--verify] [--html PAGE]``, or ``clips --config FILE --step N`` for the views
of a training step, or ``labels RUN_FOLDER`` for labels that are probably wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, add_config, check_hours, make_parser, run
from pipeline.clips.source import open_source
from pipeline.config import load_config
from pipeline.errors import UserError, list_first
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.manifest.summary import format_summary, summarize_manifest
from pipeline.manifest.verify import find_altered_files
from pipeline.methods import find_first_unlabeled_step
from pipeline.report.pages.contact_sheet import write_contact_sheet
from pipeline.report.pages.step_views import write_step_page
from pipeline.report.parts.html import write_file, write_page
from pipeline.saved_models.saved_run import check_inputs


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects a manifest or, after the word ``clips`` or ``labels``, the clips of one training step or the labels of a run."""
    words = list(sys.argv[1:] if argv is None else argv)
    kinds = {"clips": _write_step_page, "labels": _check_labels}
    return kinds[words[0]](words[1:]) if words and words[0] in kinds else _inspect_manifest(words)


def _inspect_manifest(argv: Sequence[str]) -> int:
    """Prints what is in a manifest. Returns 1 if ``--verify`` finds a changed file."""
    parser = make_parser("inspect", __doc__, "data/mine/manifest.parquet --html page.html")
    parser.add_argument("manifest", metavar="MANIFEST", help="manifest.parquet, written by jobs.prepare")
    parser.add_argument("--root", metavar="DIR", help="where the videos are now, if they moved")
    parser.add_argument("--verify", action="store_true", help="read every file and compare it with its stored hash")
    parser.add_argument("--html", metavar="PAGE", type=Path, help="write a page with contact sheets and the unusable files")
    parser.add_argument("--per-class", type=int, default=6, metavar="N", help="videos on a contact sheet (default: 6)")
    options = parser.parse_args(argv)
    if options.per_class < 1:
        raise UserError(f"--per-class {options.per_class} must be at least 1")
    manifest = read_manifest(options.manifest, options.root)
    summary = summarize_manifest(manifest)
    print(format_summary(manifest, summary))
    changed = _verify_files(manifest) if options.verify else None
    if options.html:
        write_contact_sheet(manifest, summary, options.html, options.per_class, changed)
        print(f"\npage {options.html}")
    return FAILED if changed else DONE


def _verify_files(manifest: Manifest) -> list[tuple[str, str]]:
    changed = find_altered_files(manifest)
    print(f"\n{len(changed)} files are not what they were when the manifest was written" + (":" if changed else ""))
    for line in list_first([f"{uri}: {problem}" for uri, problem in changed]):
        print(f"  {line}")
    return changed


def _write_step_page(argv: Sequence[str]) -> int:
    """Writes a page with the views of one step."""
    parser = argparse.ArgumentParser(prog="python -m jobs.inspect clips", description="the views of a training step")
    add_config(parser)
    parser.add_argument("--step", type=int, required=True, metavar="N", help="optimizer step, from 0")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="default: NAME-step-N.html in the current folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
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

    parser = argparse.ArgumentParser(prog="python -m jobs.inspect labels", description="labels that are probably wrong")
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path, help="a run, whose labels are checked by runs like it")
    parser.add_argument(
        "--folds", type=int, default=5, metavar="K", help="runs, each without one K-th of the labels (default: 5)"
    )
    parser.add_argument("--count", type=int, default=40, metavar="N", help="labels on the page, at the most (default: 40)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="of mistakes.csv and label.html (the study's folder)")
    add_budget(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for shorter runs: train.steps=300")
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
