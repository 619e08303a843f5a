"""Decoded views in, class scores of both students out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from pipeline.clips.modalities import derive
from pipeline.clips.source import Columns
from pipeline.clips.views import center_views
from pipeline.config import parse_config
from pipeline.methods import STUDENTS, build_students


class Scorer:
    """Both students of a checkpoint; called with decoded views, returns their softmax scores."""

    def __init__(self, tree: dict[str, Any], num_classes: int, weights: str, threads: int | None = None) -> None:
        self.config = parse_config(tree)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if threads:
            torch.set_num_threads(threads)
        self.students = build_students(self.config, num_classes)
        stored = {key.partition("."): value for key, value in load_file(weights).items()}
        # the running means if there are any; no projection heads, label statistics and teachers, which are for training only
        wanted = "students" if self.config.train.ema_decay is None else "averages"
        kept = {key: value for (room, _, key), value in stored.items() if room == wanted and ".projection." not in key}
        self.students.load_state_dict(kept)
        self.students.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, columns: Columns) -> Columns:
        """``video`` [n], ``reason`` [n], and [n, K] float32 scores of ``primary`` and ``auxiliary``."""
        scores = {}
        for name in STUDENTS:
            clips = torch.from_numpy(np.array(columns[name])).to(self.device)
            clip = getattr(self.config, name).clip
            logits_NK, _ = self.students[name](derive(center_views(clips, clip.size), clip.modality))
            scores[name] = logits_NK.float().softmax(dim=1).cpu().numpy()
        return {"video": columns["video"], "reason": columns["reason"], **scores}
