"""(c) Ray Data as its tutorials use it: ``from_items``, a decoding ``map``, ``random_shuffle``, ``iter_torch_batches``.

A row is decoded by one open a video, and views are made by a second ``map`` after the shuffle, so that uint8 clips are what the
shuffle keeps. It keeps those of a whole epoch: nothing comes before the last one is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from torchvision.transforms.v2 import functional

from pipeline.bench.peers.requests import TensorColumns, VideoRequest, list_row_requests, read_row_numbers
from pipeline.bench.peers.svformer_loader import read_decord_frames
from pipeline.bench.peers.tensor_views import make_view_of_frames
from pipeline.clips.decode import compute_crop_corner, compute_scaled_size
from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.stream.object_store import get_shared

Row = dict[str, Any]


def load_shuffled_batches(source: VideoSource, config: Config, rows: range) -> Iterator[TensorColumns]:
    """Yields one epoch of these rows of the plan, shuffled, in batches of a step."""
    reference = ray.put([(source, config)])  # once, not once a task

    def decode(item: Row) -> Row:
        shared_source, shared_config = get_shared(reference)
        return decode_row(shared_source, shared_config, int(item["row"]))

    def augment(row: Row) -> Row:
        shared_source, shared_config = get_shared(reference)
        return make_views_of_row(shared_source, shared_config, row)

    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items([{"row": row} for row in rows]).map(decode).random_shuffle(seed=rows.start).map(augment)
    yield from data.iter_torch_batches(batch_size=config.data.labeled_per_step, drop_last=True)


def decode_row(source: VideoSource, config: Config, row: int) -> Row:
    """Decodes a row of the plan: ``row``, and each student's clips of all slots, uint8 [S, T, size, size, 3]."""
    torch.set_num_threads(1)
    clips: dict[str, list[Any]] = {}
    for video_request in list_row_requests(source, config, row):
        for student, clip in _decode_video(video_request).items():
            clips.setdefault(student, []).append(clip)
    return {"row": row, **{student: np.stack(parts) for student, parts in clips.items()}}


def _decode_video(video_request: VideoRequest) -> dict[str, Any]:
    times = {request.name.partition("/")[0]: request.times for request in video_request.requests}
    all_times = np.unique(np.concatenate(list(times.values())))
    width, height = compute_scaled_size(video_request.video.width, video_request.video.height, video_request.decode_size)
    frames_TCHW = torch.from_numpy(read_decord_frames(video_request.video, all_times)).permute(0, 3, 1, 2)
    frames_TCHW = functional.resize(frames_TCHW, [height, width], antialias=False)
    left, top = compute_crop_corner(video_request.crop_position, width, height, video_request.decode_size)
    side = video_request.decode_size
    square = functional.crop(frames_TCHW, top, left, side, side).permute(0, 2, 3, 1).numpy()
    return {student: square[np.searchsorted(all_times, at)] for student, at in times.items()}


def make_views_of_row(source: VideoSource, config: Config, row: Row) -> Row:
    """Makes the views of a decoded row, and returns them with the row's numbers, as ``RowViews`` does."""
    torch.set_num_threads(1)
    made: dict[str, list[torch.Tensor]] = {}
    for slot, video_request in enumerate(list_row_requests(source, config, int(row["row"]))):
        for request in video_request.requests:
            frames_TCHW = torch.from_numpy(np.array(row[request.name.partition("/")[0]][slot])).permute(0, 3, 1, 2)
            made.setdefault(request.name, []).append(make_view_of_frames(frames_TCHW, video_request, request))
    numbers = read_row_numbers(source, int(row["row"]))
    return {
        **{name: value.numpy() for name, value in numbers.items()},
        **{name: torch.stack(views).numpy() for name, views in made.items()},
    }
