"""What machine this is, which attention kernel it uses, and what its memory and its tensor cores can do at most."""

from __future__ import annotations

import importlib
import platform
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.table import Row, measured

PACKAGES = ("torch", "torchvision", "timm", "pyarrow", "numpy", "pydantic", "safetensors", "av", "decord", "ray", "triton")
KERNELS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
}  # fmt: skip


def describe(device: torch.device, small: bool) -> list[Row]:
    """Versions, the device, attention kernels and ceilings."""
    rows = [Row("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append(Row(name, str(getattr(importlib.import_module(name), "__version__", "installed"))))
        except ImportError:
            rows.append(Row(name, None, note="not installed"))
    rows.append(Row("CPU cores", torch.get_num_threads()))
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        rows += [
            Row("GPU", found.name, note=f"compute capability {found.major}.{found.minor}"),
            Row("GPU memory", found.total_memory / 2**30, "GiB"),
            Row("CUDA of torch", str(torch.version.cuda)),
            Row("cuDNN", str(torch.backends.cudnn.version())),
        ]
    return rows + _attention(device, small) + _ceilings(device, small)


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


def _attention(device: torch.device, small: bool) -> list[Row]:
    """Seconds of attention over the patches of a clip and over its frames, by kernel, forward and backward."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = []
    for what, (batch, tokens) in {"space": (8 if small else 320, 197), "time": (98 if small else 7840, 8)}.items():
        query = torch.randn(batch, 6, tokens, 64, device=device, dtype=dtype, requires_grad=True)

        def work(query: torch.Tensor = query) -> None:
            F.scaled_dot_product_attention(query, query, query).sum().backward()

        rows.append(measured(f"attention over {what}, torch's choice", [1e3 * s for s in seconds_of(work, device, 5)], "ms"))
        for name, kernel in KERNELS.items():
            try:
                with sdpa_kernel(kernel):
                    times = seconds_of(work, device, 5)
                rows.append(measured(f"attention over {what}, {name}", [1e3 * value for value in times], "ms"))
            except RuntimeError as error:
                rows.append(Row(f"attention over {what}, {name}", None, note=str(error).splitlines()[0][:80]))
    return rows


def _ceilings(device: torch.device, small: bool) -> list[Row]:
    side, number = (256, 1 << 20) if small else (8192, 1 << 28)
    rows = []
    source = torch.empty(number, dtype=torch.uint8, device=device)
    copies = seconds_of(lambda: source.clone(), device, 5)
    rows.append(measured("copy within the device, read and written", [2e-9 * number / value for value in copies], "GB/s"))
    if device.type == "cuda":
        pinned = torch.empty(number, dtype=torch.uint8, pin_memory=True)
        uploads = seconds_of(lambda: source.copy_(pinned, non_blocking=True), device, 5)
        rows.append(measured("copy from pinned memory to the device", [1e-9 * number / value for value in uploads], "GB/s"))
    kinds = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, (dtype, tf32) in kinds.items():
        if device.type != "cuda" and name != "fp32":
            continue
        torch.backends.cuda.matmul.allow_tf32 = tf32
        one = torch.randn(side, side, device=device, dtype=dtype)
        products = seconds_of(lambda one=one: one @ one, device, 5)  # type: ignore[misc]
        rows.append(measured(f"product of matrices, {name}", [2e-12 * side**3 / value for value in products], "TFLOP/s"))
    torch.backends.cuda.matmul.allow_tf32 = before
    return rows
