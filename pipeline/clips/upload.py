"""Copies the small arrays that a step needs to the training device, by one copy that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays of int64 and float32, by name."""
Tensors = dict[str, torch.Tensor]


def upload_arrays(parts: Sequence[Arrays], device: torch.device) -> list[Tensors]:
    """Returns the arrays as tensors on ``device``: on a GPU by one copy from pinned memory, on the CPU in the arrays' own
    memory."""
    if device.type == "cpu":
        return [{name: torch.from_numpy(array) for name, array in arrays.items()} for arrays in parts]
    flat = [array for arrays in parts for array in arrays.values()]
    integers = [array for array in flat if array.dtype == np.int64]
    floats = [array for array in flat if array.dtype == np.float32]
    assert len(integers) + len(floats) == len(flat), "arrays are int64 or float32"
    end = sum(array.nbytes for array in integers)
    packed = torch.empty(end + sum(array.nbytes for array in floats), dtype=torch.uint8, pin_memory=device.type == "cuda")
    if len(packed):
        np.concatenate([np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (*integers, *floats)],
                       out=packed.numpy())  # fmt: skip
    on_device = packed.to(device, non_blocking=True)
    tensors = {}
    halves = (integers, on_device[:end].view(torch.int64)), (floats, on_device[end:].view(torch.float32))
    for arrays_of_type, memory in halves:
        for array, tensor in zip(arrays_of_type, memory.split([array.size for array in arrays_of_type]), strict=True):
            tensors[id(array)] = tensor.view(array.shape)
    return [{name: tensors[id(array)] for name, array in arrays.items()} for arrays in parts]
