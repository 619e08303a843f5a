"""Ray's setting up and ending of torch.distributed, with one failure more that its end survives."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class Backend(_TorchBackend):  # type: ignore[misc]
    """Ray expects that workers may have died when they are ended, but not that its own memory monitor did it: what was reserved
    for them then stayed so, and the next workers had no room."""

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Called by Ray before it ends the workers."""
        with contextlib.suppress(ray.exceptions.OutOfMemoryError):
            super().on_shutdown(worker_group, backend_config)


class Torch(TorchConfig):  # type: ignore[misc]
    """Its configuration."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Asked by Ray."""
        return Backend
