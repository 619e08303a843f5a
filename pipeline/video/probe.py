"""What is in a video file, whether it decodes, and which decoder returns its frames exactly.

decord is fast, but on TS, MPEG-PS, WMV, edit lists, open GOPs and many AVIs it returns wrong frames without an error.
So a file is left to it only if its packets are simple, its count and times agree with them, and so do sampled pixels.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import av
import numpy as np

from pipeline.files import storage
from pipeline.processes.isolation import Lost, map_isolated
from pipeline.progress import progress
from pipeline.video import checksum, image_sequence
from pipeline.video.container import (
    INDEXED,
    FrameIndex,
    Input,
    UnusableError,
    codec_name,
    count_frames,
    first_line,
    format_name,
    index_packets,
    open_container,
    video_stream,
)
from pipeline.video.decord_check import decord_agrees, decord_disagrees, places_to_compare
from pipeline.video.exact_reader import UInt8s, decode_frames
from pipeline.video.status import Decoder, Status

Depth = Literal["quick", "full"]
Choice = Literal["auto", "decord", "pyav"]
VERSION = 2
"""Raised when a probe may find something else than before in the same file."""


@dataclass(frozen=True)
class ProbeOptions:
    """How closely files are looked at."""

    depth: Depth = "quick"
    """quick: the first, middle and last frame and some around key frames; full: every frame."""
    decoder: Choice = "auto"
    """auto: decord where it is exact, PyAV elsewhere; decord: files for which it is not exact are refused."""
    hash: bool = False
    """Store the SHA-256 of every video."""
    frame_rate: float | None = None
    """Frames per second of frame folders."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One file's share of the manifest; numbers are 0 where it is unusable."""

    frames: int = 0
    fps: float = 0.0
    variable_fps: bool = False
    duration: float = 0.0
    width: int = 0
    height: int = 0
    codec: str | None = None
    bytes: int = 0
    hash: str | None = None
    decoder: Decoder = "pyav"
    status: Status = "ok"
    reason: str | None = None
    stamp: str | None = None
    """Of the file's last change and of how it was probed."""


Known = Callable[[str], Probe | None]
"""Location -> what an earlier probe found."""
Note = Callable[[str, Probe], None]
"""Told of each location and what is found there, as soon as it is."""
ProbeFiles = Callable[[Sequence[str], ProbeOptions, Known, Note], list[Probe]]
"""Locations -> probes, in this order."""


class Work(Sequence["Item"]):
    """What there is to probe, item by item."""

    def __init__(self, locations: Sequence[str], options: ProbeOptions, known: Known) -> None:
        self.locations, self.options, self.known = locations, options, known

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, place: Any) -> Any:
        location = self.locations[place]
        return location, self.options, self.known(location)


Item = tuple[str, ProbeOptions, Probe | None]
"""Location, options, and what an earlier probe found."""


def probe_files(
    locations: Sequence[str],
    options: ProbeOptions | None = None,
    known: Known = lambda location: None,
    note: Note = lambda location, probe: None,
    processes: int | None = None,
    timeout_seconds: float = 120.0,
) -> list[Probe]:
    """Probe files in worker processes; a file that crashes or hangs its process is undecodable, the rest goes on.

    ``known``: what an earlier probe found; files whose stamp is the same are not opened again, and no process is started
    for them.
    """
    options = options or ProbeOptions()
    probes = unchanged(locations, options, known)
    for place, result in probes.items():
        note(locations[place], result)
    left = [place for place in range(len(locations)) if place not in probes]
    if probes:
        print(f"{len(probes)} of {len(locations)} files are as they were when they were probed", file=sys.stderr, flush=True)
    if left or not probes:
        work = Work([locations[place] for place in left], options, known)
        for number, result in progress(probe_isolated(work, processes, timeout_seconds), len(work), "probed"):
            probes[left[number]] = result
            note(work.locations[number], result)
    return [probes[place] for place in range(len(locations))]


def unchanged(locations: Sequence[str], options: ProbeOptions, known: Known) -> dict[int, Probe]:
    """Earlier probes of files of this machine that did not change since, by place. To ask an object store takes long: that is
    left to many processes."""
    found = {}
    for place, location in enumerate(locations):
        if not storage.is_remote(location):
            before = known(location)
            if before is not None and _still_true(location, options, before):
                found[place] = before
    return found


def probe_isolated(
    items: Sequence[Item], processes: int | None = None, timeout_seconds: float = 120.0
) -> Iterator[tuple[int, Probe]]:
    """(index, probe) in order of completion. The one function of local probing and of Ray's tasks."""
    for place, result in map_isolated(probe_again, items, processes, timeout_seconds):
        yield place, _lost(items[place][0], result) if isinstance(result, Lost) else result


def probe_again(item: Item) -> Probe:
    """The earlier probe if the file is unchanged and was looked at in the same way, else a new one."""
    location, options, before = item
    if before is not None and _still_true(location, options, before):
        return before
    return probe_file(location, options)


def _still_true(location: str, options: ProbeOptions, before: Probe) -> bool:
    if before.stamp is None:
        return False
    try:
        now = checksum.facts(location)
    except OSError:
        return False
    return (now.bytes, stamp(now, options)) == (before.bytes, before.stamp)


def stamp(facts: storage.Facts, options: ProbeOptions) -> str:
    """Of the file's last change and of how it was probed."""
    return " ".join([facts.changed, *(str(part) for part in (VERSION, *dataclasses.astuple(options)))])


def _lost(location: str, result: Lost) -> Probe:
    """A crash, a hang or a leak: the reason says which. Without a stamp, so that the next probe tries again."""
    try:
        size = checksum.facts(location).bytes
    except OSError:
        size = 0
    return Probe(bytes=size, status="undecodable", reason=result.reason)


def probe_file(location: str, options: ProbeOptions | None = None) -> Probe:
    """Probe one file. Never raises for what is in the file: ``status`` and ``reason`` say it."""
    options = options or ProbeOptions()
    found = Probe()
    try:
        facts = _facts(location)
        found = Probe(bytes=facts.bytes, stamp=stamp(facts, options))
        if facts.bytes == 0:
            raise UnusableError("empty", "0 bytes")
        with_hash = replace(found, hash=checksum.sha256(location) if options.hash else None)
        if image_sequence.is_pattern(location):
            return _probe_images(location, with_hash, options)
        return _probe_video(storage.for_decoder(location), with_hash, options)
    except UnusableError as error:
        return replace(found, status=error.status, reason=str(error))
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        return replace(found, status="undecodable", reason=f"{type(error).__name__}: {first_line(error)}", stamp=None)


def _facts(location: str) -> storage.Facts:
    try:
        return checksum.facts(location)
    except FileNotFoundError as error:
        raise UnusableError("missing", str(error) if storage.is_remote(location) else "no such file") from None
    except IsADirectoryError:
        raise UnusableError("not_a_video", "not a file") from None


def _probe_video(source: Input, found: Probe, options: ProbeOptions) -> Probe:
    index, size, codec, name = _read(source, options.depth)
    count = len(index.times)
    if count < 2:
        raise UnusableError("too_short", f"{count} frame{'s' * (count != 1)}, at least 2 are needed to see a motion")
    if index.times[-1] <= 0:
        raise UnusableError("undecodable", "all frames have the same time")
    candidate = options.decoder != "pyav" and index.simple and name in {*INDEXED, "avi"} and not storage.is_large(source)
    wanted = places_to_compare(index) if candidate or not index.counted else [0]
    frames = dict(zip(wanted, decode_frames(source, index, wanted), strict=True))
    height, width = _one_size(frames.values(), size)
    agrees = candidate and decord_agrees(source, index, frames, options.depth == "full")
    if options.decoder == "decord" and not agrees:
        raise UnusableError("undecodable", f"decord is not exact for it ({decord_disagrees(source, index, name)}); pyav is")
    fps = float((count - 1) / index.times[-1])
    variable = bool(np.abs(index.times * fps - np.arange(count)).max() > 0.5)
    decoder: Decoder = "decord" if agrees else "pyav"
    return replace(
        found, frames=count, fps=fps, variable_fps=variable, duration=count / fps, width=width, height=height, codec=codec,
        decoder=decoder,
    )  # fmt: skip


def _read(source: Input, depth: Depth) -> tuple[FrameIndex, set[tuple[int, int]], str, str]:
    """Index, sizes of frames where they were decoded, codec and format."""
    with open_container(source) as container:
        stream = video_stream(container)
        codec, name = codec_name(stream), format_name(container)
        index = index_packets(container, stream)
    if index is not None and depth == "quick":
        return index, set(), codec, name
    with open_container(source) as container:
        counted, sizes, seen = count_frames(container, video_stream(container))
    if index is None:
        return counted, sizes, codec, name
    if seen != index.pts:
        lost = next((place for place, pair in enumerate(zip(seen, index.pts, strict=False)) if pair[0] != pair[1]), len(seen))
        raise UnusableError("undecodable", f"frame {lost} of {len(index.pts)} does not decode")
    return index, sizes, codec, name


def _one_size(frames: Iterable[UInt8s], sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the upright frames. Raises UnusableError if the size changes."""
    shapes = {frame.shape[:2] for frame in frames}
    names = sizes if len(sizes) > 1 else {(width, height) for height, width in shapes}
    if len(names) > 1:
        text = " and ".join(f"{width}x{height}" for width, height in sorted(names))
        raise UnusableError("undecodable", f"the frame size changes within the file: {text}")
    return next(iter(shapes))


def _probe_images(pattern: str, found: Probe, options: ProbeOptions) -> Probe:
    """Count and size of numbered images, some or all of which are decoded."""
    if options.frame_rate is None:
        raise UnusableError("undecodable", "images do not say their frame rate: give --fps")
    names = image_sequence.images(pattern)
    if len(names) < 2:
        raise UnusableError("too_short", "1 frame, at least 2 are needed to see a motion")
    places = range(len(names)) if options.depth == "full" else sorted({0, len(names) // 2, len(names) - 1})
    height, width = _one_size((image_sequence.read_image(names[place]) for place in places), set())
    codec = names[0].rpartition(".")[2].lower().replace("jpg", "jpeg")
    return replace(
        found, frames=len(names), fps=options.frame_rate, duration=len(names) / options.frame_rate, width=width, height=height,
        codec=codec, decoder="frames",
    )  # fmt: skip
