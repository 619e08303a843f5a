"""What Ray's tasks run, without torch: importing it costs each of their processes 2-4 s of CPU before the first block."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import ray


def tickets(span: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers ``first`` .. ``last`` - 1, one by one."""
    for number in range(int(span["first"][0]), int(span["last"][0])):
        yield {"block": np.array([number])}


@lru_cache(maxsize=1)
def shared_by_tasks(reference: ray.ObjectRef) -> Any:
    """What ``[it]`` was put as, unpacked once in a process: its arrays stay in the node's shared memory."""
    (shared,) = ray.get(reference)
    return shared
