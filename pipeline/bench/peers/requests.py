"""Describes what every peer is asked for: the views of the plan's rows, as files, times in seconds, sizes and seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.clips.decode import Video
from pipeline.clips.sampling import compute_clip_times
from pipeline.clips.source import VideoSource
from pipeline.clips.views import derive_view_seeds
from pipeline.config import STUDENTS, ClipSection, Config, TimeSection, ViewsSection
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.methods import compute_loss_weights
from pipeline.seeds import Floats

TensorColumns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ViewRequest:
    """A request for one view for one student."""

    name: str
    """``student/kind``, where the kind is labeled, weak or strong."""
    times: Floats
    """[T] seconds after the video's first frame, ascending."""
    clip: ClipSection
    strong: bool
    """Whether the view is a strong one."""
    seed: int
    """The seed, of 64 bits, of everything random in the view."""


@dataclass(frozen=True)
class VideoRequest:
    """A request for all views of one video in one row of the plan."""

    video: Video
    requests: tuple[ViewRequest, ...]
    views: ViewsSection
    decode_size: int
    crop_position: float
    """Where this project cuts its square along the longer side, from 0 to 1."""


MakeViews = Callable[[VideoRequest], TensorColumns]
"""A function that makes normalized float32 views [C, T, size, size], by the names of their requests."""
MakeView = Callable[[VideoRequest, ViewRequest], torch.Tensor]


def build_view_maker(make: MakeView) -> MakeViews:
    """Returns a function that makes every view of a video separately with ``make``, which opens the file each time."""
    return partial(_make_each, make)


def _make_each(make: MakeView, video_request: VideoRequest) -> TensorColumns:
    return {request.name: make(video_request, request) for request in video_request.requests}


def list_row_requests(source: VideoSource, config: Config, row: int) -> list[VideoRequest]:
    """Lists a request for each slot: the videos and times that this project's own loader decodes for this row of the plan."""
    (videos,), ((moments,), (crop_positions,)) = source.plan.choose_videos([row]), source.draw_moments(np.array([row]))
    video_requests = []
    for slot, (number, moment, crop_position) in enumerate(zip(videos.tolist(), moments, crop_positions.tolist(), strict=True)):
        video = source.describe_video(number)
        times = compute_clip_times(moment, video.start, video.end, source.clips)
        requests = []
        for kind in ("labeled",) if slot == 0 else list_unlabeled_kinds(config):
            for student, clip, at in zip(STUDENTS, source.clips, times, strict=True):
                name = f"{student}/{kind}"
                (seed,) = derive_view_seeds(config.run.seed, [row], [slot], name)
                requests.append(ViewRequest(name, at, clip, kind == "strong", seed))
        video_requests.append(VideoRequest(video, tuple(requests), config.views, source.size, crop_position))
    return video_requests


def list_unlabeled_kinds(config: Config) -> tuple[str, ...]:
    """Lists the kinds of views that the method's first step makes of unlabeled videos."""
    weights = compute_loss_weights(config.method, 0)
    if not (config.unlabeled_per_labeled and weights.has_unlabeled):
        return ()
    return ("weak", "strong") if weights.has_strong else ("weak",)


def count_views_per_step(source: VideoSource, config: Config) -> int:
    """Counts the views of a step, those of both students together."""
    views_of_unlabeled = source.plan.unlabeled_per_labeled * len(list_unlabeled_kinds(config))
    return source.plan.rows_per_step * len(STUDENTS) * (1 + views_of_unlabeled)


class RowViews(Dataset[TensorColumns]):
    """A data set of the plan's rows: ``row`` [], ``videos`` and ``labels`` [S], and ``student/kind`` [n, C, T, size, size]."""

    def __init__(self, source: VideoSource, config: Config, rows: int, make: MakeViews) -> None:
        self.source, self.config, self.num_rows, self.make = source, config, rows, make

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> TensorColumns:
        torch.set_num_threads(1)
        made = [self.make(request) for request in list_row_requests(self.source, self.config, row)]
        names = [name for views in (made[0], *made[1:2]) for name in views]
        return {
            **read_row_numbers(self.source, row),
            **{name: torch.stack([views[name] for views in made if name in views]) for name in names},
        }


def read_row_numbers(source: VideoSource, row: int) -> TensorColumns:
    """Reads ``row`` [], ``videos`` [S] (manifest rows) and ``labels`` [S] of a row of the plan."""
    (videos,) = source.plan.choose_videos([row])
    labels = np.asarray(source.columns["label"][videos], dtype=np.int64)
    return {"row": torch.tensor(row), "videos": torch.from_numpy(videos), "labels": torch.from_numpy(labels)}


def check_same_work(source: VideoSource, config: Config) -> None:
    """Raises UserError if the configuration asks for what the peers do not do, or if not all of them can read the files."""
    weak, strong, off = config.views.weak, config.views.strong, TimeSection()
    unusual = {
        "views.weak.time": weak.time != off,
        "views.strong.time": strong.time != off,
        "views.weak.max_aspect": weak.max_aspect != 1,
        "views.strong.without": bool(strong.without),
        "views.strong.geometric": not strong.geometric,
        "views.strong.appearance": not strong.appearance,
        "method.supervised.mixup": bool(config.method.supervised.mixup),
        **{f"{student}.clip.modality": getattr(config, student).clip.modality != "rgb" for student in STUDENTS},
    }
    if unknown := [name for name, is_unusual in unusual.items() if is_unusual]:
        names = ", ".join(unknown)
        raise UserError(f"bench peers does the same work in every loader, and the peers know no {names}: leave out")
    numbers = np.concatenate([source.plan.labeled, source.plan.unlabeled if config.unlabeled_per_labeled else []])
    decoders = source.manifest.table["decoder"].take(numbers.astype(np.int64)).to_pylist()
    if unread := sum(decoder != "decord" for decoder in decoders):
        raise UserError(
            "bench peers compares on files that every loader reads, and decord does not decode "
            f"{unread} of the {len(decoders)} training videos of {source.manifest.path} exactly: make copies of them with "
            "jobs.prepare ... --resize, or leave them out"
        )
    if storage.is_remote(source.describe_video(int(numbers[0])).location):
        raise UserError("bench peers reads local files only: name a folder of this machine with data.root")
