"""What training copies (``jobs.prepare --resize``) save: CPU time to decode originals and copies of the same videos."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bench.decode import VIDEOS, Job, planned_jobs
from pipeline.bench.figures import ratio
from pipeline.clips.decode import Video, decode_clips
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.prepare.resized_copies import CopyTask, make_copy
from pipeline.progress import progress
from pipeline.video.probe import probe_file
from pipeline.video.video_file import get_file_info

GPU_VIDEOS_PER_SECOND = 120
"""What one GPU of 80 GB is expected to train in the paper's setting."""
LEAST_SIDE = 16
"""Of ``data.decode_size``."""


@dataclass(frozen=True)
class Kind:
    """Originals, or copies of one size."""

    jobs: Sequence[Job]
    decode_size: int
    copying_seconds: float = 0.0
    """CPU seconds in which a copy was made."""


def bench_copies(config: Config, sides: Sequence[int], repeats: int, videos: int = VIDEOS) -> dict[str, Any]:
    """CPU milliseconds of this process for the clips of unlabeled videos of the plan, from originals and from copies, in turns.

    Originals are decoded at ``data.decode_size``, copies at their own size where that is smaller, as training from them
    would. CPU time, and not time by the clock: other programs on the machine matter little. Raises UserError.
    """
    if wrong := [side for side in sides if side < LEAST_SIDE]:
        raise UserError(f"--sides {wrong[0]}: at least {LEAST_SIDE} pixels")
    source, _ = open_source(config)
    jobs = planned_jobs(source, "bench copies", videos=videos)
    with tempfile.TemporaryDirectory(prefix="copies-") as folder:
        kinds = {"originals": Kind(jobs, source.size)}
        for side in sides:
            kinds[f"copies of {side}"] = _copied(jobs, side, min(side, source.size), Path(folder) / str(side))
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for repeat in progress(range(repeats + 1), repeats + 1, "repeats"):  # the first warms up
            for name, kind in kinds.items():
                seconds = _decode(kind, source)
                if repeat:
                    times[name].append(1000 * seconds / len(kind.jobs))
        ratios = {
            f"copies_{side}": ratio(f"copies_{side}_ratio", times["originals"], times[f"copies of {side}"]) for side in sides
        }
        return {
            **ratios,
            **{name: _figures(kind, times[name]) for name, kind in kinds.items()},
            "videos": len(jobs),
            "clips": " and ".join(map(describe_clip, source.clips)),
        }


def _copied(jobs: Sequence[Job], side: int, decode_size: int, folder: Path) -> Kind:
    """The same moments of copies of this short side. Raises UserError if one cannot be made."""
    copies: dict[Video, Video] = {}
    begun = time.process_time()
    for number, video in enumerate(dict.fromkeys(job.video for job in jobs)):
        copy = CopyTask(video.location, str(folder / f"{number}.mp4"), side, video.fps, video.variable_fps)
        if reason := make_copy(copy):
            raise UserError(f"{video.location} cannot be copied: {reason}")
        copies[video] = replace(video, location=copy.target)
    seconds = (time.process_time() - begun) / len(copies)
    for video, copied in copies.items():
        found = probe_file(copied.location)
        copies[video] = replace(
            copied, frames=found.frames, fps=found.fps, variable_fps=found.variable_fps, width=found.width,
            height=found.height, decoder=found.decoder,
        )  # fmt: skip
    return Kind([replace(job, video=copies[job.video]) for job in jobs], decode_size, seconds)


def _decode(kind: Kind, source: VideoSource) -> float:
    begun = time.process_time()
    for job in kind.jobs:
        decode_clips(job.video, job.moment, job.window, source.clips, kind.decode_size)
    return time.process_time() - begun


def _figures(kind: Kind, times: Sequence[float]) -> dict[str, Any]:
    videos = {job.video.location: job.video for job in kind.jobs}
    sizes = Counter(f"{video.width}x{video.height}" for video in videos.values())
    middle = statistics.median(times)
    return {
        "cpu_milliseconds_per_video": round(middle, 2),
        "spread": [round(min(times), 2), round(max(times), 2)],
        "n": len(times),
        "videos_per_core_second": round(1000 / middle, 1),
        f"cores_for_{GPU_VIDEOS_PER_SECOND}_videos_per_second": round(GPU_VIDEOS_PER_SECOND * middle / 1000, 1),
        "kilobytes_per_video": round(sum(get_file_info(location).bytes for location in videos) / len(videos) / 1000),
        "frames": ", ".join(f"{size} ({number})" for size, number in sizes.most_common(3)),
        "decode_size": kind.decode_size,
        "decoders": dict(Counter(video.decoder for video in videos.values())),
        **({"copying_cpu_seconds_per_video": round(kind.copying_seconds, 2)} if kind.copying_seconds else {}),
    }
