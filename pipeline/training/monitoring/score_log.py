"""Records both students' class scores of unlabeled videos, exactly even after kills, in one Parquet file per checkpoint."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.clips.batch import Batch
from pipeline.collectives import gather
from pipeline.methods.parts.monitors import SCORES
from pipeline.run_folder.contents import make_scores_path


class ScoreLog:
    """Keeps the softmax scores of the weak views of every ``every``-th step, on the device until ``write``.

    Columns: ``step`` (from 1), ``video`` (row of the manifest), ``label`` (hidden; -1 where unknown), and K float32 for each
    student, and as ``file`` for ``method.file_label``. A step without unlabeled views leaves no row. Nothing but ``write``
    waits for the device.
    """

    def __init__(self, every: int, folder: Path, rank: int, step: int) -> None:
        self.every, self.folder, self.rank, self.first = every, folder, rank, step + 1
        self._kept: list[dict[str, torch.Tensor]] = []

    def keep(self, step: int, results: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Keeps the scores among a step's results, if the step is one to record; returns the other results."""
        scores = {key.partition("/")[2]: value for key, value in results.items() if key.startswith(f"{SCORES}/")}
        if scores and self.every and step % self.every == 0:
            known = {"video": batch.videos[:, 1:].flatten(), "label": batch.labels[:, 1:].flatten()}
            steps = torch.full_like(known["video"], step)
            self._kept.append({"step": steps, **known, **scores})
        return {key: value for key, value in results.items() if not key.startswith(f"{SCORES}/")}

    def write(self, step: int) -> None:
        """Writes what all workers kept since the last call into one file; all workers must call it together."""
        if self._kept:
            device = next(value.device for key, value in self._kept[0].items() if key not in ("step", "video", "label"))
            scores = {key: torch.cat([part[key] for part in self._kept]).to(device) for key in self._kept[0]}
            columns = {key: gather(value).cpu() for key, value in scores.items()}
            if self.rank == 0:
                _write(columns, make_scores_path(self.folder, self.first, step))
        self._kept, self.first = [], step + 1


def _write(columns: dict[str, torch.Tensor], path: Path) -> None:
    order = columns["step"].argsort(stable=True)  # gathered worker by worker
    arrays = {key: value[order].numpy() for key, value in columns.items()}
    table = pa.table({
        key: pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1]) if value.ndim == 2
        else pa.array(value, pa.int32()) for key, value in arrays.items()
    })  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table, scratch, compression="zstd", use_dictionary=False, write_statistics=False)
    os.replace(scratch, path)
