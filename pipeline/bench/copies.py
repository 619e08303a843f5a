"""Measures what training copies (``jobs.prepare --resize``) save, by the CPU time to decode originals and their copies."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bench.decode import VIDEOS_PER_REPEAT, PlannedVideo, plan_videos
from pipeline.bench.figures import compute_ratio
from pipeline.clips.decode import Video, decode_clips
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import VideoSource, open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.prepare.resized_copies import CopyTask, make_copy
from pipeline.progress import show_progress
from pipeline.video.probe import probe_file
from pipeline.video.video_file import get_file_info

GPU_VIDEOS_PER_SECOND = 120
"""The speed that one GPU of 80 GB is expected to reach in the paper's setting."""
MIN_SIDE = 16
"""The smallest short side of a copy in pixels, the lower bound of ``data.decode_size``."""


@dataclass(frozen=True)
class FileSet:
    """The files of the measured videos: the originals, or copies of one size."""

    videos: Sequence[PlannedVideo]
    decode_size: int
    copying_seconds: float = 0.0
    """CPU seconds to make one copy, on average; 0 for originals."""


def bench_copies(config: Config, sides: Sequence[int], repeats: int, max_videos: int = VIDEOS_PER_REPEAT) -> dict[str, Any]:
    """Measures CPU milliseconds to decode the clips of planned unlabeled videos from originals and from copies, in turns.

    Originals are decoded at ``data.decode_size``, copies at their own size where that is smaller, as training from them would.
    CPU time of this process is measured instead of wall time, because other programs on the machine affect it little.

    Args:
        config: The data and clips.
        sides: Short sides of the copies in pixels.
        repeats: How often each set of files is measured.
        max_videos: The number of videos in one repeat at most.

    Raises:
        UserError: a side is too short, there is no unlabeled video, or a video cannot be copied.
    """
    if wrong := [side for side in sides if side < MIN_SIDE]:
        raise UserError(f"--sides {wrong[0]}: at least {MIN_SIDE} pixels")
    source, _ = open_source(config)
    planned = plan_videos(source, "bench copies", max_videos=max_videos)
    with tempfile.TemporaryDirectory(prefix="copies-") as folder:
        file_sets = {"originals": FileSet(planned, source.size)}
        for side in sides:
            file_sets[f"copies of {side}"] = _make_copies(planned, side, min(side, source.size), Path(folder) / str(side))
        times: dict[str, list[float]] = {name: [] for name in file_sets}
        for repeat in show_progress(range(repeats + 1), repeats + 1, "repeats"):  # the first warms up
            for name, files in file_sets.items():
                seconds = _measure_decoding(files, source)
                if repeat:
                    times[name].append(1000 * seconds / len(files.videos))
        ratios = {
            f"copies_{side}": compute_ratio(f"copies_{side}_ratio", times["originals"], times[f"copies of {side}"])
            for side in sides
        }
        return {
            **ratios,
            **{name: _describe(files, times[name]) for name, files in file_sets.items()},
            "videos": len(planned),
            "clips": " and ".join(map(describe_clip, source.clips)),
        }


def _make_copies(planned: Sequence[PlannedVideo], side: int, decode_size: int, folder: Path) -> FileSet:
    """Makes copies with this short side in pixels, to be decoded at the same moments. Raises UserError if that fails."""
    copies: dict[Video, Video] = {}
    begun = time.process_time()
    for number, video in enumerate(dict.fromkeys(one.video for one in planned)):
        copy = CopyTask(video.location, str(folder / f"{number}.mp4"), side, video.fps, video.variable_fps)
        if reason := make_copy(copy):
            raise UserError(f"{video.location} cannot be copied: {reason}")
        copies[video] = replace(video, location=copy.target)
    seconds = (time.process_time() - begun) / len(copies)
    for video, copied in copies.items():
        probe = probe_file(copied.location)
        copies[video] = replace(
            copied, frames=probe.frames, fps=probe.fps, variable_fps=probe.variable_fps, width=probe.width,
            height=probe.height, decoder=probe.decoder,
        )  # fmt: skip
    return FileSet([replace(one, video=copies[one.video]) for one in planned], decode_size, seconds)


def _measure_decoding(files: FileSet, source: VideoSource) -> float:
    """Decodes all clips and returns the CPU seconds."""
    begun = time.process_time()
    for one in files.videos:
        decode_clips(one.video, one.moment, one.crop_position, source.clips, files.decode_size)
    return time.process_time() - begun


def _describe(files: FileSet, times: Sequence[float]) -> dict[str, Any]:
    videos = {one.video.location: one.video for one in files.videos}
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
        "decode_size": files.decode_size,
        "decoders": dict(Counter(video.decoder for video in videos.values())),
        **({"copying_cpu_seconds_per_video": round(files.copying_seconds, 2)} if files.copying_seconds else {}),
    }
