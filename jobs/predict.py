"""``python -m jobs.predict RUN_FOLDER FILE ...``: what a run's newest checkpoint says of any video files."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.command import DONE, run
from pipeline.errors import UserError, list_first
from pipeline.evaluation.file_predictions import predict_files, write_file_predictions
from pipeline.lifecycle.saved_run import open_file_source, open_saved_run
from pipeline.lifecycle.train_and_evaluate import reserve_to_score
from pipeline.prepare.sources.file_search import find_existing_file


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each file's most probable classes; ``--out`` writes all scores as Parquet. Only the run folder is needed."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.predict", description=__doc__)
    arguments.add_argument("run_folder", type=Path)
    arguments.add_argument("files", nargs="+", metavar="FILE", help="video files, and key=value of evaluation.*, scale.*")
    arguments.add_argument("--out", type=Path, metavar="FILE", help="Parquet file for all scores")
    arguments.add_argument("--top", type=int, default=3, metavar="N", help="classes to print for each (default: %(default)s)")
    options = arguments.parse_args(argv)
    overrides = [word for word in options.files if word.startswith(("evaluation.", "scale.")) and "=" in word]
    files = check_files([word for word in options.files if word not in overrides])
    if options.out is not None and not options.out.resolve().parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.resolve().parent}")
    saved = open_saved_run(options.run_folder, overrides, ("evaluation.", "scale."))
    resources = reserve_to_score(saved.config, len(files))
    predictions = predict_files(open_file_source(saved), saved.config, saved.weights, files, resources)
    classes = saved.classes
    for prediction in predictions:
        if prediction.scores:
            mean = prediction.scores["mean"]
            best = mean.argsort()[::-1][: max(1, options.top)]
            print(f"{prediction.file}  " + "  ".join(f"{classes[index]} {mean[index]:.1%}" for index in best))
        else:
            print(f"{prediction.file}  not predicted: {prediction.reason}")
    if options.out is not None:
        write_file_predictions(predictions, classes, options.out)
    return DONE


KEY = re.compile(r"[a-z_]+(?:\.[a-z_]+)+(?==)")
"""Matches the beginning of a word that overrides a key of the configuration."""


def check_files(words: Sequence[str]) -> list[str]:
    """Returns the files that the words name, as they are on the disk. Raises UserError for words that cannot name one."""
    keys = [word for word in words if KEY.match(word) and not os.path.lexists(word)]
    if keys:
        raise UserError("no such files, and only evaluation.* and scale.* can be overridden here:", keys)
    if wrong := [repr(word) for word in words if not _is_utf8(word)]:
        raise UserError("file names that are not UTF-8 cannot be stored; rename:", list_first(wrong))
    if not words:
        raise UserError("name at least one video file")
    files = [find_existing_file(word) for word in words]
    if renamed := [file for file, word in zip(files, words, strict=True) if file != word]:
        print(f"note: {len(renamed)} names have another Unicode form on the disk, the first: {renamed[0]}", file=sys.stderr)
    return files


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(run(main))
