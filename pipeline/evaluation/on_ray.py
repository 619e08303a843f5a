"""Scores views on a cluster: decode tasks, then scoring actors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import ray.data

from pipeline.clips.source import Columns, VideoSource
from pipeline.evaluation.scorer import Scorer
from pipeline.ray_cluster.resources import Resources
from pipeline.seeds import Floats, Ints
from pipeline.stream.on_ray import build_video_dataset, find_cause


class BlockScorer(Scorer):
    """A scorer of the stream's blocks, each of which is a single row to Ray, which calls the scorer itself."""

    def __call__(self, columns: Columns) -> Columns:
        """Takes columns of ``decode_videos`` [1, ...], and returns scores of all their views [1, n, ...]."""
        parts = list(self.score_videos([self.prepare_block({name: values[0] for name, values in columns.items()})]))
        return {name: np.concatenate([part[name] for part in parts])[None] for name in parts[0]}


def score_on_ray(
    source: VideoSource, resources: Resources, scorer: tuple[Any, ...], videos: Ints, moments: Floats, size: int
) -> Iterator[Columns]:
    """Yields the scores of the videos' test views in their order, ``size`` videos a part, while later ones are computed.

    ``scorer`` are the arguments of ``Scorer``. Raises UserError where a decode task ended with one.
    """
    scores = build_video_dataset(source, videos, moments, size, resources).map_batches(
        BlockScorer,
        fn_constructor_args=scorer,
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(resources.workers, -(-len(videos) // size))),  # no actor without a block
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.worker.get("GPU", 0),
        **({"label_selector": resources.train_labels} if resources.train_labels else {}),
    )
    parts = scores.iter_batches(batch_size=None, batch_format="numpy")  # in order: sums of scores are the same bits every time
    try:
        for part in parts:
            yield {name: values[0] for name, values in part.items()}
    except ray.exceptions.RayError as error:
        raise find_cause(error) or error from None
