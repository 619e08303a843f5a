"""Adds programs to a model folder that is being written, after each was compared with the networks on real clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import STUDENTS, Config
from pipeline.export.int8_figures import measure_int8
from pipeline.export.int8_programs import write_int8_programs
from pipeline.export.int8_videos import Int8Videos, decode_calibration_clips
from pipeline.export.network_programs import (
    PROGRAMS,
    Clips,
    Program,
    build_networks,
    check_difference,
    compute_probabilities,
    load_torch_program,
    measure_difference,
    save_torch_programs,
    select_frames,
    trace_networks,
)
from pipeline.export.onnx_programs import load_onnx_program, write_onnx_programs


@dataclass(frozen=True)
class ProgramRequest:
    """Which programs a model folder is to have, and what they are compared on."""

    torch: bool
    """Whether to write ``.pt2`` files of torch.export."""
    onnx: bool
    """Whether to write ONNX files."""
    clips: Clips
    """Real clips on which each program is compared with the networks."""
    int8: Int8Videos | None = None
    """The videos by which int8 ONNX files are made and measured; None: there are to be none."""


@dataclass(frozen=True)
class WrittenPrograms:
    """The programs of a model folder, which compute what the networks do."""

    differences: Mapping[str, float]
    """By file name: the largest difference of a probability between the program and the networks."""
    clips: int
    """On how many clips that was measured."""
    int8: Mapping[str, Any] | None
    """What ``measure_int8`` found, if there are int8 programs."""

    @property
    def files(self) -> list[str]:
        """The names of the programs' files."""
        return [*self.differences, *(self.int8["programs"] if self.int8 else ())]

    def to_json(self) -> dict[str, Any]:
        """Makes the content of programs.json."""
        content = {"compared_on_clips": self.clips, "largest_difference": dict(self.differences)}
        return content | ({"int8": dict(self.int8)} if self.int8 else {})


def write_programs(request: ProgramRequest, config: Config, num_classes: int, weights: Path, folder: Path) -> WrittenPrograms:
    """Writes the requested programs of a model folder's weights into ``folder``. Raises UserError if one of them computes
    something else than the networks, if int8 programs are useless, and if there can be none."""
    networks = build_networks(config, num_classes, weights)
    expected = compute_probabilities(networks, config, request.clips)
    traced = trace_networks(networks, config, PROGRAMS if request.torch else STUDENTS)
    differences: dict[str, float] = {}

    def compare(paths: Mapping[str, Path], load: Callable[[Path], Program], option: str) -> None:
        for name, path in paths.items():
            difference = measure_difference(load(path), select_frames(request.clips, name), expected[name])
            check_difference(difference, path.name, option)
            differences[path.name] = difference

    if request.torch:
        compare(save_torch_programs(traced, folder), load_torch_program, "--torch-export")
    int8 = None
    if request.onnx:
        paths = write_onnx_programs(traced, folder)
        compare(paths, load_onnx_program, "--onnx")
        if request.int8:
            batches = decode_calibration_clips(request.int8)
            int8 = measure_int8(paths, write_int8_programs(paths, batches, folder), request.int8)
    return WrittenPrograms(differences, len(request.clips["primary"]), int8)
