"""Copies each batch to the training device while the step before it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from pipeline.clips.batch import Batch


class UploadAhead:
    """Yields batches whose clips are on the device; everything else in a batch stays on the host.

    On a GPU the clips of the next batch are copied from pinned memory on a CUDA stream of their own while the default stream
    computes, and the host does not wait. On a CPU, batches come from the iterator unchanged, when they are asked for.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self.device = device
        self._batches = batches
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: tuple[Batch, Any] | None = None

    @property
    def is_ahead(self) -> bool:
        """Whether batches are copied ahead, as on a GPU; otherwise ``start_next`` does nothing."""
        return self._stream is not None

    def start_next(self) -> None:
        """Starts to copy the next batch, if there is one. Call it once the current batch's step has been launched."""
        if self.is_ahead and self._next is None:
            batch = next(self._batches, None)
            self._next = None if batch is None else self._send(batch)

    def take(self) -> Batch:
        """Returns the next batch, safe to use on the device's current stream. Raises StopIteration after the last one."""
        if self._stream is None:
            return next(self._batches)
        batch, arrived = self._send(next(self._batches)) if self._next is None else self._next
        self._next = None
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)  # on the device; the host goes on
        for clips in (batch.primary, batch.auxiliary):
            clips.record_stream(current)  # their memory was allocated on the other stream
        return batch

    def _send(self, batch: Batch) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._stream):
            clips = {name: getattr(batch, name).to(self.device, non_blocking=True) for name in ("primary", "auxiliary")}
        return replace(batch, **clips), self._stream.record_event()
