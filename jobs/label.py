"""``python -m jobs.label MANIFEST --fraction 10% --seed 0 [--hold-out 10%]``: choose which training videos keep their label.

They are drawn at random, or taken from a published list. All other training videos are trained on without a label.

With ``--add answers.csv`` the labels that people gave (``jobs.suggest``) are added to those of ``--from labels.parquet``.
``--new-class NAME`` takes answers with a class that the manifest does not have, and ``--manifest-out`` writes one that has it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.command import DONE, make_parser, run
from pipeline.errors import UserError, find_nearest_name
from pipeline.files import storage
from pipeline.files.folder_lock import lock_folder
from pipeline.files.parquet import remove_table
from pipeline.manifest.label_subset import DrawOptions, LabelSubset, draw_labels, read_labels, write_labels
from pipeline.manifest.labeling_answers import AddedAnswers, add_answers
from pipeline.manifest.schema import Manifest, read_manifest, write_manifest
from pipeline.manifest.seeded_order import parse_share
from pipeline.prepare.build import LABELS_FILE
from pipeline.prepare.next_run import suggest_training
from pipeline.prepare.published_labels import LINE_PATTERNS, import_labels

WAIT_SECONDS = 30.0
"""For another command that writes into the folder of the labels, before it is named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draws or imports a subset and writes it, by default beside the manifest, where a run looks for it."""
    options = _build_parser().parse_args(argv)
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative")
    hold_out = parse_share(options.hold_out, "--hold-out") if options.hold_out else 0.0
    if hold_out > 0.5:
        raise UserError(f"--hold-out {options.hold_out} leaves too little to learn from; write at most 50%")
    if options.import_ and options.import_[0] not in LINE_PATTERNS:
        raise UserError(f"--import {options.import_[0]} is not known; write {', '.join(LINE_PATTERNS)}, and then the file")
    _check_adding(options)
    out = _choose_path(options.manifest, options.out)
    _check_out(options, out)
    # before the manifest is read: who had the lock may have replaced it
    with lock_folder(out.parent, WAIT_SECONDS, elsewhere="name another file with --out FILE"):
        manifest = read_manifest(options.manifest)
        subset, manifest, notes = _choose_subset(manifest, options, hold_out)
        if options.new_class:
            manifest = _write_with_manifest(subset, manifest, out, Path(options.manifest_out).absolute())
        else:
            write_labels(subset, manifest, out)
    print(describe_subset(manifest, subset, out, notes))
    return DONE


def _choose_subset(manifest: Manifest, options: argparse.Namespace, hold_out: float) -> tuple[LabelSubset, Manifest, list[str]]:
    """Draws, imports or adds to the subset that the command line asks for. Returns it with the manifest that it belongs to,
    which is another one if classes are added, and notes, such as which videos of a published list are missing here."""
    if options.add:
        before = read_labels(options.from_ or _choose_path(options.manifest, None), manifest)
        added = add_answers(manifest, before, Path(options.add), options.relabel, options.new_class)
        return added.subset, added.manifest, [*describe_new_classes(manifest, added), *describe_answers(added)]
    if options.import_:
        kind, file = options.import_
        subset, notes = import_labels(manifest, kind, file, options.seed, hold_out)
        return subset, manifest, notes
    option, spec = (
        ("--per-class", f"{options.per_class}/class") if options.fraction is None else ("--fraction", options.fraction)
    )
    draw = DrawOptions(options.balanced, hold_out, options.nested, option)
    return draw_labels(manifest, spec, options.seed, draw), manifest, []


def _write_with_manifest(subset: LabelSubset, manifest: Manifest, out: Path, manifest_out: Path) -> Manifest:
    """Writes both files, or neither. Returns the manifest with its path."""
    try:
        manifest = write_manifest(
            manifest.table, manifest_out, manifest.classes, manifest.root, manifest.source, lineage=manifest.lineage
        )
        write_labels(subset, manifest, out)
    except BaseException:
        remove_table(manifest_out)
        raise
    return manifest


def _check_adding(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together with ``--add``, or only with it."""
    if options.add and (options.hold_out or options.balanced):
        raise UserError("--add takes the labels as they are: leave out --hold-out and --balanced")
    if not options.add and (options.from_ or options.relabel):
        raise UserError(f"{'--from' if options.from_ else '--relabel'} is for --add answers.csv")
    if options.new_class and not options.add:
        raise UserError("--new-class is for --add answers.csv, whose answers name the new class")
    if options.new_class and not options.manifest_out:
        what = "--new-class needs --manifest-out FILE: the list of classes is a part of the manifest"
        raise UserError(f"{what}, and runs that were trained with the earlier one need it as it is")
    if options.manifest_out and not options.new_class:
        raise UserError("--manifest-out is for --new-class NAME: without a new class the manifest stays as it is")
    if options.add and not options.out:
        raise UserError("--add needs --out FILE: runs that were trained with the earlier labels need them as they are")


def _check_out(options: argparse.Namespace, out: Path) -> None:
    """Raises UserError if the labels would be written over a file that they are made from, or over labels that runs need."""
    published = options.import_[1] if options.import_ else None
    sources = {"MANIFEST": options.manifest, "--from": options.from_, "--add": options.add, "--import": published}
    for option, source in sources.items():
        if source and not storage.is_remote(source) and Path(storage.to_local_path(source)).resolve() == out.resolve():
            raise UserError(f"--out {out} is the file of {option}, which would be lost: name another file")
    problems = []
    if options.add and os.path.lexists(out):
        problems.append(f"--out {out} exists: name a new file, since runs that were trained with its labels need them")
    if options.manifest_out:
        manifest_out = Path(options.manifest_out).absolute()
        if "://" in options.manifest_out or not manifest_out.parent.is_dir():
            problems.append(f"--manifest-out {options.manifest_out} must name a file in a folder that exists on this machine")
        elif os.path.lexists(manifest_out):
            problems.append(f"--manifest-out {manifest_out} exists: name a new file")
        elif manifest_out.resolve() == out.resolve():
            problems.append(f"--manifest-out and --out are the same file, {out}: name two")
    if problems:
        raise UserError("nothing was written:", problems)


def describe_answers(added: AddedAnswers) -> list[str]:
    """Describes what became of the answers, in notes."""
    notes = [f"{added.added} videos have a label now that had none"]
    notes += [f"{added.repeated} answers say what was known"] if added.repeated else []
    notes += [f"{added.skipped} videos were skipped"] if added.skipped else []
    notes += [f"relabeled: {text}" for text in added.relabeled]
    return [*notes, *(f"not trained on anymore: {name}" for name in added.excluded)]


def describe_new_classes(before: Manifest, added: AddedAnswers) -> list[str]:
    """Describes each class that ``before`` does not have, in notes: how many labels it has, and what it looks like."""
    manifest, labels = added.manifest, added.subset.read_classes(added.manifest)
    notes = []
    for label in range(len(before.classes), len(manifest.classes)):
        name = manifest.classes[label]
        videos = sum(labels[int(row)] == label for row in added.subset.rows)
        what = f"class {name} is new, with {videos} labeled and no test videos: no accuracy tells how well it is recognized"
        notes.append(f"{what}, until the data is prepared again with test videos of it")
        if nearest := find_nearest_name(name, before.classes, cutoff=0.8):
            notes.append(f"{name} is spelled much like {nearest}: if they are one class, correct the answers and start again")
    return notes


def _choose_path(manifest: str, given: str | None) -> Path:
    """Returns the path of the subset. Raises UserError for what is not a file in a folder of this machine."""
    if given is None and storage.is_remote(manifest):
        raise UserError(f"{manifest} is a URI: say with --out in which file on this machine to write the labels")
    out = Path(given) if given else Path(storage.to_local_path(manifest)).absolute().parent / LABELS_FILE
    if "://" in str(given) or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {given or out} must name a file in a folder that exists on this machine")
    return out.absolute()


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "label",
        __doc__,
        "data/mine/manifest.parquet --fraction 10% --balanced --seed 1 --out other.parquet",
        "data/mine/manifest.parquet --add answers.csv --from data/mine/labels.parquet --out more.parquet",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="manifest.parquet, written by jobs.prepare")
    how = parser.add_argument_group("which videos (one of these is needed)").add_mutually_exclusive_group(required=True)
    how.add_argument("--per-class", type=int, metavar="N", help="draw N videos of every class")
    how.add_argument("--fraction", metavar="10%", help="draw this share of the train videos, at least one of every class")
    how.add_argument(
        "--import",
        nargs=2,
        dest="import_",
        metavar=("|".join(LINE_PATTERNS), "FILE"),
        help="take the videos of a published list; its paths may begin differently",
    )
    how.add_argument("--add", metavar="FILE", help="answers of people: CSV with the columns id and class, or of jobs.suggest")
    draw = parser.add_argument_group("how they are drawn")
    share = draw.add_mutually_exclusive_group()
    share.add_argument("--balanced", action="store_true", help="of --fraction: as many from every class")
    share.add_argument(
        "--proportional", dest="balanced", action="store_false", help="of --fraction: this share of every class (default)"
    )
    draw.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same videos everywhere (default: 0)"
    )
    about = "keep this share of the labeled videos of every class from training, for validation"
    draw.add_argument("--hold-out", metavar="10%", help=about)
    draw.add_argument(
        "--nested", action=argparse.BooleanOptionalAction, default=True,
        help="the 1%% of a seed are among its 5%%; --no-nested draws every size independently (default: nested)",
    )  # fmt: skip
    answers = parser.add_argument_group("with --add")
    answers.add_argument("--from", dest="from_", metavar="FILE", help="the labels so far (default: beside the manifest)")
    answers.add_argument("--relabel", action="store_true", help="take answers that contradict what is known")
    about = "a class that answers name and the manifest does not have; once for each"
    answers.add_argument("--new-class", action="append", default=[], metavar="NAME", help=about)
    answers.add_argument("--manifest-out", metavar="FILE", help="with --new-class: the manifest that has the new classes, too")
    write = parser.add_argument_group("what is written")
    write.add_argument("--out", metavar="FILE", help="the labels (default: labels.parquet beside the manifest)")
    return parser


def describe_subset(manifest: Manifest, subset: LabelSubset, out: Path, notes: Sequence[str]) -> str:
    """Describes the chosen subset, and how a run is told to use it."""
    labels = subset.read_classes(manifest)
    counts = np.bincount([labels[int(row)] for row in subset.rows], minlength=len(manifest.classes))
    pool = len(manifest.find_training_rows()) - len(subset.rows) - len(subset.held_out) - len(subset.excluded)
    lines = [f"note: {note}" for note in notes]
    each = f"{' to '.join(dict.fromkeys(map(str, (counts.min(), counts.max()))))} of each of {len(manifest.classes)} classes"
    lines += [f"labeled    {len(subset.rows)} videos, {each}"]
    lines += [f"held out   {len(subset.held_out)} videos for evaluation.split=validation"] if len(subset.held_out) else []
    lines += [f"unlabeled  {pool} videos", f"labels {subset.fingerprint}  {out}  ({subset.spec}, seed {subset.seed})"]
    return "\n".join([*lines, suggest_training(manifest, out)])


if __name__ == "__main__":
    raise SystemExit(run(main))
