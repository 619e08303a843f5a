"""What both streams, on Ray and in this process, share: the layout of blocks, and the way from decoded columns to tensors."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import BlockLayout, compute_largest_share
from pipeline.clips.source import Columns, VideoSource, read_quarantine_records
from pipeline.config import Config


def lay_out_blocks(source: VideoSource, config: Config, first_step: int, workers: int) -> BlockLayout:
    """Computes the blocks of all steps from ``first_step`` on. Their sizes double up to ``data.clips_per_block`` videos."""
    clips = compute_largest_share(source.plan.rows_per_step, workers) * source.plan.slots
    steps_per_block = -(-config.data.clips_per_block // clips)
    return BlockLayout(first_step, config.train.steps, source.plan.rows_per_step, workers, steps_per_block)


def to_batch(columns: Columns, pin: bool = False) -> Batch:
    """Converts columns of ``Source.rows`` to tensors and leaves out rows that are -1.

    The data are copied once, into page-locked memory if ``pin`` is true.
    """
    is_row = columns["row"] >= 0
    if not is_row.all():
        columns = {name: column[is_row] for name, column in columns.items()}

    def tensor(name: str) -> torch.Tensor:
        # blocks are read-only views of the object store: copied, so that they can be released
        value = np.asarray(columns[name])
        copy = torch.empty(value.shape, dtype=torch.from_numpy(np.empty(0, value.dtype)).dtype, pin_memory=pin)
        np.copyto(copy.numpy(), value)
        return copy

    return Batch(
        rows=tensor("row"),
        videos=tensor("video"),
        labels=tensor("label"),
        primary=tensor("primary"),
        auxiliary=tensor("auxiliary"),
        quarantined=read_quarantine_records(columns),
        decode_seconds=float(np.sum(columns["seconds"])),
    )
