"""The stream against the usual loader: a torch ``DataLoader`` that does what SVFormer's data set does, same views out.

SVFormer (Xing et al., CVPR 2023) opens every video once per view with decord, at the file's size, and resizes, crops,
flips and augments PIL images on the CPU; its batches are float tensors. Its RandAugment is timm's, by way of VideoMAE.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import decord
import numpy as np
import ray
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch.utils.data import DataLoader, Dataset

from pipeline.bench.figures import check_steps, for_bench, ratio, steady_rate
from pipeline.clips.allocator import keep_freed_memory
from pipeline.clips.decode import Video
from pipeline.clips.device import own_device
from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.sampling import Moment, clip_times, constant_rate, frame_indices, moment_of
from pipeline.clips.source import Source, open_source
from pipeline.cluster import connect_one
from pipeline.cluster.sockets import short_temporary_folder_of_children
from pipeline.config import ClipSection, Config
from pipeline.manifest.progress import progress
from pipeline.methods import STUDENTS, make_views
from pipeline.resources import Resources
from pipeline.stream.batches import make_deal
from pipeline.stream.on_ray import ray_stream, shard_batches

PROCESSES = 2
"""Of the DataLoader, and decode tasks at once of the stream."""


def bench_loader(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Videos per second, in turns. One consumer gets the same rows' views from both: weak ones of labeled videos, weak and
    strong ones of unlabeled videos, for each student, as normalized float tensors. The stream's are made by the consumer,
    where training makes them: on the GPU if there is one, else on this machine's CPU, which decodes at the same time."""
    config = for_bench(config, steps)
    source, _ = open_source(config)
    check_steps(steps, make_deal(source, config, 0, 1).steps_per_block)
    connect_one("bench loader")
    ray.data.DataContext.get_current().enable_progress_bars = False
    cpus = ray.cluster_resources().get("CPU", 1.0) / PROCESSES  # as many tasks as the DataLoader has processes
    loaders, streams = [], []
    for _ in progress(range(repeats), repeats, "repeats"):
        loaders.append(loader_rate(source, config, steps))
        streams.append(stream_views_rate(source, config, cpus))
    videos = source.plan.rows_per_step * source.plan.slots
    return {
        **ratio("loader_ratio", streams, loaders),
        "stream_videos_per_second": statistics.median(streams),
        "loader_videos_per_second": statistics.median(loaders),
        "views_per_step": source.plan.rows_per_step * 2 * (1 + 2 * source.plan.unlabeled_per_labeled),
        "videos_per_repeat": videos * steps,
        "views_made_on": own_device(config).type,
    }


def stream_views_rate(source: Source, config: Config, cpus: float) -> float:
    """Videos per second of the stream and one consumer that makes their views."""
    (shard,) = ray_stream(source, config, 0, Resources(1, 0.0, cpus, gpu=False)).streaming_split(1, equal=True)
    device = own_device(config).type
    remote = _consume.options(num_cpus=0, num_gpus=1 if device == "cuda" else 0)
    times = ray.get(remote.remote(shard, config.model_dump(mode="json"), device))
    return steady_rate([times], source.plan.rows_per_step * source.plan.slots, make_deal(source, config, 0, 1))


@ray.remote  # type: ignore[untyped-decorator]
def _consume(shard: ray.data.DataIterator, tree: dict[str, Any], device: str) -> list[float]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    config = Config.model_validate(tree)
    times = []
    for batch in shard_batches(shard, config.data.labeled_per_step, torch.device(device), timeout=60.0):
        make_views(batch, config, config.run.seed, device)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.time())
    return times


def loader_rate(source: Source, config: Config, steps: int) -> float:
    """Videos per second of the DataLoader."""
    data = PerViewDataset(source, config, steps)
    loader: Any = DataLoader(
        data, batch_size=source.plan.rows_per_step, num_workers=PROCESSES, multiprocessing_context="spawn", collate_fn=_collate
    )
    with short_temporary_folder_of_children():
        times = [time.time() for _ in loader]
    return steady_rate([times], source.plan.rows_per_step * source.plan.slots)


def _collate(rows: list[dict[str, list[torch.Tensor]]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([view for row in rows for view in row[name]]) for name in rows[0]}


class PerViewDataset(Dataset[dict[str, list[torch.Tensor]]]):
    """Plan rows as their views, each by an open of its own."""

    def __init__(self, source: Source, config: Config, steps: int) -> None:
        self.source, self.config, self.num_rows = source, config, steps * source.plan.rows_per_step

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, list[torch.Tensor]]:
        """``student/kind`` -> views [C, T, size, size] float32 of the row's videos."""
        torch.set_num_threads(1)
        (videos,), ((moments,), _) = self.source.plan.videos([row]), self.source.moments(np.array([row]))
        views: dict[str, list[torch.Tensor]] = {}
        for slot, (number, both) in enumerate(zip(videos.tolist(), moments, strict=True)):
            kinds = ("labeled",) if slot == 0 else ("weak", "strong")
            for student, (name, clip) in enumerate(zip(STUDENTS, self.source.clips, strict=True)):
                moment = moment_of(both, student)
                for kind in kinds:
                    generator = np.random.default_rng([row, slot, len(views)])
                    view = self._view(self.source.video(number), moment, clip, kind == "strong", generator)
                    views.setdefault(f"{name}/{kind}", []).append(view)
        return views

    def _view(
        self, video: Video, moment: Moment, clip: ClipSection, strong: bool, generator: np.random.Generator
    ) -> torch.Tensor:
        # at the file's own size decord fails on widths such as 72 of the synthetic videos, whose rows it pads
        width = -(-video.width // 32) * 32
        reader = decord.VideoReader(video.location, width=width, height=video.height, num_threads=1)
        (times,) = clip_times(moment, video.start, video.end, [clip])
        wanted = frame_indices(times, constant_rate(len(reader), video.fps))
        frames = [Image.fromarray(frame) for frame in reader.get_batch(wanted).asnumpy()]
        frames = _crop_and_flip(frames, clip.size, self.config.views.weak.min_scale, self.config.views.weak.flip, generator)
        if strong:
            section = self.config.views.strong
            augment = rand_augment_transform(f"rand-m{round(10 * section.magnitude)}-n{section.ops}-mstd0.5-inc1", {})
            frames = [augment(frame) for frame in frames]
        clip_THWC = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).float() / 255
        if strong and self.config.views.strong.cutout:
            side = round(clip.size * self.config.views.strong.cutout / 2)
            top, left = generator.integers(0, clip.size - side + 1, 2)
            clip_THWC[:, top : top + side, left : left + side] = 0
        return ((clip_THWC - torch.tensor(MEAN)) / torch.tensor(STD)).permute(3, 0, 1, 2).contiguous()


def _crop_and_flip(
    frames: list[Image.Image], size: int, min_scale: float, flip: float, generator: np.random.Generator
) -> list[Image.Image]:
    """Short-side scale jitter, a random square, a mirror."""
    short = round(size / generator.uniform(min_scale, 1))
    width, height = frames[0].size
    scaled = (max(size, round(width * short / min(width, height))), max(size, round(height * short / min(width, height))))
    left, top = (int(generator.integers(0, edge - size + 1)) for edge in scaled)
    cut = [frame.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size)) for frame in frames]
    if generator.random() >= flip:
        return cut
    return [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in cut]
