"""Monitors: summed on the device, added up over workers once a line, written by the first worker."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run_folder.contents import read_quarantine, write_quarantine
from pipeline.training.monitoring.metric_line import derived
from pipeline.training.schedule import lr_factor

KINDS = ("data", "compute", "collective", "checkpoint")
"""What a worker spends seconds on; ``collective`` is part of ``compute``."""


class MetricLog:
    """Means over the steps since the last line, exact over workers; also the record of quarantined videos.

    ``latest`` is the newest line. Nothing here synchronizes the device but ``write``.
    """

    def __init__(self, config: Config, folder: Path, plan: Plan, usable_videos: int, rank: int, world: int, step: int) -> None:
        self.config, self.folder, self.plan, self.usable_videos = config, folder, plan, usable_videos
        self.rank, self.world = rank, world
        self.latest: dict[str, Any] = {}
        self.quarantined: list[dict[str, Any]] = read_quarantine(folder)
        self.outlets: list[Callable[[dict[str, Any]], None]] = []
        """Called with every new line, on the first worker."""
        self.watch: Callable[[], Mapping[str, float]] = dict
        """Asked once a line for more of what ``spent`` counts."""
        self.store_figures: Callable[[], Mapping[str, float]] = dict
        """Asked once a line, on the first worker, for the use of its node's object store."""
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._spent: dict[str, float] = {}
        self._new: list[dict[str, Any]] = []
        self._steps, self._start = 0, time.perf_counter()
        self._here, self._rows, self._clips, self._decoding, self._bytes = 0, 0, 0, 0.0, 0
        self._begun, self._begun_step = self._start, step

    def add(self, results: dict[str, torch.Tensor], batch: Batch) -> None:
        """Add one step."""
        for name, value in results.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        self._here += 1
        self._rows += len(batch.rows)
        self._clips += int((batch.videos >= 0).sum())  # not the slots that method.supervised_steps leaves empty
        self._decoding += batch.decode_seconds
        self._bytes += batch.clip_bytes
        self._new += batch.quarantined

    def spent(self, what: str, seconds: float) -> None:
        """Count time of this worker, which becomes ``seconds/{what}`` a step."""
        self._spent[what] = self._spent.get(what, 0.0) + seconds

    def write(self, step: int, more: Mapping[str, float] = {}) -> None:
        """End a line at this step, with ``more`` in it. Raises UserError on all workers when too many videos failed."""
        seconds = time.perf_counter() - self._start
        totals = self._over_workers()
        record: dict[str, Any] = {"step": step, "epoch": round(self.plan.epoch(step * self.plan.rows_per_step), 4)}
        record |= derived(totals, {name: count * self.world for name, count in self._counts.items()})
        factor = lr_factor(step - 1, self.config.train)
        record |= {f"lr/{name}": getattr(self.config, name).optimizer.lr * factor for name in ("primary", "auxiliary")}
        record |= {"seconds/step": seconds / self._here} | self._seconds()
        rate = (time.perf_counter() - self._begun) / max(1, step - self._begun_step)
        record |= {
            "clips_per_second": self._clips / max(self._rows, 1) * self._here * self.plan.rows_per_step / seconds,
            "eta_seconds": rate * (self.config.train.steps - step),
            "memory_mb": peak_memory_mb(next(iter(self._sums.values())).device),
            "quarantined": len(self.quarantined),
            **self._stream(seconds),
            **more,
        }
        self.latest = record
        if self.rank == 0:
            for outlet in self.outlets:
                outlet(record)
        self._sums, self._counts, self._spent, self._steps, self._start = {}, {}, {}, 0, time.perf_counter()
        self._here, self._rows, self._clips, self._decoding, self._bytes = 0, 0, 0, 0.0, 0
        self._check_quarantine()

    def _seconds(self) -> dict[str, float]:
        """Of this worker, of a step that it took itself; 0 for what did not happen since the last line."""
        spent = {**dict.fromkeys(KINDS, 0.0), **self._spent}
        for what, seconds in self.watch().items():
            spent[what] = spent.get(what, 0.0) + seconds
        return {f"seconds/{what}": seconds / self._here for what, seconds in spent.items()}

    def _stream(self, seconds: float) -> dict[str, float]:
        """What this worker saw of the stream: its share of time in waiting, of its videos the seconds of decoding each,
        and megabytes of clips in a step, of all workers; on a cluster also the use of its node's object store."""
        rows = max(self._rows, 1)
        return {
            "seconds/data_share": self._spent.get("data", 0.0) / seconds,
            "seconds/decode_per_clip": self._decoding / max(self._clips, 1),
            "memory/step_megabytes": self._bytes / rows * self.plan.rows_per_step / 1e6,
            **(self.store_figures() if self.rank == 0 else {}),  # Ray itself has every node's in Prometheus
        }

    def unwritten(self) -> dict[str, Any]:
        """What the next line would lose if the run stopped here: called by all workers together, empty after a line."""
        if not self._steps:
            return {}
        means = {name: [total / self.world for total in values] for name, values in self._over_workers().items()}
        sums = {name: values if self._sums[name].ndim else values[0] for name, values in means.items()}
        return {"steps": self._steps, "sums": sums, "counts": dict(self._counts)}

    def restore(self, unwritten: Mapping[str, Any], device: torch.device) -> None:
        """Go on with a line that ``unwritten`` was taken from, on however many workers."""
        if unwritten:
            self._steps, self._counts = unwritten["steps"], dict(unwritten["counts"])
            self._sums = {name: torch.tensor(value, device=device) for name, value in unwritten["sums"].items()}

    def _over_workers(self) -> dict[str, list[float]]:
        """Sums over workers, in one copy to the host; also gathers their newly quarantined videos, which are rare."""
        sizes = [value.numel() for value in self._sums.values()]
        failures = torch.tensor([float(len(self._new))])
        parts = [value.flatten().double() for value in self._sums.values()]
        vector = torch.cat([*parts, failures.to(parts[0])])
        if self.world > 1:
            dist.all_reduce(vector)
        *totals, number = vector.tolist()
        if number:
            gathered: list[Any] = [self._new]
            if self.world > 1:
                gathered = [None] * self.world
                dist.all_gather_object(gathered, self._new)
            self.quarantined += [record for records in gathered for record in records]
            if self.rank == 0:
                write_quarantine(self.folder, self.quarantined)
        self._new = []
        ends = list(accumulate(sizes))
        return {name: totals[end - size : end] for name, size, end in zip(self._sums, sizes, ends, strict=True)}

    def _check_quarantine(self) -> None:
        videos = {record["video"] for record in self.quarantined}
        limit = self.config.data.max_quarantined_share
        if len(videos) > limit * self.usable_videos:
            last = self.quarantined[-1]
            raise UserError(
                f"{len(videos)} of {self.usable_videos} videos failed to decode, more than data.max_quarantined_share={limit} "
                f"allows; {self.folder / 'quarantine.parquet'} lists them, the last: {last['uri']}: {last['reason']}. Run "
                "jobs.prepare again to have them left out, or raise the share"
            )


def peak_memory_mb(device: torch.device) -> float:
    """Most MiB that this worker has had: of the GPU's memory, or of the process's on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**20)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
