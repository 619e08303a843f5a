"""``python -m jobs.evaluate FOLDER [key=value ...]``: measure a trained run, or a model, on test videos.

It prints accuracy and calibration, and writes the scores of every video."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.command import DONE, make_parser, parse_folder, run
from pipeline.analysis.records.run_reader import read_run_record
from pipeline.clips.source import VideoSource
from pipeline.errors import UserError, list_first
from pipeline.evaluation.calibration import apply_temperature, compute_calibration, is_of_evaluation
from pipeline.evaluation.evaluate import EvaluationFiles, evaluate
from pipeline.evaluation.evaluation_summary import describe_lost_videos, describe_untested_classes, format_figures
from pipeline.evaluation.protocol import describe_protocol
from pipeline.evaluation.temperatures import CALIBRATION_FILE, calibrate, list_calibration_notes
from pipeline.files.folder_lock import lock_folder
from pipeline.lifecycle.train_and_evaluate import plan_scoring
from pipeline.model_folder.read_folder import is_model_folder
from pipeline.run_folder.contents import PREDICTORS
from pipeline.saved_models.saved_model import check_folder, open_model
from pipeline.saved_models.saved_run import OtherData, SavedRun, has_own_data, open_other_data, open_run_source, open_saved_run
from pipeline.training.held_out import find_held_out_videos

ALLOWED = ("evaluation.", "scale.", "data.manifest=", "data.labels=", "data.root=")
"""The keys that may be overridden: how the run is evaluated, where that is computed, and where its data lies now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates on the run's own data, or on purpose on other data; prints accuracies and where the scores are."""
    parser = make_parser(
        "evaluate",
        __doc__,
        "runs/first evaluation.clips=10 evaluation.crops=3",
        "models/first --manifest data/other/manifest.parquet",
    )
    about = "a run folder, or a model folder, which needs --manifest"
    parser.add_argument("folder", type=parse_folder, metavar="FOLDER", help=about)
    about = "evaluation.*, scale.*; data.manifest, data.labels, data.root of data that moved"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=about)
    data = parser.add_argument_group("other videos than the run's own").add_mutually_exclusive_group()
    about = "evaluate on this data set; unless it was trained on, classes are matched by name"
    data.add_argument("--manifest", metavar="MANIFEST", help=about)
    data.add_argument("--other-data", metavar="MANIFEST", help="the same, but refused for the data that was trained on")
    other = parser.add_argument_group("what is computed and written")
    about = "find temperatures on the held-out videos, which make probabilities believable; writes calibration.json"
    other.add_argument("--calibrate", action="store_true", help=about)
    about = "write there; the run folder or model stays as it is"
    other.add_argument("--out", type=parse_folder, metavar="FOLDER", help=about)
    options = parser.parse_intermixed_args(argv)
    folder, words = options.folder.expanduser().resolve(), list(options.overrides)
    if options.calibrate:
        option = "--manifest" if options.manifest else "--other-data" if options.other_data else ""
        words = _choose_held_out(folder, words, option)
    given = options.manifest or options.other_data
    if given is not None:
        if any(word.startswith("data.manifest=") for word in words):
            option = "--manifest" if options.manifest else "--other-data"
            raise UserError(f"{option} and data.manifest= both name a manifest: the second is for the run's own that moved")
        # that of the run, if it recorded one, is where the run's own videos are
        words = ["data.root=null", *words, f"data.manifest={given}"]
    check_folder(folder)  # before its lock makes it one
    if is_model_folder(folder) and not any(word.startswith("data.manifest=") for word in words):
        raise UserError(f"{folder} is a model without data: say with --manifest FILE on which videos to evaluate it")
    out = folder if options.out is None else options.out.expanduser().resolve()
    if out != folder and (out / "facts.json").exists():
        raise UserError(f"--out {options.out} is a run folder: choose another")
    if out != folder and is_model_folder(out):
        raise UserError(f"--out {options.out} is the folder of another model, whose results would be replaced: choose another")
    remedy = "wait until it has ended, stop it, or write elsewhere with --out FOLDER"
    elsewhere = f"write the results {'elsewhere' if options.out is None else 'into another folder'} with --out FOLDER"
    with lock_folder(out, remedy=remedy, elsewhere=elsewhere):
        if options.calibrate:
            return _calibrate(open_saved_run(folder, words, ALLOWED), out)
        saved = open_model(folder, words, ALLOWED)
        return _evaluate(saved, options.other_data is not None or (given is not None and not has_own_data(saved)), out)


def _choose_held_out(folder: Path, words: Sequence[str], given: str) -> list[str]:
    """Returns the overrides with which held-out videos are scored. Raises UserError if others are asked for."""
    if is_model_folder(folder):
        raise UserError("--calibrate needs a run: calibrate it, and export it again, which takes the temperatures along")
    if given:
        raise UserError(f"--calibrate needs the run's own held-out videos: leave {given} out")
    if split := next((word for word in words if word.startswith("evaluation.split=")), None):
        raise UserError(f"--calibrate takes the held-out videos, never test videos: leave {split} out")
    return [*words, "evaluation.split=validation"]


def _calibrate(saved: SavedRun, out: Path) -> int:
    if saved.note:
        print(f"note: {saved.note}", flush=True)
    source = open_run_source(saved)
    try:
        videos = find_held_out_videos(source)
    except UserError as error:
        remedy = "they must be kept from training, so this run cannot be calibrated: keep some, and train again"
        raise UserError(f"--calibrate needs held-out videos with labels, and there are none; {remedy} ({error})") from None
    for name in (CALIBRATION_FILE, "evaluation.json"):  # temperatures do not belong beside the scores of another run
        _check_owner(out / name, saved)
    resources = plan_scoring(saved.config, len(videos))
    content = calibrate(source, saved.config, saved.weights, saved.step, resources, out, _name_run(saved, out))
    print(f"on {content['videos']} held-out videos, of which the temperatures were found:")
    print("\n".join(_format_calibration({name: content[name] for name in PREDICTORS})))
    print("\n".join(_compare_on_test_videos(out, content)))
    for note in list_calibration_notes(content):
        print(f"note: {note}")
    print(f"temperatures of step {saved.step}, {describe_protocol(content)}: {out / CALIBRATION_FILE}")
    return DONE


def _format_calibration(students: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats a line for each student: its temperature, and likelihood and calibration error before and after."""
    lines = []
    for name, one in students.items():
        temperature = "none" if one["temperature"] is None else f"{one['temperature']:.3f}"
        changes = []
        for key, style in (("nll", "{:.3f}"), ("ece", "{:.1%}")):
            values = [None if figures is None else figures[key] for figures in (one["before"], one["after"])]
            before, after = ("–" if value is None else style.format(value) for value in values)
            changes.append(f"{key.upper()} {before} -> {after}")
        lines.append(f"{name:10} temperature {temperature}  " + "  ".join(changes))
    return lines


def _compare_on_test_videos(out: Path, calibration: Mapping[str, Any]) -> list[str]:
    """Says what the temperatures change on the test videos, if the folder has their scores by the same weights and protocol.
    These videos had no part in finding them."""
    record = read_run_record(out)
    if record.predictions is None or record.split != "test" or not is_of_evaluation(calibration, record.evaluation):
        return ["on test videos: evaluate them by this protocol (jobs.evaluate without --calibrate), then the report shows it"]
    labels = record.predictions.labels
    changed = {}
    for name in PREDICTORS:
        scores, temperature = record.predictions.scores[name], calibration[name]["temperature"]
        after = None if temperature is None else compute_calibration(labels, apply_temperature(scores, temperature))
        changed[name] = {"temperature": temperature, "before": compute_calibration(labels, scores), "after": after}
    return [f"on {int((labels >= 0).sum())} test videos, which had no part in that:", *_format_calibration(changed)]


def _evaluate(saved: SavedRun, other: bool, out: Path) -> int:
    if saved.note and not other:
        print(f"note: {saved.note}", flush=True)
    other_data = open_other_data(saved) if other else None
    source = other_data.source if other_data else open_run_source(saved)
    files = _choose_files(saved, source, other_data, out)
    _check_owner(files.evaluation, saved)
    resources = plan_scoring(saved.config, len(source.find_evaluation_rows(saved.config.evaluation.split)))
    summary = evaluate(source, saved.config, saved.weights, saved.step, resources, files, saved.trained_steps)
    if summary["videos"]:
        print("\n".join(format_figures(summary)))
    else:
        print("accuracies are unknown: no video has a label")
    for note in _list_notes(summary, other_data):
        print(f"note: {note}")
    where = f"of {source.manifest.path}, " if other_data else ""
    split = saved.config.evaluation.split
    print(f"{summary['videos']} {split} videos, {where}step {saved.step}; predictions: {files.predictions}")
    print(f"protocol: {describe_protocol(summary)}")
    return DONE


def _choose_files(saved: SavedRun, source: VideoSource, other_data: OtherData | None, out: Path) -> EvaluationFiles:
    about = _name_run(saved, out)
    if other_data is None:
        return EvaluationFiles(out, "", about)
    about["other_data"] = {"trained_on": saved.fingerprints.manifest, "unknown_classes": other_data.unknown}
    return EvaluationFiles(out, f"_on_{source.manifest.fingerprint}", about)


def _name_run(saved: SavedRun, out: Path) -> dict[str, Any]:
    """Returns the entry that names the run of results which are not written into its own folder."""
    return {} if out == saved.folder else {"run": str(saved.folder)}


def _check_owner(results: Path, saved: SavedRun) -> None:
    """Raises UserError if ``results``, which would be replaced, is of another run; only in a run's own folder it names none."""
    try:
        owner = json.loads(results.read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError):  # none yet, or nothing that can be lost
        return
    if owner is None and results.parent != saved.folder:
        raise UserError(f"{results} does not tell of which run it is: choose another --out FOLDER, or delete it")
    if owner not in (None, str(saved.folder)):
        raise UserError(f"{results} holds results of the run {owner}: choose another --out FOLDER, or delete it")


def _list_notes(summary: dict[str, Any], other_data: OtherData | None) -> list[str]:
    notes = []
    if summary["undecodable"]:
        paths = [f"{path}: {reason}" for path, reason in summary["undecodable"].items()]
        notes.append(f"{len(paths)} videos could not be decoded and are left out of these accuracies, the first: {paths[0]}")
    if summary["partly_decoded"]:
        paths = [f"{path}: {reason}" for path, reason in summary["partly_decoded"].items()]
        notes.append(f"of {len(paths)} videos only some clips could be decoded, the first: {paths[0]}")
    if summary["unusable"]:
        paths = [f"{path}: {reason}" for path, reason in summary["unusable"].items()]
        notes.append(f"{len(paths)} videos of this split were found unusable by jobs.prepare, the first: {paths[0]}")
    if lost := describe_lost_videos(summary):
        notes.append(lost)
    if untested := describe_untested_classes(summary):
        notes.append(untested)
    if other_data is not None:
        notes.append("this is not the run's own data; whether the run learned from any of these videos is not checked")
        if other_data.unknown:
            names = ", ".join(list_first([f"{name} ({count})" for name, count in other_data.unknown.items()]))
            total = sum(other_data.unknown.values())
            notes.append(f"{total} videos of classes that the run does not know are left out of these accuracies: {names}")
    return notes


if __name__ == "__main__":
    raise SystemExit(run(main))
