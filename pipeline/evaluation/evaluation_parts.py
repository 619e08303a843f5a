"""Parts of an evaluation under way, so that a killed one continues: scores of the first videos, a Parquet file every half
minute."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.evaluation.video_scores import VideoScores, join_video_scores, read_video_scores
from pipeline.model_folder.read_folder import compute_sha256
from pipeline.seeds import Ints

SECONDS = 30.0
"""Time between two parts that are written, and so the most work that a kill costs."""
FOLDER = ".evaluation_parts"
"""Name of the folder of parts, below that of the results. It holds ``WEIGHTS/EVALUATION/``, named by their fingerprints."""
FINGERPRINT = re.compile("[0-9a-f]{16}")
"""What the folders below are named by; a folder of another name was not made here, and is left alone."""


def choose_parts_folder(source: VideoSource, config: Config, weights: Path, videos: Ints, out: Path) -> Path:
    """Chooses the folder of the parts of one evaluation, whose name tells the weights, the videos and the protocol.

    Another name means another evaluation, whose parts are left alone. Raises UserError if a symbolic link lies in the way: the
    folder may be a model from elsewhere, and nothing outside of it may be written or deleted.
    """
    manifest = source.manifest
    rows = hashlib.sha256(np.ascontiguousarray(videos, dtype="<i8").tobytes()).hexdigest()
    content: dict[str, Any] = {"version": 1, "manifest": manifest.fingerprint, "root": manifest.root, "videos": rows}
    content |= config.model_dump(mode="json", include={"data", "primary", "auxiliary", "evaluation", "train"})
    of_evaluation = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = out / FOLDER / compute_sha256(weights)[:16] / of_evaluation
    _refuse_links(folder)
    return folder


def _refuse_links(folder: Path) -> None:
    for path in (folder.parent.parent, folder.parent, folder):
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link, where a folder of scores belongs: delete the link, and try again")


def delete_parts(folder: Path, with_other_weights: bool = False) -> None:
    """Deletes the parts of an evaluation that came to its end, and the folders above that are empty then.

    With ``with_other_weights`` also the parts of other weights: the results that they would continue were just replaced.
    Raises UserError if a symbolic link lies in the way.
    """
    _refuse_links(folder)
    shutil.rmtree(folder, ignore_errors=True)
    others = list(folder.parent.parent.glob("*")) if with_other_weights else []
    for other in others:
        if other.name != folder.parent.name and FINGERPRINT.fullmatch(other.name) and not other.is_symlink():
            shutil.rmtree(other, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def read_parts(folder: Path, videos: Ints) -> list[VideoScores]:
    """Reads the parts that an earlier process left, as far as they follow each other from the first video on."""
    parts: list[VideoScores] = []
    done = 0
    while (path := folder / f"{done:09d}.parquet").is_file():
        try:
            part = read_video_scores(pq.read_table(path))
        except (OSError, ValueError, KeyError, pa.ArrowException):  # scored again, and replaced
            break
        if not len(part) or not np.array_equal(part.videos, videos[done : done + len(part)]):
            break
        parts.append(part)
        done += len(part)
    return parts


def keep_parts(scored: Iterable[VideoScores], folder: Path, done: int, unit: int) -> list[VideoScores]:
    """Collects the scores of the videos from number ``done`` on, and writes parts of a multiple of ``unit`` videos meanwhile.

    A part is there as a whole or not at all. Returns all scores that came in.
    """
    collected: list[VideoScores] = []
    unwritten: list[VideoScores] = []
    written = time.monotonic()
    for few in scored:
        collected.append(few)
        unwritten.append(few)
        count = sum(map(len, unwritten)) // unit * unit
        if count and time.monotonic() - written >= SECONDS:
            together = join_video_scores(unwritten)
            _write_part(together.select(slice(0, count)), folder / f"{done:09d}.parquet")
            done, unwritten, written = done + count, [together.select(slice(count, None))], time.monotonic()
    return collected


def choose_unit(batch: int, views: int, block: int) -> int:
    """Chooses how many videos a part is a multiple of, so that batches begin at the same videos when it is continued: then the
    scores are the same to the last bit.

    Args:
        batch: Views that go through the students at once.
        views: Views of a video.
        block: Videos that a decode task decodes, or 1.
    """
    return math.lcm(batch // math.gcd(batch, views), block)


def _write_part(part: VideoScores, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(part.to_table(), scratch)
    os.replace(scratch, path)
