"""Small arrays reach the device by one copy, whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.clips.upload import Arrays, upload_arrays

PARTS: list[Arrays] = [
    {"maps": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "clips": np.array([3, -1, 1 << 40])},
    {},
    {"labels": np.array([[5, 6]]).T, "none": np.empty((0, 4), dtype=np.float32)},
]


class _Copies(TorchDispatchMode):
    """Counts copies from the host to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.number += function is torch.ops.aten._to_copy.default and result.device.type != "cpu"
        return result


def test_on_the_cpu_arrays_are_their_own_memory() -> None:
    (first, nothing, last) = upload_arrays(PARTS, torch.device("cpu"))
    assert nothing == {}
    for name, tensor in {**first, **last}.items():
        array = {**PARTS[0], **PARTS[2]}[name]
        assert np.shares_memory(tensor.numpy(), array) or not array.size
        assert np.array_equal(tensor.numpy(), array)


def test_elsewhere_all_arrays_share_one_copy_and_keep_their_shapes_and_types() -> None:
    with _Copies() as copies:
        first, nothing, last = upload_arrays(PARTS, torch.device("meta"))
    assert copies.number == 1
    assert nothing == {}
    for name, tensor in {**first, **last}.items():
        array = {**PARTS[0], **PARTS[2]}[name]
        assert (tuple(tensor.shape), str(tensor.dtype)) == (array.shape, f"torch.{array.dtype}")


def test_the_packed_copy_holds_every_value(monkeypatch: Any) -> None:
    """The way that a GPU's arrays go, with the CPU standing in for it."""

    class Elsewhere:
        type = "elsewhere"

    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self.clone())
    first, _, last = upload_arrays(PARTS, Elsewhere())  # type: ignore[arg-type]
    for name, tensor in {**first, **last}.items():
        assert np.array_equal(tensor.numpy(), {**PARTS[0], **PARTS[2]}[name])
