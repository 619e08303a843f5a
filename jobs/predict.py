"""``python -m jobs.predict FOLDER INPUT ...``: classify any videos, by a run's newest checkpoint or by a model folder.

INPUT is a video file, a folder of videos, a pattern ('clips/*.mp4'), a list (.txt, .csv), a manifest (.parquet), or a URI of
one of these. The exit code is 0 if all videos were predicted, 1 if some were not, and 2 if none was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, FAILED, make_parser, parse_folder, parse_positive, run
from pipeline.errors import UserError
from pipeline.evaluation.rejection import LARGEST_SHARE, Rejection
from pipeline.lifecycle.train_and_evaluate import plan_scoring
from pipeline.manifest.seeded_order import parse_share
from pipeline.prediction.input_videos import list_inputs
from pipeline.prediction.prediction_run import PredictionRun, Rows, describe_statuses
from pipeline.prediction.prediction_tables import check_out
from pipeline.prediction.timeline import Windows, parse_seconds
from pipeline.saved_models.saved_model import open_model
from pipeline.saved_models.saved_run import open_file_source
from pipeline.saved_models.saved_temperatures import SavedTemperatures, choose_rejection, read_temperatures

ALLOWED = ("evaluation.", "scale.")
MOST_LINES = 100
"""Videos up to which each one is printed although there is a file of all."""
LEAST_HOP = 0.01
"""Seconds between windows. Choice: an hour has at most 360,000, and those of a mistyped hop would not fit into the memory."""
WINDOWS_OF_A_VIDEO = 60
"""How many windows a video is taken to have before its length is known, to decide whether a cluster is worth starting."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each video's most probable classes, or its segments; ``--out`` writes a table. Only the folder is needed."""
    options = _build_parser().parse_intermixed_args(argv)
    words = [word for word in options.inputs if not (word.startswith(ALLOWED) and "=" in word)]
    overrides = [word for word in options.inputs if word not in words]
    overrides += [] if options.workers is None else [f"scale.workers={options.workers}"]
    out = None if options.out is None else check_out(options.out)
    windows, share = _parse_windows(options), _parse_share(options)
    saved = open_model(options.folder, overrides, ALLOWED)
    inputs = list_inputs(words, options.root)
    found = SavedTemperatures() if options.uncalibrated and share is None else read_temperatures(saved)
    temperatures = SavedTemperatures() if options.uncalibrated else found
    rejection = None if share is None else choose_rejection(saved, found, share, temperatures.is_calibrated)
    to_score = len(inputs) if windows is None else WINDOWS_OF_A_VIDEO * len(inputs)
    resources = plan_scoring(saved.config, to_score)
    source = open_file_source(saved)
    for note in (temperatures.note, _describe_rejection(rejection) if rejection else ""):
        if note:
            print(f"note: {note}", file=sys.stderr, flush=True)
    prediction = PredictionRun(
        source, saved.config, saved.weights, inputs, options.top, resources, out, windows, temperatures.values, rejection
    )

    rejected = 0
    segments: dict[int, Rows] = {}

    def show(index: int, of_video: Rows) -> None:
        nonlocal rejected
        rejected += of_video[0].get("rejected") is True
        if options.html:
            segments[index] = of_video
        if out is None or len(inputs) <= MOST_LINES:
            print("\n".join(_describe(row) for row in of_video), flush=True)

    statuses = prediction.run(show)
    if options.html:
        from pipeline.report.pages.timeline_page import write_timeline_page  # its tables and styles, which only it needs

        write_timeline_page(source, inputs, segments, options.html)
        print(f"page of timelines: {options.html}")
    if rejection is not None:
        print(f"{rejected:,} of {statuses['ok']:,} predicted videos are rejected: they seem to show none of the known classes")
    if out is not None:
        print(f"{describe_statuses(statuses)}: {out}")
    return DONE if statuses["ok"] == len(inputs) else FAILED


def _build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "predict",
        __doc__,
        "models/first videos/ --out predictions.csv",
        "models/first match.mp4 --window 2s --hop 1s --html timeline.html",
    )
    parser.add_argument("folder", type=parse_folder, metavar="FOLDER", help="a run folder or a model folder")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="videos (see above), and key=value of evaluation.*, scale.*")
    result = parser.add_argument_group("result")
    result.add_argument("--out", type=Path, metavar="FILE", help="table of all predictions: .parquet, .jsonl or .csv")
    result.add_argument("--top", type=parse_positive, default=3, metavar="N", help="classes named for each (default: 3)")
    about = "mark videos that seem to show none of the known classes, and at most this share of the others, such as 5%%"
    result.add_argument("--reject-unknown", metavar="SHARE", help=about)
    about = "give probabilities as the networks do, although the model has temperatures (calibration.json)"
    result.add_argument("--uncalibrated", action="store_true", help=about)
    long = parser.add_argument_group("long videos")
    long.add_argument("--window", metavar="2s", help="classify windows of this length: a timeline for each video")
    long.add_argument("--hop", metavar="1s", help="time between the starts of two windows (default: half a window)")
    long.add_argument("--html", type=Path, metavar="FILE", help="with --window: a page of the timelines, with small frames")
    work = parser.add_argument_group("where and how it is computed")
    about = "folder that the paths in lists and manifests start from (default: the list's folder; the manifest's own)"
    work.add_argument("--root", metavar="FOLDER", help=about)
    about = "processes of a Ray cluster; 0: this process (default: scale.workers, and this process for few videos)"
    work.add_argument("--workers", type=int, metavar="N", help=about)
    return parser


def _parse_windows(options: argparse.Namespace) -> Windows | None:
    if options.window is None:
        if options.hop is not None:
            raise UserError("--hop needs --window, for example --window 2s --hop 1s")
        if options.html is not None:
            raise UserError("--html is a page of timelines and needs --window, for example --window 2s --hop 1s")
        return None
    seconds = parse_seconds(options.window, "--window")
    windows = Windows(seconds, seconds / 2 if options.hop is None else parse_seconds(options.hop, "--hop"))
    if windows.hop < LEAST_HOP:
        remedy = f"windows must be at least {LEAST_HOP:g}s apart, which is less than a frame lasts in most videos"
        raise UserError(f"--window {seconds:g}s --hop {windows.hop:g}s: {remedy}")
    return windows


def _parse_share(options: argparse.Namespace) -> float | None:
    if options.reject_unknown is None:
        return None
    if options.window is not None:
        what = (
            "--reject-unknown cannot be used with --window: the share was found on whole videos, and does not hold for windows"
        )
        raise UserError(f"{what}; compare the column confidence yourself")
    share = parse_share(options.reject_unknown, "--reject-unknown")
    if share > LARGEST_SHARE:
        raise UserError(f"--reject-unknown {options.reject_unknown} would mark most known videos: write at most 50%")
    return share


def _describe_rejection(rejection: Rejection) -> str:
    """Describes when a video is rejected, and where that was found."""
    what = f"videos whose probability is below {rejection.threshold:.4f} are rejected as none of the known classes"
    held_out = f"{rejection.below} of {rejection.videos} held-out videos"
    return f"{what}; so are at most {100 * rejection.share:g}% of the videos of known classes, and {held_out}"


def _describe(row: dict[str, object]) -> str:
    """Describes a video's most probable classes, or one segment of it, in one line."""
    if row["status"] != "ok":
        return f"{row['file']}  not predicted: {row['reason']}"
    if "segment" in row:
        return f"{row['file']}  {row['start']:.1f} to {row['end']:.1f} s  {row['class']} {row['confidence']:.1%}"
    names, probabilities = row["top_classes"], row["top_probabilities"]
    assert isinstance(names, list) and isinstance(probabilities, list)
    best = "  ".join(f"{name} {value:.1%}" for name, value in zip(names, probabilities, strict=True))
    return f"{row['file']}  {f'none of the known classes? {best}' if row['rejected'] else best}"


if __name__ == "__main__":
    raise SystemExit(run(main))
