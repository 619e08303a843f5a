"""How Ray sets up and ends torch.distributed, mended so that it also survives workers that Ray ended for lack of memory."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class SurvivingBackend(_TorchBackend):  # type: ignore[misc]
    """Ends a group of workers even if Ray's memory monitor ended one of them.

    Ray itself expects workers that have died, but not for this reason: what was reserved for them then stayed reserved, and
    the next workers had no room.
    """

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Ends the process group; Ray calls it before it ends the workers."""
        with contextlib.suppress(ray.exceptions.OutOfMemoryError):
            super().on_shutdown(worker_group, backend_config)


class SurvivingTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's configuration of torch.distributed, with ``SurvivingBackend``."""

    @property
    def backend_cls(self) -> type[SurvivingBackend]:
        """Returns the class that Ray sets the workers up with."""
        return SurvivingBackend
