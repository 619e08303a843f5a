"""A strip of sample test clips: chosen by a hash, not by eye; a few small frames each, as data URIs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.run_reader import Predictions, Run
from pipeline.errors import UserError
from pipeline.evaluation.metrics import predicted_classes
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.report.html import image_uri

STUDENTS = ("primary", "auxiliary")
NUM_FRAMES, NUM_CLIPS, SIDE, QUALITY = 6, 8, 128, 72
"""Frames of a clip, clips of a page, short side in pixels, JPEG quality: about 250 KB for a page."""

SEEK_FROM = 5.0
"""Seconds between two frames from which each is sought."""


@dataclass(frozen=True)
class Verdict:
    """What one student says of a clip."""

    student: str
    predicted: str
    confidence: float
    """Softmax score of the predicted class, in 0..1."""
    right: bool


@dataclass(frozen=True)
class Sample:
    """One test clip for the page."""

    id: str
    true_class: str
    verdicts: tuple[Verdict, ...]
    frames: tuple[str, ...]
    """``data:image/jpeg`` URIs in the order of time; empty when the video cannot be shown."""
    problem: str = ""
    """Why there are no frames."""


def samples(run: Run) -> list[Sample]:
    """Up to 8 clips of the run's test videos with both students' predictions; empty without predictions."""
    if run.predictions is None:
        return []
    manifest, problem = _manifest(run)
    rows = {} if manifest is None else {str(name): row for row, name in enumerate(manifest.table["id"].to_pylist())}
    found = []
    for index in choose(run.predictions, NUM_CLIPS):
        name = run.predictions.ids[index]
        frames, why = ((), problem) if manifest is None else _frames(manifest, rows.get(name))
        found.append(Sample(name, _true_class(run.predictions, index), tuple(_verdicts(run.predictions, index)), frames, why))
    return found


def choose(predictions: Predictions, count: int) -> list[int]:
    """Indices of clips in turn from the four outcomes (each student right or wrong), in the order of the ids' hash.

    So each outcome that occurs is seen, and nobody picked the clips that look best.
    """
    hashes = [hashlib.sha256(name.encode()).digest() for name in predictions.ids]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    right = [predicted_classes(predictions.scores[student]) == predictions.labels for student in STUDENTS]
    queues: dict[tuple[bool, bool], list[int]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for index in order:
        if predictions.labels[index] >= 0:
            queues[bool(right[0][index]), bool(right[1][index])].append(index)
    turns = [(place, kind, index) for kind, queue in enumerate(queues.values()) for place, index in enumerate(queue)]
    chosen = sorted(turns)[:count]
    return [index for _, index in sorted((kind, index) for _, kind, index in chosen)]


def decode_thumbnails(path: str, start: float | None = None, end: float | None = None) -> list[NDArray[np.uint8]]:
    """6 frames [H, W, 3] evenly spaced over start..end seconds (the whole video by default), upright.

    Raises av.error.FFmpegError, OSError or ValueError for what cannot be decoded.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        base = stream.time_base or Fraction(1)
        begin = float((stream.start_time or 0) * base)
        length = float((stream.duration or 0) * base) or (container.duration or 0) / av.time_base
        first, last = begin + (start or 0.0), begin + (end or length)
        wanted = [first + (last - first) * (index + 0.5) / NUM_FRAMES for index in range(NUM_FRAMES)]
        # frames close together in one pass, where a seek would decode from the same key frame again and again
        parts = [wanted] if last - first < NUM_FRAMES * SEEK_FROM else [[time] for time in wanted]
        frames = [frame for part in parts for frame in _at_times(container, stream, part)]
    if not frames:
        raise ValueError("no frame could be decoded")
    return frames


def _at_times(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, wanted: Sequence[float]
) -> Iterator[NDArray[np.uint8]]:
    base = stream.time_base or Fraction(1)
    container.seek(max(int(wanted[0] / base), 0), stream=stream)
    due, latest = 0, None
    for frame in container.decode(stream):
        latest = frame
        while due < len(wanted) and (frame.time or 0.0) >= wanted[due]:
            yield _upright(frame)
            due += 1
        if due == len(wanted):
            return
    if latest is not None:
        yield from [_upright(latest)] * (len(wanted) - due)


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    scale = SIDE / min(frame.width, frame.height)
    small = frame.reformat(width=max(round(frame.width * scale), 1), height=max(round(frame.height * scale), 1), format="rgb24")
    return np.ascontiguousarray(np.rot90(small.to_ndarray(), round(frame.rotation / 90) % 4))


def _frames(manifest: Manifest, row: int | None) -> tuple[tuple[str, ...], str]:
    if row is None:
        return (), "the manifest no longer lists this video"
    times = (manifest.table["start"][row].as_py(), manifest.table["end"][row].as_py())
    try:
        return tuple(image_uri(image, QUALITY) for image in decode_thumbnails(manifest.locate(row), *times)), ""
    except FileNotFoundError:
        return (), "the video file is gone"
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        return (), f"the video cannot be decoded: {error}"


def _manifest(run: Run) -> tuple[Manifest | None, str]:
    """The manifest that lists the predicted videos, where it lay at the evaluation or at the training; or why there is none.

    Ids alone do not make it the same: a data set that was prepared again may have other videos and classes under them.
    """
    data = run.evaluation.get("data") or {}
    places = [(data.get("manifest"), data.get("root")), (run.config.get("data.manifest"), run.config.get("data.root"))]
    wanted = (run.predictions.manifest if run.predictions else "") or run.manifest_fingerprint
    why = "config.yaml names no manifest, so the videos are unknown"
    for path, root in dict.fromkeys((str(path), root) for path, root in places if path):
        try:
            manifest = read_manifest(path, root=root)
        except UserError as error:
            why = f"the manifest cannot be read: {str(error).splitlines()[0]}"
            continue
        if manifest.fingerprint == (wanted or manifest.fingerprint):
            return manifest, ""
        why = f"the manifest {path} was written again since the run: it may list other videos under the same names"
    return None, why


def _true_class(predictions: Predictions, index: int) -> str:
    return predictions.classes[int(predictions.labels[index])]


def _verdicts(predictions: Predictions, index: int) -> Iterator[Verdict]:
    for student in STUDENTS:
        scores = predictions.scores[student][index : index + 1]
        best = int(predicted_classes(scores)[0])
        name, confidence = (predictions.classes[best], float(scores[0, best])) if best >= 0 else ("nothing (not finite)", 0.0)
        yield Verdict(student, name, confidence, best == int(predictions.labels[index]))
