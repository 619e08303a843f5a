"""What both ways of streaming share: how steps are dealt out in blocks, and how decoded columns become a batch of tensors."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Deal, largest_share
from pipeline.clips.source import Columns, Source, failures_of
from pipeline.config import Config


def make_deal(source: Source, config: Config, first_step: int, workers: int) -> Deal:
    """The blocks of all steps from ``first_step`` on; they double until they hold ``data.clips_per_block`` videos."""
    clips = largest_share(source.plan.rows_per_step, workers) * source.plan.slots
    steps_per_block = -(-config.data.clips_per_block // clips)
    return Deal(first_step, config.train.steps, source.plan.rows_per_step, workers, steps_per_block)


def to_batch(columns: Columns, pin: bool = False) -> Batch:
    """Columns of ``Source.rows`` as tensors, without rows that stand for none; one copy, into pinned memory if wanted."""
    there = columns["row"] >= 0
    if not there.all():
        columns = {name: column[there] for name, column in columns.items()}

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
        quarantined=failures_of(columns),
        decode_seconds=float(np.sum(columns["seconds"])),
    )
