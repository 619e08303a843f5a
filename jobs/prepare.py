"""``python -m jobs.prepare SOURCE ...``: make a manifest of videos, and draw which of them keep their label.

Every file is checked. OUT/manifest.parquet has a row for each video, OUT/labels.parquet says whose label may be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.command import DONE, describe_command, make_parser, name_arguments, run
from pipeline.errors import UserError
from pipeline.files.folder_lock import lock_folder
from pipeline.manifest.label_subset import count_labels_per_class
from pipeline.manifest.seeded_order import parse_share, round_half_up
from pipeline.prepare.build import BuildOptions, build_manifest_and_labels, probe_listing
from pipeline.prepare.description import describe_manifest
from pipeline.prepare.groups import AUTO, NAMING_CONVENTIONS, NONE, assign_groups, check_group_option
from pipeline.prepare.probe_cache import delete_probe_log
from pipeline.prepare.rendered_videos import list_rendered
from pipeline.prepare.resized_copies import make_copies, probe_copies, resize_listing
from pipeline.prepare.same_file import merge_equal_paths, merge_same_files
from pipeline.prepare.sources import (
    Listing,
    list_files,
    list_folder,
    list_frames,
    list_hmdb51,
    list_kinetics,
    list_ssv2,
    list_ucf101,
)
from pipeline.prepare.sources.file_search import is_video_name
from pipeline.prepare.sources.folder import FolderLayout
from pipeline.prepare.sources.list_rows import DELIMITERS, ListOptions, parse_columns
from pipeline.prepare.sources.synonyms import UNLABELED
from pipeline.video.probe import ProbeFiles, ProbeOptions, probe_files
from pipeline.video.synthetic import MARKER_FILE, Difficulty
from pipeline.video.synthetic_motions import MOTIONS

ENOUGH_FOR_RAY = 1000
"""Files for which joining a cluster, which takes 5-10 s, is worthwhile."""
RESIZE_TIMES_TIMEOUT = 5
"""Encoding a file may take so many times --timeout."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares one of the sources; all share probing, splits, the label subset and writing."""
    options = _build_parser().parse_args(argv)
    _check_arguments(options)
    out = Path(options.out).expanduser().absolute()
    with lock_folder(out, elsewhere="choose another OUT"):
        _prepare_manifest(options, out)
    return DONE


def _read_layout(options: argparse.Namespace, out: Path) -> FolderLayout:
    """Returns the options for DIR's folders. If OUT lies directly in DIR and holds no videos, it is skipped."""
    below = "://" not in options.dir and out.parent == Path(options.dir).expanduser().absolute()
    own = (out.name,) if below and not any(is_video_name(path.name) for path in out.iterdir()) else ()
    return FolderLayout(options.splits, (*options.skip, *own))


def _prepare_manifest(options: argparse.Namespace, out: Path) -> None:
    listing = merge_equal_paths(SOURCES[options.source](options, out))
    group = getattr(options, "group", NONE)
    if group != AUTO:
        assign_groups(listing, group)  # for what it refuses: now and not after hours of probing
    probing = ProbeOptions(options.probe, options.decoder, options.hash)
    prober = _choose_prober(options, len(listing.uris))
    listing, probes = merge_same_files(listing, probe_listing(listing, probing, out, prober))
    listing = assign_groups(listing, group)
    if options.resize:
        copy = partial(make_copies, processes=options.processes, timeout_seconds=RESIZE_TIMES_TIMEOUT * options.timeout)
        listing, probes = resize_listing(listing, probes, out / f"resized-{options.resize}", options.resize, copy)
        probes = probe_copies(listing, probes, probing, out, prober)
    draw = BuildOptions(options.labeled, parse_share(options.test, "--test"), options.seed)
    manifest, labels = build_manifest_and_labels(listing, probes, out, draw, options.parts or None)
    if not options.resize:  # else the probe log stays, the only record of the originals: the manifest describes the copies
        delete_probe_log(out)
    print(describe_manifest(manifest, labels, listing.notes))


def _choose_prober(options: argparse.Namespace, files: int) -> ProbeFiles:
    """Processes of this machine, or the tasks of a cluster: one that RAY_ADDRESS names, or --ray starts here."""
    on_ray = options.ray if options.ray is not None else bool(os.environ.get("RAY_ADDRESS")) and files >= ENOUGH_FOR_RAY
    if not on_ray:
        return partial(probe_files, processes=options.processes, timeout_seconds=options.timeout)
    from pipeline.prepare.probe_on_ray import probe_on_ray
    from pipeline.ray_cluster.connect import connect  # Ray takes seconds to import

    connect()
    return partial(probe_on_ray, timeout_seconds=options.timeout)


def _check_arguments(options: argparse.Namespace) -> None:
    """Mistakes that must not wait for the probe."""
    count_labels_per_class(options.labeled, 1)
    check_group_option(getattr(options, "group", NONE))
    if parse_share(options.test, "--test") > 0.9:
        raise UserError(f"--test {options.test} leaves too little to learn from; write at most 90%")
    if options.resize is not None and options.resize < 16:
        raise UserError(f"--resize {options.resize} must be at least 16 pixels")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must not be negative")
    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes {options.processes} must be at least 1")
    if getattr(options, "fps", None) is not None and not 0 < options.fps < math.inf:
        raise UserError(f"--fps {options.fps:g} must be a number above 0")
    if not 0 < options.timeout < math.inf:
        raise UserError(f"--timeout {options.timeout:g} must be a number of seconds above 0")
    if "://" in options.out:
        raise UserError(f"{options.out} is a URI; OUT must be a folder, from which the two files can be uploaded anywhere")
    if Path(options.out).exists() and not Path(options.out).is_dir():
        raise UserError(f"{options.out} is a file; OUT must be a folder")


HELP = {
    "ucf101": "UCF-101's class folders and its official train and test lists",
    "hmdb51": "HMDB-51's class folders and its official 70/30 split files",
    "kinetics": "clips of Kinetics-400, -600 or -700 at any depth, and the CSV lists with time ranges",
    "ssv2": "Something-Something v2's ID.webm files and its JSON lists",
    "folder": "a folder of videos for each class, with or without train/ and test/ above them",
    "frames": "the same with a folder of numbered images for each video",
    "list": "text lists: 'path label', 'path frames label', or a header with path,label,group,split,start,end",
    "synthetic": "synthetic videos for a first try, of actions that only motion tells apart",
}
EXAMPLES = {
    "ucf101": "data/UCF-101 data/ucf101 --fold 1 --labeled 10%",
    "hmdb51": "data/HMDB51 data/hmdb51 --fold 1 --labeled 40%",
    "kinetics": "data/k400 data/kinetics --lists train.csv val.csv --labeled 1%",
    "ssv2": "data/20bn-something-something-v2 data/ssv2 --labeled 10%",
    "folder": "VIDEOS data/mine --labeled 10%",
    "frames": "FRAMES data/mine --fps 25",
    "list": "clips.csv data/mine --root VIDEOS --labeled 8/class",
    "synthetic": "data/synthetic --videos 320 --classes 8 --seed 0 --labeled 4/class",
}
"""The words behind each source in the example of its help."""
KNOBS_OF_VIDEOS = {
    "background_contrast": "contrast of the background's texture, 0..1",
    "background_detail": "cells of the texture along the short side",
    "noise": "noise added to every frame, 0..1",
    "shake": "how far the camera shakes, in pixels",
    "objects": "objects that perform the action",
    "distractors": "objects that stand still",
    "contrast": "least brightness of an object above the background's, 0..0.75",
    "min_speed": "slowest motion: short sides, turns or e-folds of size a second",
    "max_speed": "fastest motion, in the same unit",
    "min_radius": "smallest radius of an object, as a share of the short side",
    "max_radius": "largest radius",
    "min_life": "seconds that an object is there at least, before another takes its place",
    "max_life": "seconds that it is there at most",
}
"""What each field of ``Difficulty`` means, for the help of its option."""


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser("prepare", __doc__, "folder VIDEOS data/mine --labeled 10%")
    sources = parser.add_subparsers(
        dest="source", required=True, metavar="SOURCE", title="sources (SOURCE --help has the options of each)"
    )
    for name, text in HELP.items():
        text = text.replace("the same with", "class folders with")
        about = f"Make a manifest from {text}."
        source = sources.add_parser(name, help=text, **describe_command(f"{parser.prog} {name}", about, EXAMPLES[name]))
        name_arguments(source)
        _add_videos(source, name)
        _add_splits_and_labels(source, name)
        if name == "synthetic":
            _add_difficulty(source)
        _add_probing(source)
    return parser


def _add_videos(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds what says where the videos are, and how their names and lists are read."""
    source = parser.add_argument_group("videos")
    if name == "list":
        source.add_argument("files", nargs="+", metavar="FILE", help="one list, or several as train=FILE test=FILE")
    elif name != "synthetic":
        source.add_argument("dir", metavar="DIR", help="folder of the videos, or a URI where lists name them")
    source.add_argument("out", metavar="OUT", help="folder for manifest.parquet and labels.parquet")
    if name == "list":
        source.add_argument("--root", required=True, metavar="DIR", help="folder or URI that the paths start from")
        source.add_argument("--columns", default="", metavar="path=...,label=...", help="columns by name, or by number from 1")
        source.add_argument("--delimiter", metavar="CHAR", help=f"{', '.join(DELIMITERS)} or a character (default: detected)")
        source.add_argument("--classes", metavar="FILE", help="class names in the order of the labels, one a line")
        source.add_argument(
            "--unlabeled",
            metavar="WORDS",
            help=f"labels of videos of unknown class, with commas (default: no label{', '.join(UNLABELED)})",
        )
        source.add_argument(
            "--other-classes",
            action="store_true",
            help="rows of split unlabeled may name other actions: they are trained on as of unknown class, but counted",
        )
    if name in ("ucf101", "hmdb51", "ssv2"):
        source.add_argument("--lists", metavar="DIR", help="folder of the list files, unless it lies in DIR or beside it")
    if name == "kinetics":
        source.add_argument("--lists", required=True, nargs="+", metavar="CSV", help="the official lists")
    if name in ("list", "frames"):
        source.add_argument(
            "--fps", type=float, required=name == "frames", help="frames per second of frame folders, which do not say it"
        )
        source.add_argument("--frame-pattern", metavar="img_%05d.jpg", help="images of a frame folder (default: detected)")
    if name in ("folder", "frames"):
        source.add_argument("--skip", action="append", default=[], metavar="FOLDER", help="leave such folders out; repeatable")
    if name == "synthetic":
        source.add_argument("--videos", type=int, default=320, metavar="N", help="how many videos (default: %(default)s)")
        source.add_argument("--classes", type=int, default=8, metavar="N", help=f"2 to {len(MOTIONS)} (default: %(default)s)")


def _add_splits_and_labels(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds what says which videos are tested on, and which train videos keep their label."""
    draw = parser.add_argument_group("splits and labels")
    labeled = "4/class" if name == "synthetic" else "10%"
    draw.add_argument(
        "--labeled", default=labeled, metavar="10%|4/class", help="train videos that keep their label (default: %(default)s)"
    )
    if name in ("ucf101", "hmdb51"):
        draw.add_argument("--fold", type=int, default=1, choices=[1, 2, 3], help="official split (default: %(default)s)")
    if name in ("folder", "frames"):
        draw.add_argument(
            "--splits",
            metavar="train=FOLDER,test=FOLDER",
            help="folders of the splits; none: all folders are classes (default: detected by their names)",
        )
    draw.add_argument(
        "--test", default="25%", metavar="25%", help="test videos of each class, where no split is given (default: %(default)s)"
    )
    if name in ("list", "folder", "frames"):
        known = f"recordings or persons by name: {', '.join(NAMING_CONVENTIONS)}, {NONE}, or a regular expression that captures"
        about = f"{known} the name; all videos of one are in the same split (default: guessed and printed)"
        draw.add_argument("--group", default=AUTO, metavar="PATTERN", help=about)
    seed = "of splits, labels and synthetic videos" if name == "synthetic" else "of splits and labels that are drawn"
    draw.add_argument("--seed", type=int, default=0, metavar="N", help=f"{seed} (default: %(default)s)")


def _add_probing(parser: argparse.ArgumentParser) -> None:
    """Adds what says how each file is checked, and what is written of it."""
    probe = parser.add_argument_group("checking the files")
    probe.add_argument(
        "--probe",
        choices=["quick", "full"],
        default="quick",
        help="quick: decode the first, middle and last frame and some around key frames; full: every frame (default: quick)",
    )
    probe.add_argument(
        "--decoder",
        choices=["auto", "decord", "pyav"],
        default="auto",
        help="auto: decord where it is exact for a file, PyAV elsewhere; decord: refuse files for which it is not "
        "(default: auto)",
    )
    probe.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="time limit per file (default: %(default)g)"
    )
    probe.add_argument("--processes", type=int, metavar="N", help="processes that check files (default: one per core)")
    probe.add_argument(
        "--ray",
        action=argparse.BooleanOptionalAction,
        help=f"check them on a Ray cluster (default: if RAY_ADDRESS names one and there are {ENOUGH_FOR_RAY} files)",
    )
    write = parser.add_argument_group("what is written")
    write.add_argument(
        "--resize",
        type=int,
        metavar="SIDE",
        help="copies of the videos, with this short side in pixels and without sound, in OUT/resized-SIDE; the manifest is "
        "of the copies, which decode faster",
    )
    write.add_argument("--hash", action="store_true", help="store the SHA-256 of every file, to find damage later")
    write.add_argument("--parts", action="store_true", help="write folders of parts, as is done above a million rows anyway")


def _add_difficulty(parser: argparse.ArgumentParser) -> None:
    hard = parser.add_argument_group("difficulty (the values in brackets are those of level 0.5)")
    hard.add_argument(
        "--difficulty", type=float, default=0.5, metavar="LEVEL", help="0 easy, 1 hard, or between (default: %(default)s)"
    )
    for field in dataclasses.fields(Difficulty):
        kind = int if isinstance(field.default, int) else float
        flag, about = f"--{field.name.replace('_', '-')}", f"{KNOBS_OF_VIDEOS[field.name]} ({field.default:g})"
        hard.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=about)


def _list_videos(options: argparse.Namespace, out: Path) -> Listing:
    columns = parse_columns(options.columns)
    marks = None if options.unlabeled is None else tuple(word.strip().lower() for word in options.unlabeled.split(","))
    how = ListOptions(options.root, columns, options.delimiter, options.classes, options.fps, options.frame_pattern, marks,
                      options.other_classes)  # fmt: skip
    return list_files(options.files, how)


def _render_synthetic(options: argparse.Namespace, out: Path) -> Listing:
    difficulty = _check_synthetic(options, out)
    return list_rendered(out, options.videos, options.classes, options.seed, difficulty, options.processes)


def _check_synthetic(options: argparse.Namespace, out: Path) -> Difficulty:
    if not 2 <= options.classes <= len(MOTIONS):
        raise UserError(f"--classes {options.classes} must lie between 2 and {len(MOTIONS)}")
    each = options.videos // options.classes
    train = each - max(1, round_half_up(parse_share(options.test, "--test") * each))
    wanted = count_labels_per_class(options.labeled, max(train, 1))
    if wanted > train:
        raise UserError(
            f"--videos {options.videos} gives {train} train videos a class, --labeled {options.labeled} needs {wanted}; "
            f"raise --videos or lower --labeled"
        )
    if (out / "videos").exists() and not (out / "videos" / MARKER_FILE).exists():
        raise UserError(f"{out / 'videos'} exists and was not made by this command; choose another OUT")
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Difficulty) if getattr(options, f.name) is not None}
    try:
        return replace(Difficulty.from_level(options.difficulty), **given)
    except ValueError as error:
        raise UserError(f"difficulty: {error}") from None


SOURCES: dict[str, Callable[[argparse.Namespace, Path], Listing]] = {
    "ucf101": lambda options, out: list_ucf101(options.dir, options.lists, options.fold),
    "hmdb51": lambda options, out: list_hmdb51(options.dir, options.lists, options.fold),
    "kinetics": lambda options, out: list_kinetics(options.dir, options.lists),
    "ssv2": lambda options, out: list_ssv2(options.dir, options.lists),
    "folder": lambda options, out: list_folder(options.dir, _read_layout(options, out)),
    "frames": lambda options, out: list_frames(options.dir, options.fps, options.frame_pattern, _read_layout(options, out)),
    "list": _list_videos,
    "synthetic": _render_synthetic,
}


if __name__ == "__main__":
    raise SystemExit(run(main))
