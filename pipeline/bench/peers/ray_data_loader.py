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

from pipeline.bench.peers.requests import Columns, VideoRequest, requests_of_row, row_numbers
from pipeline.bench.peers.svformer_loader import read_decord
from pipeline.bench.peers.tensor_views import view_of_frames
from pipeline.clips.decode import compute_crop_corner, compute_scaled_size
from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.stream.ray_tasks import get_shared

Row = dict[str, Any]


def shuffled_batches(source: VideoSource, config: Config, rows: range) -> Iterator[Columns]:
    """One epoch of these rows, shuffled, in batches of a step."""
    reference = ray.put([(source, config)])  # once, not once a task

    def decode(item: Row) -> Row:
        here, of = get_shared(reference)
        return decode_row(here, of, int(item["row"]))

    def augment(row: Row) -> Row:
        here, of = get_shared(reference)
        return views_of_row(here, of, row)

    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_items([{"row": row} for row in rows]).map(decode).random_shuffle(seed=rows.start).map(augment)
    yield from data.iter_torch_batches(batch_size=config.data.labeled_per_step, drop_last=True)


def decode_row(source: VideoSource, config: Config, row: int) -> Row:
    """``row``, and each student's clips of all slots, uint8 [S, T, size, size, 3]."""
    torch.set_num_threads(1)
    clips: dict[str, list[Any]] = {}
    for asked in requests_of_row(source, config, row):
        for student, clip in _decode(asked).items():
            clips.setdefault(student, []).append(clip)
    return {"row": row, **{student: np.stack(parts) for student, parts in clips.items()}}


def _decode(asked: VideoRequest) -> dict[str, Any]:
    times = {request.name.partition("/")[0]: request.times for request in asked.requests}
    wanted = np.unique(np.concatenate(list(times.values())))
    width, height = compute_scaled_size(asked.video.width, asked.video.height, asked.decode_size)
    frames_TCHW = torch.from_numpy(read_decord(asked.video, wanted)).permute(0, 3, 1, 2)
    frames_TCHW = functional.resize(frames_TCHW, [height, width], antialias=False)
    left, top = compute_crop_corner(asked.window, width, height, asked.decode_size)
    square = functional.crop(frames_TCHW, top, left, asked.decode_size, asked.decode_size).permute(0, 2, 3, 1).numpy()
    return {student: square[np.searchsorted(wanted, at)] for student, at in times.items()}


def views_of_row(source: VideoSource, config: Config, row: Row) -> Row:
    """The row's numbers and views, as ``RowViews`` has them."""
    torch.set_num_threads(1)
    made: dict[str, list[torch.Tensor]] = {}
    for slot, asked in enumerate(requests_of_row(source, config, int(row["row"]))):
        for request in asked.requests:
            frames_THWC = torch.from_numpy(np.array(row[request.name.partition("/")[0]][slot]))
            made.setdefault(request.name, []).append(view_of_frames(frames_THWC.permute(0, 3, 1, 2), asked, request))
    numbers = row_numbers(source, int(row["row"]))
    return {
        **{name: value.numpy() for name, value in numbers.items()},
        **{name: torch.stack(views).numpy() for name, views in made.items()},
    }
