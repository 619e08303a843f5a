"""What every peer is asked for: the views of the plan's rows, as files, times in seconds, sizes and seeds."""

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
from pipeline.config import ClipSection, Config, TimeSection, ViewsSection
from pipeline.errors import UserError
from pipeline.files import storage
from pipeline.methods import STUDENTS, compute_loss_weights
from pipeline.seeds import Floats

Columns = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ViewRequest:
    """One view of one student."""

    name: str
    """``student/kind``: kinds are labeled, weak and strong."""
    times: Floats
    """[T] seconds after the video's first frame, ascending."""
    clip: ClipSection
    strong: bool
    seed: int
    """Of everything random in the view, 64 bits."""


@dataclass(frozen=True)
class VideoRequest:
    """All views of one video in one row of the plan."""

    video: Video
    requests: tuple[ViewRequest, ...]
    views: ViewsSection
    decode_size: int
    window: float
    """Where this project cuts its square, 0..1 along the longer side."""


MakeViews = Callable[[VideoRequest], Columns]
"""Views float32 [C, T, size, size], normalized, by the name of the request."""
MakeView = Callable[[VideoRequest, ViewRequest], torch.Tensor]


def one_by_one(make: MakeView) -> MakeViews:
    """A peer that makes every view by itself, from an open of its own."""
    return partial(_each, make)


def _each(make: MakeView, asked: VideoRequest) -> Columns:
    return {request.name: make(asked, request) for request in asked.requests}


def requests_of_row(source: VideoSource, config: Config, row: int) -> list[VideoRequest]:
    """One for each slot: the same videos at the same times as this project's own loader decodes in this row."""
    (videos,), ((moments,), (windows,)) = source.plan.videos([row]), source.moments(np.array([row]))
    asked = []
    for slot, (number, moment, window) in enumerate(zip(videos.tolist(), moments, windows.tolist(), strict=True)):
        video = source.describe_video(number)
        times = compute_clip_times(moment, video.start, video.end, source.clips)
        requests = []
        for kind in ("labeled",) if slot == 0 else unlabeled_kinds(config):
            for student, clip, at in zip(STUDENTS, source.clips, times, strict=True):
                name = f"{student}/{kind}"
                (seed,) = derive_view_seeds(config.run.seed, [row], [slot], name)
                requests.append(ViewRequest(name, at, clip, kind == "strong", seed))
        asked.append(VideoRequest(video, tuple(requests), config.views, source.size, window))
    return asked


def unlabeled_kinds(config: Config) -> tuple[str, ...]:
    """Kinds of views that the method's first step makes of unlabeled videos."""
    weights = compute_loss_weights(config.method, 0)
    if not (config.unlabeled_per_labeled and weights.use_unlabeled):
        return ()
    return ("weak", "strong") if weights.use_strong else ("weak",)


def views_per_step(source: VideoSource, config: Config) -> int:
    """Of both students together."""
    return source.plan.rows_per_step * len(STUDENTS) * (1 + source.plan.unlabeled_per_labeled * len(unlabeled_kinds(config)))


class RowViews(Dataset[Columns]):
    """Rows of the plan as views: ``row`` [], ``videos`` and ``labels`` [S], and ``student/kind`` [n, C, T, size, size]."""

    def __init__(self, source: VideoSource, config: Config, rows: int, make: MakeViews) -> None:
        self.source, self.config, self.num_rows, self.make = source, config, rows, make

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> Columns:
        torch.set_num_threads(1)
        made = [self.make(asked) for asked in requests_of_row(self.source, self.config, row)]
        names = [name for views in (made[0], *made[1:2]) for name in views]
        return {
            **row_numbers(self.source, row),
            **{name: torch.stack([views[name] for views in made if name in views]) for name in names},
        }


def row_numbers(source: VideoSource, row: int) -> Columns:
    """``row`` [], ``videos`` [S] manifest rows and ``labels`` [S] of a row of the plan."""
    (videos,) = source.plan.videos([row])
    labels = np.asarray(source.columns["label"][videos], dtype=np.int64)
    return {"row": torch.tensor(row), "videos": torch.from_numpy(videos), "labels": torch.from_numpy(labels)}


def check_same_work(source: VideoSource, config: Config) -> None:
    """Raises UserError for what the peers do not do, and for files that not all of them read."""
    weak, strong, off = config.views.weak, config.views.strong, TimeSection()
    asked = {
        "views.weak.time": weak.time != off,
        "views.strong.time": strong.time != off,
        "views.weak.max_aspect": weak.max_aspect != 1,
        "views.strong.without": bool(strong.without),
        "views.strong.geometric": not strong.geometric,
        "views.strong.appearance": not strong.appearance,
        "method.supervised.mixup": bool(config.method.supervised.mixup),
        **{f"{student}.clip.modality": getattr(config, student).clip.modality != "rgb" for student in STUDENTS},
    }
    if unlike := [name for name, unusual in asked.items() if unusual]:
        raise UserError(f"bench peers does the same work in every loader, and the peers know no {', '.join(unlike)}: leave out")
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
