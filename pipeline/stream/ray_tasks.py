"""Functions that Ray's tasks run. They do not import torch, which would cost each process 2-4 s of CPU before it can begin."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import ray


def make_tickets(span: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the block numbers ``first`` .. ``last`` - 1 of a span, one ticket each."""
    for number in range(int(span["first"][0]), int(span["last"][0])):
        yield {"block": np.array([number])}


@lru_cache(maxsize=1)
def get_shared(reference: ray.ObjectRef) -> Any:
    """Returns the only item of the list that ``reference`` stands for, read once per process; arrays stay in shared memory."""
    (shared,) = ray.get(reference)
    return shared
