"""``python -m jobs.evaluate RUN_FOLDER [key=value ...]``: accuracy and predictions of a run's newest checkpoint."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.command import DONE, run
from pipeline.clips.source import VideoSource
from pipeline.errors import UserError, list_first
from pipeline.evaluation.predict import EvaluationFiles, evaluate
from pipeline.files.folder_lock import lock_folder
from pipeline.lifecycle.saved_run import OtherData, SavedRun, open_other_data, open_run_source, open_saved_run
from pipeline.lifecycle.train_and_evaluate import reserve_to_score
from pipeline.run_folder.contents import read_run

ALLOWED = ("evaluation.", "scale.", "data.manifest=", "data.labels=", "data.root=")
"""The keys that may be overridden: how the run is evaluated, where that is computed, and where its data lies now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates on the run's own data, or on purpose on other data; prints accuracies and where the scores are."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.evaluate", description=__doc__)
    arguments.add_argument("run_folder", type=Path)
    arguments.add_argument("--other-data", metavar="MANIFEST", help="evaluate on another data set, classes matched by name")
    arguments.add_argument("--out", type=Path, metavar="FOLDER", help="write there; the run folder stays as it is")
    about = "evaluation.*, scale.*; data.manifest, data.labels, data.root of data that moved"
    arguments.add_argument("overrides", nargs="*", metavar="key=value", help=about)
    options = arguments.parse_intermixed_args(argv)
    folder, words = options.run_folder.expanduser().resolve(), list(options.overrides)
    if options.other_data is not None:
        if any(word.startswith("data.manifest=") for word in words):
            raise UserError("--other-data and data.manifest= both name a manifest: the second is for the run's own that moved")
        # that of the run, if it recorded one, is where the run's own videos are
        words = ["data.root=null", *words, f"data.manifest={options.other_data}"]
    read_run(folder)  # whether it is a run folder at all, before its lock makes it one
    out = folder if options.out is None else options.out.expanduser().resolve()
    if out != folder and (out / "facts.json").exists():
        raise UserError(f"--out {options.out} is a run folder: choose another")
    remedy = "wait until it has ended, stop it, or write elsewhere with --out FOLDER"
    elsewhere = f"write the results {'elsewhere' if options.out is None else 'into another folder'} with --out FOLDER"
    with lock_folder(out, remedy=remedy, elsewhere=elsewhere):
        return _evaluate(open_saved_run(folder, words, ALLOWED), options.other_data is not None, out)


def _evaluate(saved: SavedRun, other: bool, out: Path) -> int:
    if saved.note and not other:
        print(f"note: {saved.note}", flush=True)
    other_data = open_other_data(saved) if other else None
    source = other_data.source if other_data else open_run_source(saved)
    files = _choose_files(saved, source, other_data, out)
    _check_owner(files, saved)
    resources = reserve_to_score(saved.config, len(source.evaluation_rows(saved.config.evaluation.split)))
    summary = evaluate(source, saved.config, saved.weights, saved.step, resources, files)
    for name in ("primary", "auxiliary", "mean"):
        top1 = summary[name]["top1"]
        print(f"{name:10} " + ("unknown: no video has a label" if top1 is None else f"{top1:.1%}"))
    for note in _list_notes(summary, other_data):
        print(f"note: {note}")
    where = f"of {source.manifest.path}, " if other_data else ""
    split = saved.config.evaluation.split
    print(f"{summary['videos']} {split} videos, {where}step {saved.step}; predictions: {files.predictions}")
    return DONE


def _choose_files(saved: SavedRun, source: VideoSource, other_data: OtherData | None, out: Path) -> EvaluationFiles:
    about: dict[str, Any] = {}
    if out != saved.folder:
        about["run"] = str(saved.folder)
    if other_data is None:
        return EvaluationFiles(out, "", about)
    about["other_data"] = {"trained_on": saved.fingerprints.manifest, "unknown_classes": other_data.unknown}
    return EvaluationFiles(out, f"_on_{source.manifest.fingerprint}", about)


def _check_owner(files: EvaluationFiles, saved: SavedRun) -> None:
    """Raises UserError if another run's results lie where these would be written."""
    try:
        owner = json.loads(files.evaluation.read_text(encoding="utf-8")).get("run")
    except (OSError, ValueError, AttributeError):  # none yet, or nothing that can be lost
        return
    if owner not in (None, str(saved.folder)):
        raise UserError(f"{files.evaluation} holds results of the run {owner}: choose another --out FOLDER, or delete it")


def _list_notes(summary: dict[str, Any], other_data: OtherData | None) -> list[str]:
    notes = []
    if summary["undecodable"]:
        paths = [f"{path}: {reason}" for path, reason in summary["undecodable"].items()]
        notes.append(f"{len(paths)} videos could not be decoded and count nowhere, the first: {paths[0]}")
    if other_data is not None:
        notes.append("this is not the run's own data; whether the run learned from any of these videos is not checked")
        if other_data.unknown:
            names = [f"{name} ({count})" for name, count in other_data.unknown.items()]
            total = sum(other_data.unknown.values())
            notes.append(f"{total} videos of classes that the run does not know count nowhere: {', '.join(list_first(names))}")
    return notes


if __name__ == "__main__":
    raise SystemExit(run(main))
