"""What machine this is, which attention kernel it uses, and what its memory and its tensor cores can do at most."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.hardware import POOR_CUDNN
from tests.gpu.table import Row, error_in_a_line, guarded, measured

PACKAGES = ("torch", "torchvision", "timm", "pyarrow", "numpy", "pydantic", "safetensors", "av", "decord", "ray", "triton")
KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip


def describe(device: torch.device, small: bool, end: float) -> Iterator[Row]:
    """Versions, the device, attention kernels and ceilings."""
    yield Row("Python", platform.python_version())
    for name in PACKAGES:
        yield _version(name)
    yield Row("CPU cores", torch.get_num_threads())
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        yield Row("GPU", found.name, note=f"compute capability {found.major}.{found.minor}")
        yield Row("GPU memory", found.total_memory / 2**30, "GiB")
        yield Row("CUDA of torch", str(torch.version.cuda))
        cudnn = torch.backends.cudnn.version() or 0
        yield Row("cuDNN", str(cudnn), goal="91500 or newer", met=cudnn not in POOR_CUDNN)
    yield from guarded("attention", lambda: _attention(device, small))
    yield from guarded("ceilings", lambda: _ceilings(device, small))


def _version(package: str) -> Row:
    try:
        return Row(package, str(getattr(importlib.import_module(package), "__version__", "installed")))
    except ModuleNotFoundError as error:
        if error.name == package:
            return Row(package, None, note="not installed")
        return Row(package, "broken", note=error_in_a_line(error))
    except Exception as error:  # a package that does not fit another one may raise anything when it is imported
        return Row(package, "broken", note=error_in_a_line(error))


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of every call after two that warm up: between events on a GPU, by the clock elsewhere."""
    for _ in range(2):
        work()
    found = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1000)
        else:
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
    return found


def _attention(device: torch.device, small: bool) -> Iterator[Row]:
    """Milliseconds of attention over the patches of frames and over the frames of clips, by kernel, both passes, in the
    auxiliary's shapes and layouts at 40 clips."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # over time, heads of a place count as heads of the clip
    clips, frames, heads, patches, width = (1, 8, 6, 16, 64) if small else (40, 8, 6, 196, 64)
    space = torch.randn(clips * frames, patches + 1, heads, width, device=device, dtype=dtype)
    time_ = torch.randn(clips, frames, patches * heads, width, device=device, dtype=dtype)
    for what, tokens in {"space": space, "time": time_}.items():
        query = tokens.requires_grad_()

        def work(query: torch.Tensor = query) -> None:
            seen = query.transpose(1, 2)  # not contiguous, as in the student
            F.scaled_dot_product_attention(seen, seen, seen).sum().backward()

        yield measured(f"attention over {what}, torch's choice", [1e3 * value for value in seconds_of(work, device, 5)], "ms")
        for name, kernel in KERNELS.items():
            try:
                with sdpa_kernel(kernel):
                    times = seconds_of(work, device, 5)
                yield measured(f"attention over {what}, {name}", [1e3 * value for value in times], "ms")
            except RuntimeError as error:  # not every kernel takes every shape
                yield Row(f"attention over {what}, {name}", None, note=error_in_a_line(error))


def _ceilings(device: torch.device, small: bool) -> Iterator[Row]:
    side, number = (256, 1 << 20) if small else (8192, 1 << 28)
    source = torch.empty(number, dtype=torch.uint8, device=device)
    copies = seconds_of(lambda: source.clone(), device, 5)
    yield measured("copy within the device, read and written", [2e-9 * number / value for value in copies], "GB/s")
    if device.type == "cuda":
        pinned = torch.empty(number, dtype=torch.uint8, pin_memory=True)
        uploads = seconds_of(lambda: source.copy_(pinned, non_blocking=True), device, 5)
        yield measured("copy from pinned memory to the device", [1e-9 * number / value for value in uploads], "GB/s")
    kinds = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, (dtype, tf32) in kinds.items():
        if device.type != "cuda" and name != "fp32":
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        one = torch.randn(side, side, device=device, dtype=dtype)
        products = seconds_of(lambda one=one: one @ one, device, 5)  # type: ignore[misc]
        yield measured(f"product of matrices, {name}", [2e-12 * side**3 / value for value in products], "TFLOP/s")
    torch.backends.cuda.matmul.allow_tf32 = before
