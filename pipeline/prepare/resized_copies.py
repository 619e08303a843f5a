"""Copies of videos at a smaller size: they decode several times faster, and any odd container becomes a plain MP4.

A copy holds the picture only, without sound. Frames keep their times, to 1/90000 s; none is rotated, cut or dropped. A copy
appears under its name when it is complete, so that an interrupted run continues where it was.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import av
from av.video.reformatter import VideoReformatter

from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.manifest.schema import resolve_uri
from pipeline.prepare.probe_cache import open_probe_cache
from pipeline.prepare.sources import Listing
from pipeline.processes.isolation import ProcessFailure, map_in_processes
from pipeline.progress import show_progress
from pipeline.video import image_sequence, video_file
from pipeline.video.container import find_video_stream, open_container, summarize_error
from pipeline.video.exact_reader import FrameConverter, UInt8s
from pipeline.video.probe import Probe, ProbeFiles, ProbeOptions

CLOCK = 90_000
"""Ticks per second of the copies' timestamps."""
COARSE_NS = 10**7
"""File systems of removable disks keep times to 10 ms (exFAT) or 2 s (FAT), rounded down."""
GOP_SIZE = 12
"""Frames from one key frame to the next: few frames are decoded in vain before a clip, for some 10 % more bytes. Choice."""
ENCODER_OPTIONS = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "x264-params": "open-gop=0:mbtree=0"}
"""Options of x264. ``fastdecode`` means no CABAC, deblocking or weighted prediction: decoding takes 1.4 times less for 8 % more
bytes and 0.2 dB (docs/stream.md). The macroblock tree is off because its result depends on the process."""


@dataclass(frozen=True)
class CopyTask:
    """One video to be copied at a smaller size."""

    source: str
    """Path or URI of the original, or a pattern of numbered images."""
    target: str
    """Local path of the copy."""
    short_side: int
    """Short side of the copy in pixels; smaller originals keep their size."""
    fps: float
    variable_fps: bool
    """Whether frames have the times that are stored with them, and not those that follow from ``fps``."""


def resize_listing(
    listing: Listing,
    probes: Sequence[Probe],
    folder: Path,
    short_side: int,
    make_all: Callable[[Sequence[CopyTask]], dict[int, str]],
) -> tuple[Listing, list[Probe]]:
    """Copies the usable videos of a listing into a folder by ``make_all``, which does what ``make_copies`` does.

    Returns the listing of the copies, with the same ids, and the originals' probes, which ``probe_copies`` replaces by those
    of the copies. Where no copy could be made, the probe says why.
    """
    ids = listing.ids or listing.uris
    usable = [index for index, probe in enumerate(probes) if probe.status == "ok"]
    names = name_copies(ids)
    tasks = []
    for index in usable:
        source, probe = resolve_uri(listing.root, listing.uris[index]), probes[index]
        tasks.append(CopyTask(source, str(folder / names[index]), short_side, probe.fps, probe.variable_fps))
    failures = {usable[number]: reason for number, reason in make_all(tasks).items()}
    remaining = list(probes)
    for index, reason in failures.items():
        remaining[index] = Probe(bytes=probes[index].bytes, status="undecodable", reason=f"not resized: {reason}")
    return replace(listing, root=str(folder), uris=tuple(names), ids=tuple(ids), frame_rate=None), remaining


def probe_copies(
    listing: Listing, probes: Sequence[Probe], options: ProbeOptions, folder: Path | None, probe: ProbeFiles
) -> list[Probe]:
    """Probes the copies, and returns their probes together with the originals' probes of videos without a copy."""
    indices = [index for index, original in enumerate(probes) if original.status == "ok"]
    paths = [resolve_uri(listing.root, listing.uris[index]) for index in indices]
    with open_probe_cache(folder) as (find_earlier, record):
        copies = dict(zip(indices, probe(paths, options, find_earlier, record), strict=True))
    return [copies.get(index, original) for index, original in enumerate(probes)]


def name_copies(ids: Sequence[str]) -> list[str]:
    """Names the copies: returns relative paths that are the ids with the suffix .mp4, and that differ wherever ids differ."""
    paths = [
        PurePosixPath(*(part for part in video_id.replace("://", "/").split("/") if part not in ("", "..", ".")))
        for video_id in ids
    ]
    short_names = [str(path.with_suffix(".mp4")) for path in paths]
    counts = Counter(short_names)
    names = [name if counts[name] == 1 else f"{path}.mp4" for name, path in zip(short_names, paths, strict=True)]
    counts = Counter(names)  # jump.v0 beside jump.v0.avi, or ../a.mp4 beside a.mp4, have still the same name
    return [_add_digest(name, video_id) if counts[name] > 1 else name for name, video_id in zip(names, ids, strict=True)]


def _add_digest(name: str, video_id: str) -> str:
    return f"{name.removesuffix('.mp4')}.{hashlib.sha256(video_id.encode()).hexdigest()[:8]}.mp4"


def make_copies(tasks: Sequence[CopyTask], processes: int | None = None, timeout_seconds: float = 600.0) -> dict[int, str]:
    """Makes all copies that are not there yet, in worker processes; returns the reasons of those that failed, by index.

    Raises UserError if a copy would replace an original.
    """
    sources = {os.path.realpath(task.source) for task in tasks}
    if overwritten := [task.target for task in tasks if os.path.realpath(task.target) in sources]:
        raise UserError(f"--resize would write over the original {overwritten[0]}: choose another OUT")
    failures: dict[int, str] = {}
    remaining = [index for index, task in enumerate(tasks) if storage.is_remote(task.source) or not _is_done_locally(task)]
    if len(remaining) < len(tasks):
        print(f"{len(tasks) - len(remaining)} of {len(tasks)} copies are there already", file=sys.stderr, flush=True)
    todo = [tasks[index] for index in remaining]
    if not todo:
        return {}
    for number, result in show_progress(map_in_processes(make_copy, todo, processes, timeout_seconds), len(todo), "resized"):
        if reason := result.reason if isinstance(result, ProcessFailure) else result:
            failures[remaining[number]] = str(reason)
    return failures


def make_copy(task: CopyTask) -> str:
    """Makes one copy, unless it is there and up to date. Returns the reason why it could not be made, or an empty text."""
    target = Path(task.target)
    partial = target.with_name(f".{target.name}.part")
    try:
        if _is_done(task):
            return ""
        target.parent.mkdir(parents=True, exist_ok=True)
        changed = int(video_file.get_file_info(task.source).changed)
        _encode(task, partial)
        os.utime(partial, ns=(changed, changed))
        os.replace(partial, target)
    except Exception as error:  # FFmpeg raises many types; all mean that this video has no copy
        partial.unlink(missing_ok=True)
        return f"{type(error).__name__}: {summarize_error(error)}"
    return ""


def _is_done_locally(task: CopyTask) -> bool:
    try:
        return _is_done(task)
    except OSError:  # reported by ``make_copy``
        return False


def _is_done(task: CopyTask) -> bool:
    """Whether the copy is there and has the time of its source, whatever that is: a restored file may be older than before."""
    source_time = int(video_file.get_file_info(task.source).changed)
    try:
        copy_time = os.stat(task.target).st_mtime_ns
    except FileNotFoundError:
        return False
    return copy_time == source_time or (copy_time % COARSE_NS == 0 and 0 <= source_time - copy_time < 2 * 10**9)


def _encode(task: CopyTask, path: Path) -> None:
    with av.open(
        str(path), "w", format="mp4", options={"movflags": "faststart", "video_track_timescale": str(CLOCK)}
    ) as output:
        stream, scaler = None, VideoReformatter()
        last_pts = -1
        for seconds, image in _read_all_frames(task):
            height, width = image.shape[:2]
            scale = min(1.0, task.short_side / min(width, height))
            if stream is None:
                stream = output.add_stream("libx264", rate=Fraction(task.fps).limit_denominator(1001))
                stream.width, stream.height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.gop_size, context.options, context.time_base = GOP_SIZE, ENCODER_OPTIONS, Fraction(1, CLOCK)
                context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = scaler.reformat(frame, stream.width, stream.height, "yuv420p", interpolation="AREA", threads=1)
            last_pts = max(last_pts + 1, round(seconds * CLOCK))
            frame.pts, frame.time_base = last_pts, Fraction(1, CLOCK)
            output.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("no frame can be decoded")
        output.mux(stream.encode())


def _read_all_frames(task: CopyTask) -> Iterator[tuple[float, UInt8s]]:
    """Yields (seconds from the first frame, upright RGB image) of every frame."""
    if image_sequence.is_pattern(task.source):
        for number, name in enumerate(image_sequence.list_images(task.source)):
            yield number / task.fps, image_sequence.read_image(name)
        return
    first_seconds, convert = None, FrameConverter()
    with open_container(storage.open_for_decoder(task.source)) as container:
        for number, frame in enumerate(container.decode(find_video_stream(container))):
            seconds = frame.time if task.variable_fps else number / task.fps
            first_seconds = seconds if first_seconds is None else first_seconds
            yield seconds - first_seconds, convert(frame)
