"""The features that the contrast compares: softmax vectors, pooled features or their projections, of clips or of moments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.config import STUDENTS, ClipSection, Config, TimeSection
from pipeline.errors import UserError
from pipeline.methods.parts.inputs import Outputs, Setup
from pipeline.methods.parts.monitors import Monitors, compute_gradient_monitors
from pipeline.seeds import Ints


class ContrastFeatures(nn.Module):
    """Computes features [M, D] by student from the students' outputs, where M is U videos times ``moments``.

    Projection heads belong to the students (as ``projection``), so that each is trained, clipped and saved with its student.
    """

    def __init__(self, students: nn.ModuleDict, setup: Setup) -> None:
        super().__init__()
        section = setup.method.contrast
        if section.level == "frame":
            _check_times(setup.config)
        self.kind, self.frames = section.features, section.level == "frame"
        networks: dict[str, Any] = dict(students.items())
        widths = {name: networks[name].num_features for name in STUDENTS}
        if self.kind == "embeddings" and len(set(widths.values())) > 1:
            raise UserError(
                f"method.contrast.features=embeddings needs students of one feature width, but they have {widths}; "
                "use probabilities or projection, or change the networks' widths"
            )
        for name, width in widths.items():
            networks[name].per_frame = self.frames
            if self.kind == "projection":
                networks[name].projection = _build_projection(width, section.projection_width)
        self.clips = {name: getattr(setup.config, name).clip for name in STUDENTS}

    def forward(self, students: nn.ModuleDict, outputs: Outputs) -> dict[str, torch.Tensor]:
        """Returns the features by student; the moments of a video are adjacent rows."""
        networks: dict[str, Any] = dict(students.items())
        logits = {name: output.logits for name, output in outputs.items()}
        features = {name: output.features for name, output in outputs.items()}
        if self.frames:
            counts = (features[name].shape[1] for name in STUDENTS)
            pairs = pair_moments(*(self.clips[name] for name in STUDENTS), *counts)
            features = {name: _select_moments(features[name], pair) for name, pair in zip(STUDENTS, pairs, strict=True)}
            if self.kind == "probabilities":
                logits = {name: networks[name].head(features[name]) for name in features}
        if self.kind == "projection":
            return {name: networks[name].projection(features[name]) for name in features}
        if self.kind == "probabilities":
            return {name: logits[name].float().softmax(dim=1) for name in logits}
        return features

    def monitor_gradients(self, labeled: Outputs, weak: Outputs, strong: Outputs) -> Monitors:
        """Returns the ``compute_gradient_monitors`` at the tensors where the contrast enters the students.

        There are none for frames, whose features are not the ones that logits are computed from.
        """
        return {} if self.frames else compute_gradient_monitors(labeled, weak, strong, features=self.kind != "probabilities")


def _check_times(config: Config) -> None:
    """Raises UserError if the position of a moment in its clip does not determine its time."""
    samplings = {name: getattr(config, name).clip.sampling for name in STUDENTS}
    if len(set(samplings.values())) > 1:
        raise UserError(
            "method.contrast.level=frame pairs moments of both students by their time, which is in seconds for windows and a "
            f"share of the video for segments: give primary.clip and auxiliary.clip the same sampling; they have {samplings}"
        )
    if config.data.moments == "own":
        raise UserError(
            "method.contrast.level=frame pairs moments of clips that are centered on the same instant: set data.moments=shared"
        )
    if config.views.weak.time != TimeSection():
        raise UserError(
            "method.contrast.level=frame pairs the frames of weak views by their time: leave out views.weak.time, "
            "which moves them; views.strong.time may stay"
        )


def pair_moments(primary: ClipSection, auxiliary: ClipSection, primary_count: int, auxiliary_count: int) -> tuple[Ints, Ints]:
    """Pairs the moments of both students that are nearest in time, and returns the indices of the primary's and the
    auxiliary's.

    Each moment of the coarser student that lies within the other's clip is paired once. Both clips must be windows centered on
    the same instant, or segments of the same video.
    """
    times, spans = [], []
    for clip, count in ((primary, primary_count), (auxiliary, auxiliary_count)):
        length = 1.0 if clip.fps is None else clip.frames / clip.fps  # of the video, or seconds
        times.append(((np.arange(count) + 0.5) / count - 0.5) * length)
        spans.append(length / count)
    coarse, fine = (0, 1) if spans[0] >= spans[1] else (1, 0)
    distance = np.abs(times[coarse][:, None] - times[fine][None])
    inside = distance.min(axis=1) <= spans[coarse] / 2 + 1e-9
    indices = {coarse: np.flatnonzero(inside), fine: distance.argmin(axis=1)[inside]}
    return np.asarray(indices[0], dtype=np.int64), np.asarray(indices[1], dtype=np.int64)


def _select_moments(features_UMD: torch.Tensor, moments: Ints) -> torch.Tensor:
    """Selects moments of features [U, moments, D] and returns [U * selected moments, D].

    They are selected one by one: an index of several would be copied to the device in every step, and the step would wait.
    """
    return torch.stack([features_UMD[:, int(moment)] for moment in moments], dim=1).flatten(0, 1)


def _build_projection(width: int, outputs: int) -> nn.Sequential:
    """Builds SimCLR's two layers, without a norm, whose statistics would differ between workers."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, outputs))
