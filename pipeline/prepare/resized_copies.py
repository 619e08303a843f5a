"""Copies at a smaller size: they decode several times faster, and any odd container becomes a plain MP4.

The picture only: sound is left out. Frames keep their times, to 1/90000 s; nothing is turned, cut or dropped. A copy
appears under its name when it is complete, so an interrupted run goes on where it was.
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
from pipeline.manifest.schema import locate
from pipeline.prepare.probe_cache import remembered
from pipeline.prepare.sources import Listing
from pipeline.processes.isolation import Lost, map_isolated
from pipeline.progress import progress
from pipeline.video import image_sequence, video_file
from pipeline.video.container import find_video_stream, open_container, summarize_error
from pipeline.video.exact_reader import FrameConverter, UInt8s
from pipeline.video.probe import Probe, ProbeFiles, ProbeOptions

CLOCK = 90_000
"""Ticks a second of the copies."""
COARSE_NS = 10**7
"""File systems of removable disks keep times to 10 ms (exFAT) or 2 s (FAT), rounded down."""
KEY_EVERY = 12
"""Frames between key frames: few frames are decoded in vain before a clip, for some 10 % more bytes. Choice."""
OPTIONS = {"crf": "20", "preset": "veryfast", "tune": "fastdecode", "x264-params": "open-gop=0:mbtree=0"}
"""``fastdecode``: no CABAC, deblocking or weighted prediction; decoding takes 1.4 times less for 8 % more bytes and 0.2 dB
(docs/stream.md). Without x264's macroblock tree, whose result depends on the process."""


@dataclass(frozen=True)
class Copy:
    """One video to be copied."""

    source: str
    """Path or URI, or a pattern of numbered images."""
    target: str
    short_side: int
    fps: float
    variable: bool
    """Whether frames have the times that the file tells, and not those of the rate."""


def resized(
    listing: Listing, probes: Sequence[Probe], folder: Path, short_side: int, copy: Callable[[Sequence[Copy]], dict[int, str]]
) -> tuple[Listing, list[Probe]]:
    """Copy the usable videos of a listing into a folder; the listing of the copies, with the same ids, and what is known.

    Videos that are not usable, or of which no copy could be made, keep a probe that says why; the copies must be probed.
    """
    ids = listing.ids or listing.uris
    usable = [place for place, probe in enumerate(probes) if probe.status == "ok"]
    names = copy_names(ids)
    copies = []
    for place in usable:
        source, probe = locate(listing.root, listing.uris[place]), probes[place]
        copies.append(Copy(source, str(folder / names[place]), short_side, probe.fps, probe.variable_fps))
    failures = {usable[number]: reason for number, reason in copy(copies).items()}
    kept = [
        Probe(bytes=probe.bytes, status="undecodable", reason=f"not resized: {failures[place]}") if place in failures else probe
        for place, probe in enumerate(probes)
    ]
    return replace(listing, root=str(folder), uris=tuple(names), ids=tuple(ids), frame_rate=None), kept


def probe_copies(
    listing: Listing, probes: Sequence[Probe], options: ProbeOptions, folder: Path | None, probe: ProbeFiles
) -> list[Probe]:
    """Probes of the copies, and of the rest what was found in the originals."""
    places = [place for place, found in enumerate(probes) if found.status == "ok"]
    paths = [locate(listing.root, listing.uris[place]) for place in places]
    with remembered(folder) as (known, note):
        found = dict(zip(places, probe(paths, options, known, note), strict=True))
    return [found.get(place, old) for place, old in enumerate(probes)]


def copy_names(ids: Sequence[str]) -> list[str]:
    """Relative paths of the copies: the ids as MP4, which stay apart where ids differ in their suffix only."""
    plain = [
        PurePosixPath(*(part for part in name.replace("://", "/").split("/") if part not in ("", "..", "."))) for name in ids
    ]
    short = [str(name.with_suffix(".mp4")) for name in plain]
    counts = Counter(short)
    names = [name if counts[name] == 1 else f"{long}.mp4" for name, long in zip(short, plain, strict=True)]
    counts = Counter(names)  # jump.v0 beside jump.v0.avi, or ../a.mp4 beside a.mp4, are still one name
    return [_with_digest(name, of) if counts[name] > 1 else name for name, of in zip(names, ids, strict=True)]


def _with_digest(name: str, of: str) -> str:
    return f"{name.removesuffix('.mp4')}.{hashlib.sha256(of.encode()).hexdigest()[:8]}.mp4"


def resize_all(copies: Sequence[Copy], processes: int | None = None, timeout_seconds: float = 600.0) -> dict[int, str]:
    """Make all copies that are not there yet, in worker processes; returns why those that failed did, by index."""
    sources = {os.path.realpath(copy.source) for copy in copies}
    if over := [copy.target for copy in copies if os.path.realpath(copy.target) in sources]:
        raise UserError(f"--resize would write over the original {over[0]}: choose another OUT")
    failures: dict[int, str] = {}
    left = [place for place, copy in enumerate(copies) if storage.is_remote(copy.source) or not _is_done_here(copy)]
    if len(left) < len(copies):
        print(f"{len(copies) - len(left)} of {len(copies)} copies are there", file=sys.stderr, flush=True)
    todo = [copies[place] for place in left]
    if not todo:
        return {}
    for number, reason in progress(map_isolated(resize, todo, processes, timeout_seconds), len(todo), "resized"):
        if reason := reason.reason if isinstance(reason, Lost) else reason:
            failures[left[number]] = str(reason)
    return failures


def resize(copy: Copy) -> str:
    """Make one copy, unless it is there and of this source. Returns why it could not be made, or nothing."""
    target = Path(copy.target)
    partial = target.with_name(f".{target.name}.part")
    try:
        if _is_done(copy):
            return ""
        target.parent.mkdir(parents=True, exist_ok=True)
        changed = int(video_file.get_file_info(copy.source).changed)
        _encode(copy, partial)
        os.utime(partial, ns=(changed, changed))
        os.replace(partial, target)
    except Exception as error:  # FFmpeg raises many types; all mean that this video has no copy
        partial.unlink(missing_ok=True)
        return f"{type(error).__name__}: {summarize_error(error)}"
    return ""


def _is_done_here(copy: Copy) -> bool:
    try:
        return _is_done(copy)
    except OSError:  # said by ``resize``
        return False


def _is_done(copy: Copy) -> bool:
    """Whether the copy is there and has the time of its source, whatever that is: a restored file may be older than before."""
    source = int(video_file.get_file_info(copy.source).changed)
    try:
        mine = os.stat(copy.target).st_mtime_ns
    except FileNotFoundError:
        return False
    return mine == source or (mine % COARSE_NS == 0 and 0 <= source - mine < 2 * 10**9)


def _encode(copy: Copy, path: Path) -> None:
    with av.open(
        str(path), "w", format="mp4", options={"movflags": "faststart", "video_track_timescale": str(CLOCK)}
    ) as output:
        stream, shrink = None, VideoReformatter()
        last = -1
        for seconds, image in _frames(copy):
            height, width = image.shape[:2]
            scale = min(1.0, copy.short_side / min(width, height))
            if stream is None:
                stream = output.add_stream("libx264", rate=Fraction(copy.fps).limit_denominator(1001))
                stream.width, stream.height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
                stream.pix_fmt = "yuv420p"
                context = stream.codec_context
                context.gop_size, context.options, context.time_base = KEY_EVERY, OPTIONS, Fraction(1, CLOCK)
                context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = shrink.reformat(frame, stream.width, stream.height, "yuv420p", interpolation="AREA", threads=1)
            last = max(last + 1, round(seconds * CLOCK))
            frame.pts, frame.time_base = last, Fraction(1, CLOCK)
            output.mux(stream.encode(frame))
        if stream is None:
            raise ValueError("no frame decodes")
        output.mux(stream.encode())


def _frames(copy: Copy) -> Iterator[tuple[float, UInt8s]]:
    """(seconds from the first frame, upright RGB) of every frame."""
    if image_sequence.is_pattern(copy.source):
        for number, name in enumerate(image_sequence.list_images(copy.source)):
            yield number / copy.fps, image_sequence.read_image(name)
        return
    first, convert = None, FrameConverter()
    with open_container(storage.open_for_decoder(copy.source)) as container:
        for number, frame in enumerate(container.decode(find_video_stream(container))):
            seconds = frame.time if copy.variable else number / copy.fps
            first = seconds if first is None else first
            yield seconds - first, convert(frame)
