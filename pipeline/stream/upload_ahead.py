"""Batches on the training device, each of which travels there while the step before it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pipeline.clips.batch import Batch


class UploadAhead:
    """Batches whose clips are on the device; all else of a batch stays on the host.

    On a GPU the clips of the next batch are copied on a stream of their own, from pinned memory, while the default stream
    computes; nothing waits on the host. On a CPU a batch is what the iterator yields, when it is asked for.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.device = device
        self._batches = batches
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[Batch, Any] | None = None

    @property
    def ahead(self) -> bool:
        """Whether ``start_next`` does something."""
        return self._stream is not None

    def start_next(self) -> None:
        """Begin to copy the next batch, if there is one: call it when the step of the batch in hand has been launched."""
        if self.ahead and self._coming is None:
            batch = next(self._batches, None)
            self._coming = None if batch is None else self._send(batch)

    def take(self) -> Batch:
        """The next batch, safe to use on the device's current stream. Raises StopIteration after the last one."""
        if self._stream is None:
            return next(self._batches)
        batch, arrived = self._send(next(self._batches)) if self._coming is None else self._coming
        self._coming = None
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)  # on the device; the host goes on
        for clips in (batch.primary, batch.auxiliary):
            clips.record_stream(current)  # their memory was reserved on the other stream
        return batch

    def _send(self, batch: Batch) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._stream):
            there = {name: getattr(batch, name).to(self.device, non_blocking=True) for name in ("primary", "auxiliary")}
        return replace(batch, **there), self._stream.record_event()
