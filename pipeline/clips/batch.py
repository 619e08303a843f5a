"""The batch, which goes from the decoder to the training step.

Shape letters of this project: B plan rows of one worker's step, S = 1 + mu slots of a row (slot 0 labeled), N clips,
T frames, H and W pixels, C channels, K classes, D features. ``clips_NTHWC`` is a tensor of that shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """Decoded clips of B plan rows, one worker's share of an optimizer step."""

    rows: torch.Tensor
    """[B] int64 run rows: row n is the n-th that the run trains."""
    videos: torch.Tensor
    """[B, S] int64 manifest rows of the videos that were decoded."""
    labels: torch.Tensor
    """[B, S] int64 in 0..K-1, or -1 where unknown. Slots from 1 on are hidden labels: for monitors only, never for a loss."""
    primary: torch.Tensor
    """[B, S, T, H, W, 3] uint8 RGB at the primary's frame rate; H = W = data.decode_size."""
    auxiliary: torch.Tensor
    """[B, S, T, H, W, 3] uint8 RGB at the auxiliary's frame rate."""
    quarantined: tuple[dict[str, object], ...] = ()
    """A record for each video that failed to decode in these rows: row, slot, video, uri, reason, replaced_by."""
    decode_seconds: float = 0.0
    """How long decoding these rows took, added up over videos, wherever it was done."""

    @property
    def clip_bytes(self) -> int:
        """The number of bytes of both students' clips."""
        return self.primary.nbytes + self.auxiliary.nbytes
