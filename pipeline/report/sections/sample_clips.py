"""Sample clips of the test videos, a few small frames each as data URIs; chosen by a hash, so that nobody selects them by
eye."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.records.run_record import Predictions, RunRecord
from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.evaluation.metrics import find_predicted_classes
from pipeline.manifest.schema import Manifest, read_manifest
from pipeline.report.parts.html import encode_image

NUM_FRAMES, NUM_CLIPS, SIDE, QUALITY = 6, 8, 128, 72
"""Frames per clip, clips per page, the short side in pixels, and the JPEG quality: about 250 KB for a page."""

SEEK_FROM = 5.0
"""If two frames are at least so many seconds apart, the decoder seeks to each."""


@dataclass(frozen=True)
class StudentPrediction:
    """The class that one student predicts for a clip."""

    student: str
    predicted: str
    confidence: float
    """The softmax score of the predicted class, in 0..1."""
    right: bool


@dataclass(frozen=True)
class Sample:
    """One test clip on the page."""

    id: str
    true_class: str
    student_predictions: tuple[StudentPrediction, ...]
    frames: tuple[str, ...]
    """``data:image/jpeg`` URIs in the order of time; empty if the video cannot be shown."""
    problem: str = ""
    """The reason why there are no frames."""
    note: str = ""
    """Why this video is shown; "" if it was chosen by a hash."""


def build_samples(run: RunRecord) -> list[Sample]:
    """Builds up to 8 samples of the run's test videos with both students' predictions; none if it has no predictions."""
    return [] if run.predictions is None else show_videos(run, choose_clips(run.predictions, NUM_CLIPS))


def show_videos(run: RunRecord, indices: Sequence[int]) -> list[Sample]:
    """Decodes frames of the videos of these indices into the run's predictions, which all have a label."""
    assert run.predictions is not None
    manifest, problem = _find_manifest(run)
    rows = {} if manifest is None else {str(name): row for row, name in enumerate(manifest.table["id"].to_pylist())}
    samples = []
    for index in indices:
        name = run.predictions.ids[index]
        frames, why = ((), problem) if manifest is None else _read_frames(manifest, rows.get(name))
        students = tuple(_list_student_predictions(run.predictions, index))
        samples.append(Sample(name, _read_true_class(run.predictions, index), students, frames, why))
    return samples


def choose_clips(predictions: Predictions, count: int) -> list[int]:
    """Chooses clips in turn from the four outcomes (each student right or wrong), in the order of a hash of their ids.

    Every outcome that occurs is thus seen, and nobody picked the clips that look best. Returns indices into ``predictions``.
    """
    hashes = [hashlib.sha256(name.encode()).digest() for name in predictions.ids]
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    right = [find_predicted_classes(predictions.scores[student]) == predictions.labels for student in STUDENTS]
    queues: dict[tuple[bool, bool], list[int]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for index in order:
        if predictions.labels[index] >= 0:
            queues[bool(right[0][index]), bool(right[1][index])].append(index)
    turns = [(position, kind, index) for kind, queue in enumerate(queues.values()) for position, index in enumerate(queue)]
    chosen = sorted(turns)[:count]
    return [index for _, index in sorted((kind, index) for _, kind, index in chosen)]


def decode_thumbnails(path: str, start: float | None = None, end: float | None = None) -> list[NDArray[np.uint8]]:
    """Decodes 6 upright frames [H, W, 3], evenly spaced over start..end seconds (by default the whole video).

    Raises av.error.FFmpegError, OSError or ValueError if the video cannot be decoded.
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
        frames = [frame for part in parts for frame in _decode_at_times(container, stream, part)]
    if not frames:
        raise ValueError("no frame could be decoded")
    return frames


def _decode_at_times(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, wanted: Sequence[float]
) -> Iterator[NDArray[np.uint8]]:
    base = stream.time_base or Fraction(1)
    container.seek(max(int(wanted[0] / base), 0), stream=stream)
    due, latest = 0, None
    for frame in container.decode(stream):
        latest = frame
        while due < len(wanted) and (frame.time or 0.0) >= wanted[due]:
            yield _make_upright_thumbnail(frame)
            due += 1
        if due == len(wanted):
            return
    if latest is not None:
        yield from [_make_upright_thumbnail(latest)] * (len(wanted) - due)


def _make_upright_thumbnail(frame: av.VideoFrame) -> NDArray[np.uint8]:
    scale = SIDE / min(frame.width, frame.height)
    small = frame.reformat(width=max(round(frame.width * scale), 1), height=max(round(frame.height * scale), 1), format="rgb24")
    return np.ascontiguousarray(np.rot90(small.to_ndarray(), round(frame.rotation / 90) % 4))


def _read_frames(manifest: Manifest, row: int | None) -> tuple[tuple[str, ...], str]:
    if row is None:
        return (), "the manifest no longer lists this video"
    times = (manifest.table["start"][row].as_py(), manifest.table["end"][row].as_py())
    try:
        return tuple(encode_image(image, QUALITY) for image in decode_thumbnails(manifest.locate(row), *times)), ""
    except FileNotFoundError:
        return (), "the video file is gone"
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        return (), f"the video cannot be decoded: {error}"


def _find_manifest(run: RunRecord) -> tuple[Manifest | None, str]:
    """Reads the manifest that lists the predicted videos, at the path of the evaluation or of the training; or says why there
    is none.

    The same ids do not make it the same manifest: a data set that was prepared again may have other videos and classes under
    them.
    """
    data = run.evaluation.get("data") or {}
    candidates = [(data.get("manifest"), data.get("root")), (run.config.get("data.manifest"), run.config.get("data.root"))]
    wanted = (run.predictions.manifest if run.predictions else "") or run.manifest_fingerprint
    why = "config.yaml names no manifest, so the videos are unknown"
    for path, root in dict.fromkeys((str(path), root) for path, root in candidates if path):
        try:
            manifest = read_manifest(path, root=root)
        except UserError as error:
            why = f"the manifest cannot be read: {str(error).splitlines()[0]}"
            continue
        if manifest.fingerprint == (wanted or manifest.fingerprint):
            return manifest, ""
        why = f"the manifest {path} was written again since the run: it may list other videos under the same names"
    return None, why


def _read_true_class(predictions: Predictions, index: int) -> str:
    return predictions.classes[int(predictions.labels[index])]


def _list_student_predictions(predictions: Predictions, index: int) -> Iterator[StudentPrediction]:
    for student in STUDENTS:
        scores = predictions.scores[student][index : index + 1]
        best = int(find_predicted_classes(scores)[0])
        name, confidence = (predictions.classes[best], float(scores[0, best])) if best >= 0 else ("nothing (not finite)", 0.0)
        yield StudentPrediction(student, name, confidence, best == int(predictions.labels[index]))
