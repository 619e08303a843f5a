"""Both networks and their mean as ONNX files, and how onnxruntime runs them.

A file's inputs are ``primary_frames`` and ``auxiliary_frames``, or one of them, and its output is ``probabilities``.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from pipeline.config import STUDENTS
from pipeline.errors import UserError
from pipeline.export.network_programs import Program

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUT = "probabilities"
OPSET = 20
"""The version of ONNX's operators; onnxruntime has read it since 1.17."""


def require_onnx_packages(option: str) -> None:
    """Raises UserError if what writes and runs ONNX files is not installed: before anything is computed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{option} needs {', '.join(missing)}: pip install 'actnetformer[onnx]'")


def write_onnx_programs(traced: Mapping[str, ExportedProgram], folder: Path) -> dict[str, Path]:
    """Writes ``primary.onnx`` and ``auxiliary.onnx`` of both traced networks, and of these ``mean.onnx``; returns the paths."""
    paths = {name: folder / f"{name}.onnx" for name in (*STUDENTS, "mean")}
    for name in STUDENTS:
        with _without_progress():
            program = torch.onnx.export(
                traced[name], dynamo=True, verbose=False, opset_version=OPSET,
                input_names=[f"{name}_frames"], output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),  # the program is dynamic already; this is what the file calls it
            )  # fmt: skip
        assert program is not None
        for node in program.model.graph:
            node.metadata_props.clear()  # which line of which file on this machine it comes from
        program.save(str(paths[name]))
    average_programs(paths["primary"], paths["auxiliary"], paths["mean"])
    return paths


def average_programs(primary: Path, auxiliary: Path, mean: Path) -> None:
    """Joins the ONNX files of both networks to one that computes the mean of their probabilities."""
    import onnx

    models = {name: onnx.load(path) for name, path in zip(STUDENTS, (primary, auxiliary), strict=True)}
    parts = [
        onnx.compose.add_prefix(model, f"{name}/", rename_inputs=False, rename_outputs=True) for name, model in models.items()
    ]
    joined = onnx.compose.merge_models(parts[0], parts[1], io_map=[], outputs=[f"{name}/{OUTPUT}" for name in STUDENTS])
    half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
    joined.graph.initializer.append(half)
    joined.graph.node.extend([
        onnx.helper.make_node("Add", [f"{name}/{OUTPUT}" for name in STUDENTS], ["sum"]),
        onnx.helper.make_node("Mul", ["sum", "half"], [OUTPUT]),
    ])  # fmt: skip
    output = onnx.ValueInfoProto()
    output.CopyFrom(models["primary"].graph.output[0])
    del joined.graph.output[:]
    joined.graph.output.append(output)
    onnx.checker.check_model(joined)
    onnx.save(joined, mean)


def load_onnx_program(path: Path, keep_memory: bool = False) -> Program:
    """Opens an ONNX file on the CPU. With ``keep_memory`` it holds the memory of one call for the next, as onnxruntime does by
    default: a little faster, but several open files of large networks took 4 GB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = keep_memory
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*frames: torch.Tensor) -> torch.Tensor:
        values: Any = session.run([OUTPUT], {name: each.numpy() for name, each in zip(names, frames, strict=True)})[0]
        return torch.from_numpy(values)

    return run


@contextmanager
def _without_progress() -> Iterator[None]:
    """Silences what the exporter says of its own steps, which is not about the model."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
