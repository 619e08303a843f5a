"""ONNX files with 8-bit integers in place of floats, by onnxruntime's static quantization after training.

Weights and activations of convolutions and matrix products become int8; norms, softmax and views stay float. A weight has a
scale for each output channel, an activation one scale, from the smallest and largest value that it has on real clips. The
first convolution, which sees the pixels, stays float: on clips of people it lost more than all others together, and took more
time than in float (docs/models.md). Signed activations and weights are what onnxruntime's manual recommends to try first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import STUDENTS
from pipeline.export.network_programs import Clips
from pipeline.export.onnx_programs import average_programs
from pipeline.progress import show_progress

QUANTIZED = ["Conv", "MatMul", "Gemm"]


def write_int8_programs(programs: Mapping[str, Path], batches: Sequence[Clips], folder: Path) -> dict[str, Path]:
    """Writes ``primary_int8.onnx`` and ``auxiliary_int8.onnx`` from both networks' files, and ``mean_int8.onnx`` of these.

    ``batches`` are real clips by which the ranges of activations are found. Returns the paths.
    """
    paths = {name: folder / f"{name}_int8.onnx" for name in (*STUDENTS, "mean")}
    for name in STUDENTS:
        # one at a time: the calibrator holds all activations of what it is given, 2 GB of one clip of the paper's networks
        clips = [clip[None].numpy() for batch in batches for clip in batch[name]]
        shown = show_progress(clips, len(clips), f"{name}: calibrated")
        _quantize(programs[name], ({f"{name}_frames": clip} for clip in shown), paths[name])
    average_programs(paths["primary"], paths["auxiliary"], paths["mean"])
    return paths


def _quantize(program: Path, inputs: Iterator[dict[str, NDArray[np.uint8]]], target: Path) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no annotations
        def get_next(self) -> Any:
            return next(inputs, None)

    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "merged.onnx"  # norms are multiplied into convolutions
        quant_pre_process(str(program), str(merged), skip_symbolic_shape=True)
        first = next(node.name for node in onnx.load(merged).graph.node if node.op_type == "Conv")
        quantize_static(
            str(merged), str(target), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=[first], per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
