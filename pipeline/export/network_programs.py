"""Both networks as programs that run without this project: frames in, probabilities out.

A program has the test views in it: uint8 frames [N, T, S, S, 3] at the decode size S, RGB, as the decoder returns a square; out
come probabilities [N, K] float32. N is any number of clips. ``torch.export`` traces the networks; its programs are written as
they are (``.pt2``) or translated to ONNX (``onnx_programs``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram

from pipeline.clips.modalities import derive_modality
from pipeline.clips.normalization import MEAN, STD
from pipeline.config import STUDENTS, Config
from pipeline.errors import UserError
from pipeline.methods import build_students
from pipeline.methods.parts.precision import center_logits

PROGRAMS = (*STUDENTS, "mean")
"""A program for each network, and one for the mean of their probabilities, which takes the frames of both."""
MOST_DIFFERENCE = 1e-3
"""Largest difference of a probability between a program and this project at which the program is accepted."""
BATCH_SIZES = (1, 3)
"""Numbers of clips at once with which a program is compared, besides all of them."""
Clips = Mapping[str, torch.Tensor]
"""Each network's clips, uint8 [N, T, S, S, 3]."""
Program = Callable[..., torch.Tensor]
"""Computes probabilities [N, K] of the frames of one network, or of both."""


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


def select_frames(clips: Clips, name: str) -> tuple[torch.Tensor, ...]:
    """Selects the inputs of a program from the clips of both networks."""
    return tuple(clips[student] for student in (STUDENTS if name == "mean" else (name,)))


def trace_networks(networks: Mapping[str, nn.Module], config: Config, names: Sequence[str]) -> dict[str, ExportedProgram]:
    """Traces these of the networks with torch.export, for any number of clips."""
    size = config.data.decode_size
    clips = {name: torch.zeros(2, getattr(config, name).clip.frames, size, size, 3, dtype=torch.uint8) for name in STUDENTS}
    traced = {}
    for name in names:
        inputs = select_frames(clips, name)
        batch = torch.export.Dim("batch", min=1)
        traced[name] = torch.export.export(networks[name], inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))
        for node in traced[name].graph.nodes:
            node.meta.pop("stack_trace", None)  # it would be written, with the folders of this machine
    return traced


def save_torch_programs(traced: Mapping[str, ExportedProgram], folder: Path) -> dict[str, Path]:
    """Writes a ``.pt2`` file for each traced network; returns their paths."""
    paths = {name: folder / f"{name}_program.pt2" for name in traced}
    for name, path in paths.items():
        content = io.BytesIO()  # not the file itself: where a disk is full, torch ends the process
        torch.export.save(traced[name], content)
        path.write_bytes(content.getbuffer())
    return paths


def load_torch_program(path: Path) -> Program:
    """Loads a ``.pt2`` file that this process has just written. Others are never loaded: that can execute code."""
    program: Program = torch.export.load(path).module()
    return program


@torch.inference_mode()
def compute_probabilities(networks: Mapping[str, nn.Module], config: Config, clips: Clips) -> dict[str, torch.Tensor]:
    """Computes what each of ``PROGRAMS`` must compute, [N, K], by evaluation's own forward passes in float32."""
    expected: dict[str, torch.Tensor] = {}
    train = config.train.model_copy(update={"precision": "fp32"})
    for name in STUDENTS:
        student = networks[name].student
        assert isinstance(student, nn.Module)
        expected[name] = center_logits(student, clips[name], getattr(config, name).clip, train).softmax(dim=1)
    expected["mean"] = (expected["primary"] + expected["auxiliary"]) / 2
    return expected


@torch.inference_mode()
def measure_difference(program: Program, inputs: Sequence[torch.Tensor], expected_NK: torch.Tensor) -> float:
    """Measures the largest difference of a probability between a program and what it should compute; NaN if it computes one.

    It is given the first clip alone, the first three, and all at once.
    """
    parts = [program(*(frames[:size] for frames in inputs)) - expected_NK[:size] for size in (*BATCH_SIZES, len(expected_NK))]
    return float(torch.cat(parts).abs().max())


def check_difference(difference: float, file: str, option: str) -> None:
    """Raises UserError if a program differs too much from the network that it was made of."""
    if not difference <= MOST_DIFFERENCE:
        raise UserError(
            f"the exported {file} differs by {difference:.2g} in a probability from the trained network; at most "
            f"{MOST_DIFFERENCE:g} is accepted, so nothing is written: export without {option}"
        )
