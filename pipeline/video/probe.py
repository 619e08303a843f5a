"""Probing: what a video file holds, whether it can be decoded, and which decoder returns its frames exactly.

decord is fast, but for TS, MPEG-PS, WMV, edit lists, open GOPs and many AVIs it returns wrong frames without an error. So it
is chosen for a file only if the file's packets are simple and decord's frame count, times and sampled pixels are PyAV's.
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
from pipeline.processes.isolation import ProcessFailure, map_in_processes
from pipeline.progress import show_progress
from pipeline.video import image_sequence, video_file
from pipeline.video.container import (
    UnusableVideoError,
    VideoIndex,
    VideoInput,
    find_video_stream,
    get_codec_name,
    get_format_name,
    index_by_decoding,
    index_by_packets,
    open_container,
    summarize_error,
)
from pipeline.video.decord_check import (
    DECORD_FORMATS,
    choose_frames_to_compare,
    explain_decord_mismatch,
    is_decord_exact,
)
from pipeline.video.exact_reader import UInt8s, read_rgb_frames
from pipeline.video.status import Decoder, Status

ProbeDepth = Literal["quick", "full"]
DecoderChoice = Literal["auto", "decord", "pyav"]
PROBE_VERSION = 2
"""To be raised when a probe may find something else than before in the same file: files are then probed again."""


@dataclass(frozen=True)
class ProbeOptions:
    """How thoroughly files are probed, and which decoders are allowed."""

    depth: ProbeDepth = "quick"
    """quick: decode the first, middle and last frame and some around key frames; full: decode every frame."""
    decoder: DecoderChoice = "auto"
    """auto: decord where it is exact, else PyAV; decord: files for which it is not exact are refused; pyav: always PyAV."""
    hash: bool = False
    """Whether the SHA-256 of every video is stored."""
    frame_rate: float | None = None
    """Frames per second of videos that are folders of images."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What probing one file found. Each field is a column of the manifest; numbers are 0 where the file cannot be used."""

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
    """Time of the file's last change and how it was probed (``make_stamp``); None: probe it again next time."""


FindEarlierProbe = Callable[[str], Probe | None]
"""Returns the earlier probe of a location, if there is one."""
RecordProbe = Callable[[str, Probe], None]
"""Is called with each location and its probe as soon as it is probed."""
ProbeFiles = Callable[[Sequence[str], ProbeOptions, FindEarlierProbe, RecordProbe], list[Probe]]
"""Probes locations and returns the probes in the same order, as ``probe_files`` does."""


class ProbeItems(Sequence["ProbeItem"]):
    """The files to be probed, as a sequence that makes each ``ProbeItem`` only when it is asked for."""

    def __init__(self, locations: Sequence[str], options: ProbeOptions, find_earlier: FindEarlierProbe) -> None:
        self.locations, self.options, self.find_earlier = locations, options, find_earlier

    def __len__(self) -> int:
        return len(self.locations)

    def __getitem__(self, index: Any) -> Any:
        location = self.locations[index]
        return location, self.options, self.find_earlier(location)


ProbeItem = tuple[str, ProbeOptions, Probe | None]
"""A location, how to probe it, and its earlier probe, if there is one."""


def probe_files(
    locations: Sequence[str],
    options: ProbeOptions | None = None,
    find_earlier: FindEarlierProbe = lambda location: None,
    record: RecordProbe = lambda location, probe: None,
    processes: int | None = None,
    timeout_seconds: float = 120.0,
) -> list[Probe]:
    """Probes files in worker processes. A file that crashes its process, or makes it hang, becomes undecodable.

    A file whose stamp is that of the earlier probe, which ``find_earlier`` returns, is not opened again; if that holds for all
    files, no process is started.
    """
    options = options or ProbeOptions()
    probes = find_unchanged(locations, options, find_earlier)
    for index, probe in probes.items():
        record(locations[index], probe)
    remaining = [index for index in range(len(locations)) if index not in probes]
    if probes:
        print(f"{len(probes)} of {len(locations)} files have not changed since they were probed", file=sys.stderr, flush=True)
    if remaining or not probes:
        items = ProbeItems([locations[index] for index in remaining], options, find_earlier)
        for number, probe in show_progress(probe_in_processes(items, processes, timeout_seconds), len(items), "probed"):
            probes[remaining[number]] = probe
            record(items.locations[number], probe)
    return [probes[index] for index in range(len(locations))]


def find_unchanged(locations: Sequence[str], options: ProbeOptions, find_earlier: FindEarlierProbe) -> dict[int, Probe]:
    """Finds the files on this machine's disks that have not changed since their earlier probe; returns it by index.

    Files in object stores are left to the worker processes, because asking a store takes long.
    """
    unchanged = {}
    for index, location in enumerate(locations):
        if not storage.is_remote(location):
            earlier = find_earlier(location)
            if earlier is not None and _is_up_to_date(earlier, location, options):
                unchanged[index] = earlier
    return unchanged


def probe_in_processes(
    items: Sequence[ProbeItem], processes: int | None = None, timeout_seconds: float = 120.0
) -> Iterator[tuple[int, Probe]]:
    """Probes items in worker processes; yields (index, probe) as they are done. Ray's tasks call it, too."""
    for index, result in map_in_processes(reuse_or_probe, items, processes, timeout_seconds):
        yield index, _make_failed_probe(items[index][0], result) if isinstance(result, ProcessFailure) else result


def reuse_or_probe(item: ProbeItem) -> Probe:
    """Returns the earlier probe if the file has not changed and was probed with the same options, else probes the file."""
    location, options, earlier = item
    if earlier is not None and _is_up_to_date(earlier, location, options):
        return earlier
    return probe_file(location, options)


def _is_up_to_date(earlier: Probe, location: str, options: ProbeOptions) -> bool:
    if earlier.stamp is None:
        return False
    try:
        info = video_file.get_file_info(location)
    except OSError:
        return False
    return (info.bytes, make_stamp(info, options)) == (earlier.bytes, earlier.stamp)


def make_stamp(info: storage.FileInfo, options: ProbeOptions) -> str:
    """Combines the time of a file's last change and how it was probed in one text; a probe with another stamp is outdated."""
    return " ".join([info.changed, *(str(part) for part in (PROBE_VERSION, *dataclasses.astuple(options)))])


def _make_failed_probe(location: str, result: ProcessFailure) -> Probe:
    """The probe of a file whose process crashed, hung or took too much memory. It has no stamp: the next run tries again."""
    try:
        size = video_file.get_file_info(location).bytes
    except OSError:
        size = 0
    return Probe(bytes=size, status="undecodable", reason=result.reason)


def probe_file(location: str, options: ProbeOptions | None = None) -> Probe:
    """Probes one file in this process. It raises nothing for a bad file, whose probe has a ``status`` and a ``reason``."""
    options = options or ProbeOptions()
    probe = Probe()
    try:
        info = _get_file_info(location)
        probe = Probe(bytes=info.bytes, stamp=make_stamp(info, options))
        if info.bytes == 0:
            raise UnusableVideoError("empty", "0 bytes")
        with_hash = replace(probe, hash=video_file.hash_video(location) if options.hash else None)
        if image_sequence.is_pattern(location):
            return _probe_images(location, with_hash, options)
        return _probe_video(storage.open_for_decoder(location), with_hash, options)
    except UnusableVideoError as error:
        return replace(probe, status=error.status, reason=str(error))
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        return replace(probe, status="undecodable", reason=f"{type(error).__name__}: {summarize_error(error)}", stamp=None)


def _get_file_info(location: str) -> storage.FileInfo:
    try:
        return video_file.get_file_info(location)
    except FileNotFoundError as error:
        raise UnusableVideoError("missing", str(error) if storage.is_remote(location) else "no such file") from None
    except IsADirectoryError:
        raise UnusableVideoError("not_a_video", "not a file") from None


def _probe_video(source: VideoInput, probe: Probe, options: ProbeOptions) -> Probe:
    """Fill in what the video file holds."""
    index, decoded_sizes, codec, format_name = _index_video(source, options.depth)
    count = len(index.times)
    if count < 2:
        raise UnusableVideoError("too_short", f"{count} frame{'s' * (count != 1)}; motion needs at least 2")
    if index.times[-1] <= 0:
        raise UnusableVideoError("undecodable", "all frames have the same time")
    may_use_decord = (
        options.decoder != "pyav" and index.is_simple and format_name in DECORD_FORMATS
        and not storage.is_read_in_ranges(source)
    )  # fmt: skip
    frame_indices = choose_frames_to_compare(index) if may_use_decord or not index.is_counted else [0]
    frames = dict(zip(frame_indices, read_rgb_frames(source, index, frame_indices), strict=True))
    height, width = _require_one_size(frames.values(), decoded_sizes)
    use_decord = may_use_decord and is_decord_exact(source, index, frames, options.depth == "full")
    if options.decoder == "decord" and not use_decord:
        mismatch = explain_decord_mismatch(source, index, format_name)
        raise UnusableVideoError("undecodable", f"decord does not read it exactly ({mismatch}); PyAV does")
    fps = float((count - 1) / index.times[-1])
    variable = bool(np.abs(index.times * fps - np.arange(count)).max() > 0.5)
    decoder: Decoder = "decord" if use_decord else "pyav"
    return replace(
        probe, frames=count, fps=fps, variable_fps=variable, duration=count / fps, width=width, height=height, codec=codec,
        decoder=decoder,
    )  # fmt: skip


def _index_video(source: VideoInput, depth: ProbeDepth) -> tuple[VideoIndex, set[tuple[int, int]], str, str]:
    """The index, the frames' sizes (width, height) if all were decoded, the codec and the container format."""
    with open_container(source) as container:
        stream = find_video_stream(container)
        codec, format_name = get_codec_name(stream), get_format_name(container)
        index = index_by_packets(container, stream)
    if index is not None and depth == "quick":
        return index, set(), codec, format_name
    with open_container(source) as container:
        counted, sizes, pts = index_by_decoding(container, find_video_stream(container))
    if index is None:
        return counted, sizes, codec, format_name
    if pts != index.pts:
        pairs = enumerate(zip(pts, index.pts, strict=False))
        first_wrong = next((i for i, (decoded, expected) in pairs if decoded != expected), len(pts))
        raise UnusableVideoError("undecodable", f"frame {first_wrong} of {len(index.pts)} cannot be decoded")
    return index, sizes, codec, format_name


def _require_one_size(frames: Iterable[UInt8s], decoded_sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the upright frames. Raises UnusableVideoError if the size changes within the video."""
    shapes = {frame.shape[:2] for frame in frames}
    sizes = decoded_sizes if len(decoded_sizes) > 1 else {(width, height) for height, width in shapes}
    if len(sizes) > 1:
        text = " and ".join(f"{width}x{height}" for width, height in sorted(sizes))
        raise UnusableVideoError("undecodable", f"the frame size changes within the file: {text}")
    return next(iter(shapes))


def _probe_images(pattern: str, probe: Probe, options: ProbeOptions) -> Probe:
    """Fill in the number and the size of numbered images, some or all of which are decoded."""
    if options.frame_rate is None:
        raise UnusableVideoError("undecodable", "images have no frame rate of their own: give --fps")
    images = image_sequence.list_images(pattern)
    if len(images) < 2:
        raise UnusableVideoError("too_short", "1 frame; motion needs at least 2")
    frame_indices = range(len(images)) if options.depth == "full" else sorted({0, len(images) // 2, len(images) - 1})
    height, width = _require_one_size((image_sequence.read_image(images[i]) for i in frame_indices), set())
    codec = images[0].rpartition(".")[2].lower().replace("jpg", "jpeg")
    return replace(
        probe, frames=len(images), fps=options.frame_rate, duration=len(images) / options.frame_rate, width=width,
        height=height, codec=codec, decoder="frames",
    )  # fmt: skip
