"""Both networks as programs that run without this project: frames in, probabilities out, by torch.export.

A ``.pt2`` file has the test views in it: uint8 frames [N, T, S, S, 3] at the decode size S, RGB, as the decoder returns a
square; out come probabilities [N, K] float32. N is any number of clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from pipeline.clips.decode import DecodeError
from pipeline.clips.modalities import derive_modality
from pipeline.clips.normalization import MEAN, STD
from pipeline.clips.source import VideoSource
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods import STUDENTS, build_students
from pipeline.methods.parts.precision import center_logits

PROGRAMS = (*STUDENTS, "mean")
"""A program for each network, and one for the mean of their probabilities, which takes the frames of both."""
MOST_DIFFERENCE = 1e-3
"""Largest difference of a probability between a program and this project at which the program is accepted."""


class FramesToProbabilities(nn.Module):
    """One network with the views that it is tested on, in operations that can be exported."""

    def __init__(self, student: nn.Module, config: Config, name: str) -> None:
        super().__init__()
        self.student, self.clip = student, getattr(config, name).clip

    def forward(self, frames_NTHWC: torch.Tensor) -> torch.Tensor:
        """Computes probabilities [N, K] of uint8 frames [N, T, S, S, 3]."""
        frames, size = self.clip.frames, self.clip.size
        pixels_NTCHW = (frames_NTHWC.permute(0, 1, 4, 2, 3).float() / 255 - MEAN) / STD
        # of a square at most as large as the decoded one, this samples where ``make_center_views`` does
        resized = F.interpolate(pixels_NTCHW.flatten(0, 1), size=(size, size), mode="bilinear", align_corners=False)
        views_NCTHW = resized.unflatten(0, (-1, frames)).transpose(1, 2)
        logits_NK, _ = self.student(derive_modality(views_NCTHW, self.clip.modality))
        probabilities: torch.Tensor = logits_NK.float().softmax(dim=1)
        return probabilities


class MeanProbabilities(nn.Module):
    """Both networks; the mean of their probabilities."""

    def __init__(self, primary: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.primary, self.auxiliary = primary, auxiliary

    def forward(self, primary_frames: torch.Tensor, auxiliary_frames: torch.Tensor) -> torch.Tensor:
        """Computes [N, K] of uint8 frames [N, T, S, S, 3] of each network's clip."""
        mean: torch.Tensor = (self.primary(primary_frames) + self.auxiliary(auxiliary_frames)) / 2
        return mean


def build_networks(config: Config, num_classes: int, weights: Path) -> dict[str, nn.Module]:
    """Builds both networks of a model folder, and their mean, ready to be exported. Raises UserError for optical flow."""
    if flow := [name for name in STUDENTS if getattr(config, name).clip.modality == "optical_flow"]:
        raise UserError(f"{flow[0]}.clip.modality=optical_flow is computed by OpenCV, which no exported program can contain")
    students = build_students(config, num_classes)
    students.load_state_dict({name.removeprefix("students."): value for name, value in load_file(weights).items()})
    networks: dict[str, nn.Module] = {name: FramesToProbabilities(students[name], config, name) for name in STUDENTS}
    networks["mean"] = MeanProbabilities(networks["primary"], networks["auxiliary"])
    return {name: network.eval() for name, network in networks.items()}


def select_frames(clips: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    """Selects the inputs of a program from the clips of both networks."""
    return tuple(clips[student] for student in (STUDENTS if name == "mean" else (name,)))


def export_programs(networks: dict[str, nn.Module], config: Config, folder: Path) -> dict[str, Path]:
    """Writes a ``.pt2`` file for each network; returns their paths."""
    size = config.data.decode_size
    clips = {name: torch.zeros(2, getattr(config, name).clip.frames, size, size, 3, dtype=torch.uint8) for name in STUDENTS}
    paths = {}
    for name, network in networks.items():
        inputs = select_frames(clips, name)
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        paths[name] = folder / f"{name}_program.pt2"
        torch.export.save(program, paths[name])
    return paths


def decode_test_clips(source: VideoSource, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Decodes the middle clip of each of these videos of a source, [N, T, S, S, 3] uint8 by network; others are left out.

    Raises UserError if none can be decoded.
    """
    size = source.size
    found: dict[str, list[torch.Tensor]] = {name: [] for name in STUDENTS}
    reasons = []
    for row in rows:
        out = tuple(np.zeros((clip.frames, size, size, 3), np.uint8) for clip in source.clips)
        try:
            source.decode_clips(int(row), 0.5, 0.5, (out[0], out[1]))
        except DecodeError as error:
            reasons.append(f"{source.manifest.locate(row)}: {error}")
            continue
        for name, clip in zip(STUDENTS, out, strict=True):
            found[name].append(torch.from_numpy(clip))
    if not found["primary"]:
        raise UserError("none of the videos to check the exported programs with can be decoded:", reasons[:5])
    return {name: torch.stack(clips) for name, clips in found.items()}


@torch.inference_mode()
def compare_programs(
    networks: dict[str, nn.Module], paths: dict[str, Path], config: Config, clips: dict[str, torch.Tensor]
) -> dict[str, float]:
    """Computes the largest difference of a probability between each written program and evaluation's own forward passes, both
    in float32.

    Each program is given all clips at once and one alone. Raises UserError if a program computes something else.
    """
    expected: dict[str, torch.Tensor] = {}
    train = config.train.model_copy(update={"precision": "fp32"})
    for name in STUDENTS:
        student = networks[name].student
        assert isinstance(student, nn.Module)
        expected[name] = center_logits(student, clips[name], getattr(config, name).clip, train).softmax(dim=1)
    expected["mean"] = (expected["primary"] + expected["auxiliary"]) / 2
    differences = {}
    for name, path in paths.items():
        program = torch.export.load(path).module()  # written a moment ago by this process
        inputs = select_frames(clips, name)
        alone = program(*(frames[:1] for frames in inputs))
        both = torch.cat([program(*inputs) - expected[name], alone - expected[name][:1]])
        differences[name] = float(both.abs().max())
        if not differences[name] <= MOST_DIFFERENCE:
            raise UserError(
                f"the exported {name} program differs by {differences[name]:.2g} in a probability from the trained network; "
                f"at most {MOST_DIFFERENCE:g} is accepted, so nothing is written: export without --torch-export"
            )
    return differences
