"""What decoding a video once for all views saves, and what each way to make decoding cheaper gives. One process, no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.bench.figures import ratio
from pipeline.clips.decode import Video, compute_scaled_size, decode_clips
from pipeline.clips.isolated_decode import IsolatedDecoder
from pipeline.clips.sampling import Moment, compute_clip_times, compute_frame_starts, describe_clip, find_frames, select_moment
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import ClipSection, Config
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.processes.isolation import ProcessLimits
from pipeline.progress import progress
from pipeline.video.container import VideoIndex, find_video_stream, index_by_packets, open_container
from pipeline.video.decord_check import decord
from pipeline.video.exact_reader import FrameConverter, read_frames

VIDEOS = 24
"""In one repeat."""
Clips = tuple[ClipSection, ClipSection]


@dataclass(frozen=True)
class Job:
    """One unlabeled video of the plan."""

    video: Video
    moment: Moment
    window: float


def bench_decode(config: Config, repeats: int, videos: int = VIDEOS) -> dict[str, Any]:
    """Wall time for the same videos, moments and windows, in turns; ratios are over repeats, with milliseconds per video.

    ``decode_once_ratio``: an open for each view of an unlabeled video (weak and strong of each student) over one for all.
    """
    source, _ = open_source(config)
    jobs = planned_jobs(source, "bench decode", "decord", videos)
    guard = IsolatedDecoder(ProcessLimits())
    work = _work(source.clips, source.size, guard)
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in progress(range(repeats + 1), repeats + 1, "repeats"):  # the first warms up
        for name, do in work.items():
            begun = time.perf_counter()
            for job in jobs:
                do(job)
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
        **ratio("decode_once_ratio", times["an open per view"], times["once"]),
        "measures": {what: ratio(name, times[one], times[two]) for what, (name, one, two) in compared.items()},
        "milliseconds_per_video": {
            name: round(1000 * float(np.median(values)) / len(jobs), 2) for name, values in times.items()
        },
        "videos": len(jobs),
        "decode_size": source.size,
        "clips": " and ".join(map(describe_clip, source.clips)),
    }


def planned_jobs(source: VideoSource, name: str, decoder: str | None = None, videos: int = VIDEOS) -> list[Job]:
    """Unlabeled videos of the first rows of the plan, for the benchmark of this name; only those that ``decoder`` decodes
    (to what decord decodes all ways of decoding are open). Raises UserError if there are none."""
    pool = source.plan
    if pool.unlabeled_per_labeled == 0:
        raise UserError(f"{name} measures unlabeled videos: leave method.name=supervised and mu = 0 away")
    jobs: list[Job] = []
    for row in range(VIDEOS):
        (moments,), windows = source.moments(np.array([row]))
        for slot in range(1, pool.slots):
            video = source.describe_video(int(pool.videos([row])[0, slot]))
            if decoder in (None, video.decoder) and len(jobs) < videos:
                jobs.append(Job(video, moments[slot], float(windows[0, slot])))
    if not jobs:
        which = f" that {decoder} decodes" if decoder else ""
        raise UserError(f"{source.manifest.path} has no unlabeled training video{which}")
    return jobs


def _work(clips: Clips, size: int, guard: IsolatedDecoder) -> dict[str, Callable[[Job], Any]]:
    out = [np.zeros((clip.frames, size, size, 3), np.uint8) for clip in clips]
    indices: dict[Video, VideoIndex] = {}

    def once(job: Job, side: int = size) -> Any:
        return decode_clips(job.video, job.moment, job.window, clips, side)

    def students(job: Job, opens: int) -> None:
        for student, clip in enumerate(clips):
            for _ in range(opens):
                decode_clips(job.video, select_moment(job.moment, student), job.window, [clip], size)

    def native(job: Job) -> None:
        once(job, side=min(job.video.width, job.video.height))

    def exact(job: Job, seek: bool, kept: bool) -> None:
        if not kept or job.video not in indices:
            indices[job.video] = _index(job.video)
        _read_exact(job, clips, size, indices[job.video], seek)

    return {
        "once": once,
        "an open per view": partial(students, opens=2),  # weak and strong
        "an open per student": partial(students, opens=1),
        "once, isolated": lambda job: guard.decode_clips(job.video, job.moment, job.window, clips, size, out),
        "once, native size": native,
        "once, frame by frame": partial(_frame_by_frame, clips=clips, size=size),
        "open alone": lambda job: decord.VideoReader(storage.open_for_decoder(job.video.location), num_threads=1),
        "exact, seeking": partial(exact, seek=True, kept=False),
        "exact, seeking, index kept": partial(exact, seek=True, kept=True),
        "exact, from the first frame": partial(exact, seek=False, kept=False),
    }


def _wanted(job: Job, clips: Sequence[ClipSection], moment: Moment) -> list[int]:
    starts = compute_frame_starts(job.video.frames, job.video.fps)
    times = compute_clip_times(moment, job.video.start, job.video.end, clips)
    return [int(place) for place in np.unique(np.concatenate([find_frames(t, starts) for t in times]))]


def _frame_by_frame(job: Job, clips: Clips, size: int) -> None:
    """Each clip's frames in its order, each asked for by itself."""
    width, height = compute_scaled_size(job.video.width, job.video.height, size)
    reader = decord.VideoReader(storage.open_for_decoder(job.video.location), width=width, height=height, num_threads=1)
    for student, clip in enumerate(clips):
        for place in _wanted(job, [clip], select_moment(job.moment, student)):
            reader[place].asnumpy()


def _index(video: Video) -> VideoIndex:
    with open_container(storage.open_for_decoder(video.location)) as container:
        index = index_by_packets(container, find_video_stream(container))
    return index or VideoIndex(compute_frame_starts(video.frames, video.fps), ())


def _read_exact(job: Job, clips: Clips, size: int, index: VideoIndex, seek: bool) -> None:
    """Read by ``read_frames``; without ``seek`` with the first packet as the only random access point."""
    width, height = compute_scaled_size(job.video.width, job.video.height, size)
    if not seek and index.pts:
        index = replace(index, random_access_points=index.random_access_points[:1])
    location = storage.open_for_decoder(job.video.location)
    read_frames(location, index, _wanted(job, clips, job.moment), FrameConverter(width, height))
