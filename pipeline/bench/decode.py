"""Measures decoding without Ray: what decoding a video once for all views saves, what other savings give, and how fast plain
processes decode, which is the floor of ``bench stream``; they import this file, and so neither torch nor Ray."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.bench.figures import compute_ratio, compute_steady_rate
from pipeline.clips.decode import Video, compute_scaled_size, decode_clips
from pipeline.clips.isolated_decode import IsolatedDecoder
from pipeline.clips.plan import BlockLayout, compute_worker_rows
from pipeline.clips.sampling import Moment, compute_clip_times, compute_frame_starts, describe_clip, find_frames, select_moment
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import ClipSection, Config
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.processes.isolation import ProcessLimits
from pipeline.progress import show_progress
from pipeline.video.container import VideoIndex, find_video_stream, index_by_packets, open_container
from pipeline.video.decord_check import decord
from pipeline.video.exact_reader import FrameConverter, read_frames

VIDEOS_PER_REPEAT = 24
"""The number of videos in one repeat, unless fewer are asked for."""
PROCESSES = 2
"""The number of processes of the floor, and of consumers of the stream.

The stream decodes in as many tasks at once as the floor has processes; only on two CPUs, as in training, in two tasks for each.
"""
ClipSections = tuple[ClipSection, ClipSection]


@dataclass(frozen=True)
class PlannedVideo:
    """An unlabeled video of the plan, with the moment and the crop position (0..1) of its clips."""

    video: Video
    moment: Moment
    crop_position: float


def bench_decode(config: Config, repeats: int, max_videos: int = VIDEOS_PER_REPEAT) -> dict[str, Any]:
    """Measures the wall time of each way to decode the same clips, in turns, at most ``max_videos`` videos in a repeat.

    ``decode_once_ratio`` is the time of opening an unlabeled video for each of its views (weak and strong of each student)
    over that of opening it once for all of them. The result also has the ratio that belongs to each other saving, and
    milliseconds per video. Raises UserError if decord decodes none of the planned unlabeled videos.
    """
    source, _ = open_source(config)
    planned = plan_videos(source, "bench decode", "decord", max_videos)
    child = IsolatedDecoder(ProcessLimits())
    ways = _list_ways(source.clips, source.size, child)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in show_progress(range(repeats + 1), repeats + 1, "repeats"):  # the first warms up
        for name, decode in ways.items():
            begun = time.perf_counter()
            for one in planned:
                decode(one)
            if repeat:
                times[name].append(time.perf_counter() - begun)
    compared = {
        "one open per student over one open": ("decode_students_ratio", "an open per student", "once"),
        "isolated in a child process over in place": ("isolation_ratio", "once, isolated", "once"),
        "at native size over at data.decode_size": ("native_size_ratio", "once, native size", "once"),
        "frame by frame over one sorted pass": ("frame_by_frame_ratio", "once, frame by frame", "once"),
        "all before the clip over seeking": ("linear_ratio", "exact, from the first frame", "exact, seeking"),
        "with its index made over with a kept one": ("index_ratio", "exact, seeking", "exact, seeking, index kept"),
    }
    return {
        **compute_ratio("decode_once_ratio", times["an open per view"], times["once"]),
        "measures": {what: compute_ratio(name, times[slow], times[fast]) for what, (name, slow, fast) in compared.items()},
        "milliseconds_per_video": {
            name: round(1000 * float(np.median(values)) / len(planned), 2) for name, values in times.items()
        },
        "videos": len(planned),
        "decode_size": source.size,
        "clips": " and ".join(map(describe_clip, source.clips)),
    }


def plan_videos(
    source: VideoSource, command: str, decoder: str | None = None, max_videos: int = VIDEOS_PER_REPEAT
) -> list[PlannedVideo]:
    """Returns unlabeled videos of the first rows of the plan.

    Args:
        source: The plan and the files.
        command: The command that is named in errors.
        decoder: If given, only videos that the manifest assigns to this decoder. What decord decodes can be decoded in every
            other way, too.
        max_videos: The number of videos at most.

    Raises:
        UserError: there is no such video.
    """
    pool = source.plan
    if pool.unlabeled_per_labeled == 0:
        raise UserError(f"{command} measures unlabeled videos: leave method.name=supervised and mu = 0 away")
    planned: list[PlannedVideo] = []
    for row in range(VIDEOS_PER_REPEAT):
        (moments,), crop_positions = source.draw_moments(np.array([row]))
        for slot in range(1, pool.slots):
            video = source.describe_video(int(pool.choose_videos([row])[0, slot]))
            if decoder in (None, video.decoder) and len(planned) < max_videos:
                planned.append(PlannedVideo(video, moments[slot], float(crop_positions[0, slot])))
    if not planned:
        which = f" that {decoder} decodes" if decoder else ""
        raise UserError(f"{source.manifest.path} has no unlabeled training video{which}")
    return planned


def _list_ways(clips: ClipSections, size: int, child: IsolatedDecoder) -> dict[str, Callable[[PlannedVideo], Any]]:
    """Returns functions that decode one planned video, by the name of the way to decode."""
    out = [np.zeros((clip.frames, size, size, 3), np.uint8) for clip in clips]
    indices: dict[Video, VideoIndex] = {}

    def decode_once(planned: PlannedVideo, side: int = size) -> Any:
        return decode_clips(planned.video, planned.moment, planned.crop_position, clips, side)

    def open_for_each_student(planned: PlannedVideo, opens: int) -> None:
        for student, clip in enumerate(clips):
            for _ in range(opens):
                decode_clips(planned.video, select_moment(planned.moment, student), planned.crop_position, [clip], size)

    def decode_in_child(planned: PlannedVideo) -> None:
        child.decode_clips(planned.video, planned.moment, planned.crop_position, clips, size, out)

    def decode_at_native_size(planned: PlannedVideo) -> None:
        decode_once(planned, side=min(planned.video.width, planned.video.height))

    def decode_exactly(planned: PlannedVideo, seek: bool, keep_index: bool) -> None:
        if not keep_index or planned.video not in indices:
            indices[planned.video] = _build_index(planned.video)
        _read_exact(planned, clips, size, indices[planned.video], seek)

    return {
        "once": decode_once,
        "an open per view": partial(open_for_each_student, opens=2),  # weak and strong
        "an open per student": partial(open_for_each_student, opens=1),
        "once, isolated": decode_in_child,
        "once, native size": decode_at_native_size,
        "once, frame by frame": partial(_decode_frame_by_frame, clips=clips, size=size),
        "open alone": lambda planned: decord.VideoReader(storage.open_for_decoder(planned.video.location), num_threads=1),
        "exact, seeking": partial(decode_exactly, seek=True, keep_index=False),
        "exact, seeking, index kept": partial(decode_exactly, seek=True, keep_index=True),
        "exact, from the first frame": partial(decode_exactly, seek=False, keep_index=False),
    }


def _find_frame_indices(planned: PlannedVideo, clips: Sequence[ClipSection], moment: Moment) -> list[int]:
    starts = compute_frame_starts(planned.video.frames, planned.video.fps)
    times = compute_clip_times(moment, planned.video.start, planned.video.end, clips)
    return [int(index) for index in np.unique(np.concatenate([find_frames(t, starts) for t in times]))]


def _decode_frame_by_frame(planned: PlannedVideo, clips: ClipSections, size: int) -> None:
    """Decodes the frames of each clip one at a time, in the order of the clip."""
    width, height = compute_scaled_size(planned.video.width, planned.video.height, size)
    reader = decord.VideoReader(storage.open_for_decoder(planned.video.location), width=width, height=height, num_threads=1)
    for student, clip in enumerate(clips):
        for index in _find_frame_indices(planned, [clip], select_moment(planned.moment, student)):
            reader[index].asnumpy()


def _build_index(video: Video) -> VideoIndex:
    with open_container(storage.open_for_decoder(video.location)) as container:
        index = index_by_packets(container, find_video_stream(container))
    return index or VideoIndex(compute_frame_starts(video.frames, video.fps), ())


def _read_exact(planned: PlannedVideo, clips: ClipSections, size: int, index: VideoIndex, seek: bool) -> None:
    """Reads with ``read_frames``; without ``seek``, the first packet is the only random access point."""
    width, height = compute_scaled_size(planned.video.width, planned.video.height, size)
    if not seek and index.pts:
        index = replace(index, random_access_points=index.random_access_points[:1])
    location = storage.open_for_decoder(planned.video.location)
    read_frames(location, index, _find_frame_indices(planned, clips, planned.moment), FrameConverter(width, height))


def measure_floor_rate(source: VideoSource, layout: BlockLayout) -> float:
    """Measures videos per second in the steady state of plain processes that only decode the same rows, in the same way."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        arguments = [(source, layout.last_step, worker) for worker in range(PROCESSES)]
        times = pool.starmap(_decode_all, arguments, chunksize=1)
    return compute_steady_rate(times, layout.share * source.plan.slots, layout)


def _decode_all(source: VideoSource, steps: int, worker: int) -> list[float]:
    """Decodes the rows of one of the floor's processes and returns the time in seconds at which each step was decoded."""
    times = []
    for rows in compute_worker_rows(range(steps), source.plan.rows_per_step, worker, PROCESSES):
        source.decode_rows(rows)
        times.append(time.time())
    return times
