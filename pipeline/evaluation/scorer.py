"""Computes both students' class scores of decoded test clips."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pipeline.clips.evaluation_views import VideoFrames, ViewBatch, batch_views, convert_to_tensors, unpack_videos
from pipeline.clips.source import Columns
from pipeline.config import STUDENTS, Config, parse_config
from pipeline.errors import UserError
from pipeline.evaluation.protocol import CROP_POSITIONS
from pipeline.hardware import choose_device, configure_torch
from pipeline.methods import build_students
from pipeline.methods.parts.precision import center_logits

BATCH_VIEWS = {"cuda": 64, "cpu": 8}
"""Views at once, by device, where ``evaluation.batch_views`` is not set. A GPU needs many to be busy."""
Block = tuple[Columns, dict[str, torch.Tensor]]
"""Columns of ``decode_videos``, and what ``convert_to_tensors`` returned for them."""
_log = logging.getLogger(__name__)


def choose_batch_views(config: Config, gpu: bool) -> int:
    """Returns ``evaluation.batch_views``, or its default for the device."""
    return config.evaluation.batch_views or BATCH_VIEWS["cuda" if gpu else "cpu"]


class Scorer:
    """Both students of a checkpoint, ready to score clips in the run's precision."""

    def __init__(self, tree: dict[str, Any], num_classes: int, weights: str) -> None:
        self.config = parse_config(tree)
        self.device = choose_device(self.config)
        configure_torch(self.config.train)
        self.batch = choose_batch_views(self.config, self.device.type == "cuda")
        self.students = build_students(self.config, num_classes)
        stored = {key.partition("."): value for key, value in load_file(weights).items()}
        # the running means if there are any; no projection heads, label statistics and teachers, which are for training only
        wanted = "students" if self.config.train.ema_decay is None else "averages"
        state = {key: value for (part, _, key), value in stored.items() if part == wanted and ".projection." not in key}
        self.students.load_state_dict(state)
        self.students.to(self.device).eval()
        if self.device.type == "cuda" and self.config.train.channels_last:
            self.students.to(memory_format=torch.channels_last_3d)

    def score_clips(self, columns: Columns) -> Columns:
        """Scores the clips of ``VideoSource.decode_views``. Returns ``video`` and ``reason`` [n], and both students' float32
        scores [n, K]: probabilities, or their logarithms with ``evaluation.average=logits``."""
        scores = self._score_tensors({name: torch.from_numpy(np.array(columns[name])).to(self.device) for name in STUDENTS})
        return {"video": columns["video"], "reason": columns["reason"], **_copy_to_host(scores)}

    def score_videos(self, blocks: Iterable[Block]) -> Iterator[Columns]:
        """Scores all clips x crops of the videos of ``decode_videos``, in their order, and yields a batch of views at a time.

        Scores are copied to the host after the next batch was given to the device, which therefore need not wait. Raises
        UserError if not even one view fits into the GPU's memory.
        """
        crop_positions, before = CROP_POSITIONS[self.config.evaluation.crops], None
        for batch in batch_views(self._unpack(blocks), crop_positions, self.config.data.decode_size, self.batch):
            scores = self._score_tensors(batch.clips)
            if before is not None:
                yield _make_columns(*before)
            before = batch, scores
        if before is not None:
            yield _make_columns(*before)

    def _unpack(self, blocks: Iterable[Block]) -> Iterator[VideoFrames]:
        for columns, tensors in blocks:
            yield from unpack_videos(columns, tensors, self.device)

    def prepare_block(self, columns: Columns) -> Block:
        """Prepares decoded videos to be copied to the device; called by the threads that decode."""
        return columns, convert_to_tensors(columns, pin=self.device.type == "cuda")

    def _score_tensors(self, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Computes scores [n, K] by student, on the device, in parts that fit into its memory."""
        number = len(clips[STUDENTS[0]])
        if number <= self.batch:
            try:
                return self._forward(clips)
            except torch.OutOfMemoryError as error:
                if number == 1:
                    message = f"one test view does not fit into the GPU's memory ({error}): use scale.gpu=false"
                    raise UserError(message) from None
            self.batch = number // 2
            _log.warning("%d test views do not fit into the GPU's memory: going on with %d at once", number, self.batch)
        # not in the handler: its exception holds the tensors of what failed
        parts = zip(*(values.split(self.batch) for values in clips.values()), strict=True)
        scores = [self._score_tensors(dict(zip(clips, part, strict=True))) for part in parts]
        return {name: torch.cat([part[name] for part in scores]) for name in clips}

    @torch.inference_mode()
    def _forward(self, clips: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        config = self.config
        normalize = torch.log_softmax if config.evaluation.average == "logits" else torch.softmax
        return {
            name: normalize(center_logits(self.students[name], clips[name], getattr(config, name).clip, config.train), dim=1)
            for name in STUDENTS
        }


def _copy_to_host(scores: dict[str, torch.Tensor]) -> Columns:
    return {name: values.cpu().numpy() for name, values in scores.items()}


def _make_columns(batch: ViewBatch, scores: dict[str, torch.Tensor]) -> Columns:
    return {"video": batch.videos, "reason": np.array(batch.reasons), **_copy_to_host(scores)}
