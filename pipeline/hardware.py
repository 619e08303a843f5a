"""What a machine can compute with, whether it has what a configuration needs, and which device this process uses."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from pipeline.config import Config, TrainSection
from pipeline.errors import UserError

CPP_COMPILERS, C_COMPILERS = ("g++", "clang++", "c++"), ("gcc", "clang", "cc")
POOR_CUDNN = range(90800, 91500)
"""Versions whose three-dimensional convolutions in half precision are wrong for large clips (pytorch/pytorch#163539); torch 2.9
goes around them by a kernel that is many times slower and takes several times the memory (#166643)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """The hardware of one machine, as a process on it sees it."""

    gpus: tuple[str, ...] = ()
    """The names of the GPUs that torch can use."""
    gpu_memory: int = 0
    """The memory, in bytes, of the GPU that has the least."""
    bf16: bool = False
    """Whether all of the GPUs compute in bf16."""
    cudnn: int = 0
    """The version of cuDNN as torch reports it: 91500 is 9.15.0; 0 without cuDNN."""
    problem: str = ""
    """The reason why torch cannot use CUDA, in torch's words; empty if it can."""
    unusable_gpu: bool = False
    """Whether there is a GPU that cannot be used, because its driver does not answer or is too old."""
    cpp_compiler: bool = True
    """Whether a C++ compiler that torch.compile finds is installed."""
    gpu_compiler: bool = True
    """Whether Triton, and the C compiler that it calls, are installed."""


def read_hardware() -> Hardware:
    """Reads the hardware from torch and the search path; the only function that does."""
    cpp = bool(os.environ.get("CXX")) or any(map(shutil.which, CPP_COMPILERS))
    has_triton = importlib.util.find_spec("triton") is not None  # importing it takes half a second
    gpu_compiler = has_triton and (bool(os.environ.get("CC")) or any(map(shutil.which, C_COMPILERS)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        problem = _describe_problem([str(warning.message) for warning in caught])
        return Hardware((), 0, False, 0, problem, bool(caught), cpp, gpu_compiler)
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    bf16 = torch.version.hip is not None or all(gpu.major >= 8 for gpu in gpus)
    names = tuple(gpu.name for gpu in gpus)
    cudnn = torch.backends.cudnn.version() or 0 if torch.version.hip is None else 0
    return Hardware(names, min(gpu.total_memory for gpu in gpus), bf16, cudnn, "", False, cpp, gpu_compiler)


def _describe_problem(warned: list[str]) -> str:
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    return " ".join(" ".join(warned).split()) or "torch finds no GPU with an NVIDIA driver on this machine"


def is_on_gpu(config: Config, hardware: Hardware) -> bool:
    """Returns whether a process on this machine computes on its GPU: as ``scale.gpu`` says, or by default if there is one.

    Raises UserError if ``scale.gpu=true`` cannot be followed, and if there is a GPU that cannot be used.
    """
    if config.scale.gpu is False:
        return False
    if hardware.gpus:
        return True
    if config.scale.gpu or hardware.unusable_gpu:
        asked = "scale.gpu=true: " if config.scale.gpu else ""
        raise UserError(
            f"{asked}CUDA cannot be used: {hardware.problem}. Install or update the driver, or a torch that fits it; "
            "scale.gpu=false computes on the CPU"
        )
    return False


def check_hardware(config: Config, hardware: Hardware, gpu: bool) -> None:
    """Raises UserError if the GPU lacks the run's precision. Warns of a cuDNN version that is wrong or slow."""
    if gpu and config.train.precision != "fp32" and hardware.cudnn in POOR_CUDNN:
        _warn_of_cudnn(hardware.cudnn, config.train.precision)
    if gpu and config.train.precision == "bf16" and not hardware.bf16:
        raise UserError(
            f"train.precision=bf16: the GPU ({', '.join(dict.fromkeys(hardware.gpus))}) does not compute in bf16, which needs "
            "NVIDIA's Ampere or a later one: train with train.precision=fp16; scale.gpu=false computes on the CPU"
        )


@cache  # once in a process
def _warn_of_cudnn(version: int, precision: str) -> None:
    shown = f"{version // 10000}.{version // 100 % 100}"
    _log.warning(
        "train.precision=%s with cuDNN %s: three-dimensional convolutions in half precision can be wrong, or many "
        "times slower with torch 2.9: install cuDNN 9.15 or newer", precision, shown
    )  # fmt: skip


def check_compiler(config: Config, hardware: Hardware, gpu: bool) -> None:
    """Raises UserError if ``train.compile`` needs a compiler that is missing."""
    if config.train.compile == "inductor" and not (hardware.gpu_compiler if gpu else hardware.cpp_compiler):
        missing = "Triton and a C compiler (gcc)" if gpu else "a C++ compiler (g++)"
        raise UserError(
            f"train.compile=inductor needs {missing}, which this machine lacks: install it, or set train.compile=off"
        )


def configure_torch(train: TrainSection) -> None:
    """Sets torch's global switches, in the same way for training, evaluation and prediction: fast unless
    ``train.deterministic``.

    On a GPU, fp32 products and convolutions run on the tensor cores (TF32: 10 bits of mantissa instead of 23, sums in fp32),
    and cuDNN tries its algorithms on the first clips of each shape. The CPU's results do not depend on the switches.
    """
    if torch.are_deterministic_algorithms_enabled() != train.deterministic:  # imports torch._dynamo, which takes 3 s
        torch.use_deterministic_algorithms(train.deterministic)
    if train.deterministic:  # cuBLAS reads it at its first product; the value is one of the two that NVIDIA names
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not train.deterministic
    # not by cuda.matmul.fp32_precision alone: torch.compile reads the older setting, which would then contradict it
    torch.set_float32_matmul_precision("highest" if train.deterministic else "high")
    # not by cudnn.conv.fp32_precision: recurrent layers' would differ, and then the older name raises when it is read
    torch.backends.cudnn.allow_tf32 = not train.deterministic
    if hasattr(torch.backends.mkldnn, "matmul"):  # since torch 2.9
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # of the CPU


def choose_device(config: Config) -> torch.device:
    """Returns the GPU if this machine has one and ``scale.gpu`` does not forbid it, else the CPU; the only function that
    decides.

    Raises UserError if the GPU that ``scale.gpu=true`` asks for cannot be used, or lacks what the configuration needs.
    """
    hardware = read_hardware()
    gpu = is_on_gpu(config, hardware)
    check_hardware(config, hardware, gpu)
    return torch.device("cuda" if gpu else "cpu")
