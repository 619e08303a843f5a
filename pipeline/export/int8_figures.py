"""What quantization costs and gains: accuracy on labeled videos, agreement, size and time, int8 against float."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.export.check_clips import decode_middle_clips
from pipeline.export.int8_videos import Int8Videos
from pipeline.export.network_programs import PROGRAMS, Clips, Program, select_frames
from pipeline.export.onnx_programs import load_onnx_program
from pipeline.processes.isolation import count_cores
from pipeline.progress import show_progress

LOST_POINTS = 1.0
"""A loss of more points of top-1 than this is said beside the figures. Choice."""
LEAST_AGREEMENT = 0.5
"""Programs that give the same class for fewer of the videos are useless, and not written. Choice."""
TIMED_PAIRS, TIMED_SECONDS = 15, 20.0
"""How often the time of a clip is measured, and for how long at most."""


@dataclass(frozen=True)
class Int8Figures:
    """An int8 program against the float program that it was made of, on the same clips."""

    float_top1: float
    int8_top1: float
    """Shares of the labeled videos."""
    only_float_right: int
    only_int8_right: int
    """Numbers of videos."""
    agreement: float
    """The share of all videos for which both give the same class."""
    float_megabytes: float
    int8_megabytes: float
    """Sizes of the files, in 10^6 bytes."""
    time_ratio: float
    """The int8 program's time for one clip over the float one's, on this machine's CPU; below 1 it is faster."""

    @property
    def lost_points(self) -> float:
        """How many points of top-1 int8 loses; negative if it gains."""
        return round(100 * (self.float_top1 - self.int8_top1), 6)  # 0.39 - 0.38 is a little more than 0.01


def measure_int8(floats: Mapping[str, Path], int8s: Mapping[str, Path], videos: Int8Videos) -> dict[str, Any]:
    """Measures each of ``PROGRAMS`` as float and as int8, and returns the entry ``int8`` of programs.json.

    One clip of a video's middle is shown. Raises UserError if no video can be decoded, or if an int8 program is useless.
    """
    kinds = {"float": _load(floats), "int8": _load(int8s)}
    labels, classes, failed, clip = _classify(kinds, videos)
    figures = {}
    for name in PROGRAMS:
        before, after, known = classes["float"][name], classes["int8"][name], labels >= 0
        right_before, right_after = before[known] == labels[known], after[known] == labels[known]
        figures[name] = Int8Figures(
            float_top1=float(right_before.mean()),
            int8_top1=float(right_after.mean()),
            only_float_right=int((right_before & ~right_after).sum()),
            only_int8_right=int((right_after & ~right_before).sum()),
            agreement=float((before == after).mean()),
            float_megabytes=floats[name].stat().st_size / 1e6,
            int8_megabytes=int8s[name].stat().st_size / 1e6,
            time_ratio=measure_time_ratio(
                load_onnx_program(int8s[name], keep_memory=True),
                load_onnx_program(floats[name], keep_memory=True),
                select_frames(clip, name),
            ),
        )
    check_agreement(figures, len(labels))
    return {
        "programs": {int8s[name].name: asdict(one) for name, one in figures.items()},
        "videos": len(labels),
        "labeled_videos": int((labels >= 0).sum()),
        "undecodable_videos": failed,
        "measured_on": dict(videos.about),
        "calibrated_on": {"videos": len(videos.calibration_rows), "fingerprint": videos.calibration.manifest.fingerprint},
        "cores": count_cores(),
        "cpu": _find_cpu_name(),
    }


def _load(paths: Mapping[str, Path]) -> dict[str, Program]:
    return {name: load_onnx_program(paths[name]) for name in STUDENTS}


def _classify(
    kinds: Mapping[str, Mapping[str, Program]], videos: Int8Videos
) -> tuple[NDArray[np.int64], dict[str, dict[str, NDArray[np.int64]]], int, Clips]:
    """Returns the labels [V], each kind's and each program's classes [V], how many videos failed, and the clip of one video."""
    found: dict[str, dict[str, list[torch.Tensor]]] = {kind: {name: [] for name in PROGRAMS} for kind in kinds}
    rows: list[int] = []
    last: Clips = {}
    decoded = decode_middle_clips(videos.source, videos.rows)
    for batch_rows, clips in show_progress(decoded, len(videos.rows), "measured", count=lambda batch: len(batch[0])):
        rows += batch_rows
        for kind, programs in kinds.items():
            scores = {name: programs[name](clips[name]) for name in STUDENTS}
            scores["mean"] = (scores["primary"] + scores["auxiliary"]) / 2
            for name in PROGRAMS:
                found[kind][name].append(scores[name].argmax(dim=1))
        last = {name: frames[:1] for name, frames in clips.items()}
    if not rows:
        raise UserError("none of the videos on which --onnx-int8 measures accuracy can be decoded")
    labels = np.asarray(videos.source.columns["label"][np.array(rows)], dtype=np.int64)
    classes = {kind: {name: torch.cat(parts).numpy() for name, parts in of.items()} for kind, of in found.items()}
    return labels, classes, len(videos.rows) - len(rows), last


@torch.inference_mode()
def measure_time_ratio(first: Program, second: Program, inputs: tuple[torch.Tensor, ...]) -> float:
    """Measures the time of ``first`` over that of ``second``, in turns: the median of pairs, after one that does not count."""
    ratios: list[float] = []
    begun = time.perf_counter()
    while len(ratios) < 1 + TIMED_PAIRS and (len(ratios) < 2 or time.perf_counter() - begun < TIMED_SECONDS):
        seconds = []
        for program in (first, second):
            before = time.perf_counter()
            program(*inputs)
            seconds.append(time.perf_counter() - before)
        ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios[1:]))


def check_agreement(figures: Mapping[str, Int8Figures], videos: int) -> None:
    """Raises UserError if an int8 program gives another class than its float program for most videos."""
    useless = [
        f"{name}: the same class for {one.agreement:.1%} of {videos} videos, top-1 {one.int8_top1:.1%} of {one.float_top1:.1%}"
        for name, one in figures.items()
        if one.agreement < LEAST_AGREEMENT
    ]
    if useless:
        what = "int8 programs that give another class than the float ones for most videos are useless, so nothing is written"
        raise UserError(f"{what}: export without --onnx-int8:", useless)


def describe_int8(int8: Mapping[str, Any]) -> list[str]:
    """Describes the entry ``int8`` of programs.json, a line for each program, and notes on those that lose much."""
    lines, notes = [], []
    for name, content in int8["programs"].items():
        one = Int8Figures(**content)
        lines.append(
            f"{name}: top-1 {one.int8_top1:.1%}, float {one.float_top1:.1%}; the same class for {one.agreement:.1%}; "
            f"{one.int8_megabytes:.1f} MB, float {one.float_megabytes:.1f}; {one.time_ratio:.2f} of the float's time"
        )
        if one.lost_points > LOST_POINTS:
            right = f"{one.only_float_right} videos only float gets right, {one.only_int8_right} only int8"
            notes.append(f"note: {name} loses {one.lost_points:.1f} points of top-1, more than {LOST_POINTS:g} ({right})")
    data = int8["measured_on"]
    where = f"{int8['labeled_videos']} labeled {data['split']} videos of {data['source']} (of {data['chosen_from']})"
    ranges = f"ranges found on {int8['calibrated_on']['videos']} training videos"
    lines.append(f"measured on {where}; protocol: {data['protocol']}; {ranges}")
    return [*lines, *notes]


def _find_cpu_name() -> str:
    """Returns the processor's name; "" where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
