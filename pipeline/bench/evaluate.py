"""Measures what decoding a test video once for all of its views saves in evaluation, compared with a decode for every view."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.bench.figures import compute_ratio
from pipeline.clips.sampling import Moment, describe_clip
from pipeline.clips.source import Clips, Columns, VideoSource, open_source
from pipeline.config import STUDENTS, Config
from pipeline.evaluation.protocol import compute_clip_moments, list_views
from pipeline.evaluation.score_videos import score_in_process
from pipeline.evaluation.scorer import Scorer
from pipeline.methods import build_students
from pipeline.processes.isolation import count_cores
from pipeline.seeds import Ints
from pipeline.stream.in_process import map_ahead

MAX_VIDEOS = 50
"""The number of videos in one repeat at most: the evaluated split may have fewer."""


@dataclass(frozen=True)
class CountingSource(VideoSource):
    """A source that records every pass over a file."""

    passes: list[int] = field(default_factory=list)
    """The manifest row of the video of each pass."""

    def decode_clips(self, video: int, moment: Moment, crop_position: float, out: Clips) -> None:
        """Records the pass and decodes as ``VideoSource`` does."""
        self.passes.append(video)
        super().decode_clips(video, moment, crop_position, out)

    def decode_moments(self, video: int, moments: Any) -> Any:
        """Records the pass and decodes as ``VideoSource`` does."""
        self.passes.append(video)
        return super().decode_moments(video, moments)


def bench_evaluate(config: Config, repeats: int, max_videos: int = MAX_VIDEOS) -> dict[str, Any]:
    """Measures wall and CPU seconds of this process to score the first ``max_videos`` videos of the evaluated split.

    Both ways, a decode for every view and a decode for every video, are measured in turns. The students have random weights,
    and videos are decoded in this process. ``decode_once_ratio`` (wall time) and ``cpu_ratio`` are the first way over the
    second, and ``largest_difference`` is the largest between their scores. Raises UserError if the data cannot be opened.
    """
    data = config.data.model_copy(update={"isolate_decoder": False})
    config = config.model_copy(update={"data": data})
    opened, _ = open_source(config)
    videos = opened.find_evaluation_rows(config.evaluation.split)[:max_videos]
    source = CountingSource(**{name: value for name, value in vars(opened).items() if name != "columns"})
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        scorer = _build_scorer(config, len(source.manifest.classes), Path(folder) / "model.safetensors")
    moments = compute_clip_moments(config.evaluation.clips)
    ways: dict[str, Callable[[Ints], list[Columns]]] = {
        "a decode a view": lambda rows: _score_view_by_view(source, config, scorer, rows),
        "a decode a video": lambda rows: list(score_in_process(source, scorer, rows, moments)),
    }
    scores, decodes = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):  # the first warms up, with one video
        for name, score in ways.items():
            source.passes.clear()
            begun, cpu_begun = time.perf_counter(), time.process_time()
            parts = score(videos if repeat else videos[:1])
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
                cpu_seconds[name].append(time.process_time() - cpu_begun)
                decodes[name] = len(source.passes)
                scores[name] = np.concatenate([np.stack([part[student] for student in STUDENTS], axis=1) for part in parts])
    before, after = ways
    return {
        **compute_ratio("decode_once_ratio", seconds[before], seconds[after]),
        "cpu": compute_ratio("cpu_ratio", cpu_seconds[before], cpu_seconds[after]),
        "ways": {
            name: {
                "decodes": decodes[name],
                "seconds": round(float(np.median(seconds[name])), 2),
                "cpu_seconds": round(float(np.median(cpu_seconds[name])), 2),
            }
            for name in ways
        },
        "largest_difference": float(np.abs(scores[before] - scores[after]).max()),
        "videos": len(videos),
        "views": len(scores[after]),
        "protocol": f"{config.evaluation.clips} x {config.evaluation.crops}, {scorer.batch} views at once",
        "clips": " and ".join(map(describe_clip, source.clips)),
        "precision": config.train.precision,
        "device": scorer.device.type,
    }


def _build_scorer(config: Config, classes: int, path: Path) -> Scorer:
    """Writes random weights of the students to ``path`` and returns what scores clips with them."""
    torch.manual_seed(config.run.seed)
    students = build_students(config, classes).state_dict()
    prefix = "students" if config.train.ema_decay is None else "averages"
    save_file({f"{prefix}.{key}": value.contiguous() for key, value in students.items()}, path)
    return Scorer(config.model_dump(mode="json"), classes, str(path))


def _score_view_by_view(source: VideoSource, config: Config, scorer: Scorer, rows: Ints) -> list[Columns]:
    videos, moments, windows = list_views(rows, config.evaluation.clips, config.evaluation.crops)
    blocks = [slice(start, start + scorer.batch) for start in range(0, len(videos), scorer.batch)]

    def decode(block: slice) -> Columns:
        return source.decode_views(videos[block], moments[block], windows[block])

    return list(map(scorer.score_clips, map_ahead(decode, blocks, ahead=count_cores())))
