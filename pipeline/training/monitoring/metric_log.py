"""The metrics of a run: summed on the device, added up over workers once a line, written by the first worker."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.clips.batch import Batch
from pipeline.clips.plan import Plan
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run_folder.contents import write_quarantine
from pipeline.training.monitoring.metric_line import compute_line

ACTIVITIES = ("data", "compute", "collective", "checkpoint")
"""What a worker spends seconds on; ``collective`` is part of ``compute``."""


class MetricLog:
    """Computes means over the steps since the last line, exact over workers; it also records quarantined videos.

    ``latest`` is the newest line. Only ``write`` waits for the device.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        plan: Plan,
        usable_videos: int,
        rank: int,
        world: int,
        step: int,
        *,
        quarantined: Sequence[dict[str, Any]] = (),
        sinks: Sequence[Callable[[dict[str, Any]], None]] = (),
        read_stopwatch: Callable[[], Mapping[str, float]] = dict,
        read_store_figures: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        """Begins the first line after ``step``.

        ``quarantined`` are the records of the steps before, the same on all workers. On the first worker the ``sinks`` are
        called with every new line, and ``read_store_figures`` once a line for the use of its node's object store.
        ``read_stopwatch`` is called once a line for seconds beside those of ``add_seconds``.
        """
        self.config, self.folder, self.plan, self.usable_videos = config, folder, plan, usable_videos
        self.rank, self.world = rank, world
        self.latest: dict[str, Any] = {}
        self.quarantined = list(quarantined)
        self._sinks = tuple(sinks)
        self._read_stopwatch, self._read_store_figures = read_stopwatch, read_store_figures
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._spent: dict[str, float] = {}
        self._new: list[dict[str, Any]] = []
        self._steps, self._start = 0, time.perf_counter()
        self._here, self._rows, self._clips, self._decoding, self._bytes = 0, 0, 0, 0.0, 0
        self._begun, self._begun_step = self._start, step

    def add(self, results: dict[str, torch.Tensor], batch: Batch) -> None:
        """Adds the results of one step."""
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

    def add_seconds(self, activity: str, seconds: float) -> None:
        """Adds time that this worker spent, to be logged as ``seconds/{activity}`` of a step."""
        self._spent[activity] = self._spent.get(activity, 0.0) + seconds

    def write(self, step: int, more: Mapping[str, float]) -> None:
        """Ends a line at this step and hands it to the sinks; ``more`` are numbers to add to it, such as learning rates.

        All workers must call it together. Raises UserError on all of them if too many videos failed to decode.
        """
        seconds = time.perf_counter() - self._start
        totals = self._sum_over_workers()
        record: dict[str, Any] = {"step": step, "epoch": round(self.plan.compute_epoch(step * self.plan.rows_per_step), 4)}
        record |= compute_line(totals, {name: count * self.world for name, count in self._counts.items()})
        record |= {"seconds/step": seconds / self._here} | self._seconds_per_step()
        rate = (time.perf_counter() - self._begun) / max(1, step - self._begun_step)
        record |= {
            "clips_per_second": self._clips / max(self._rows, 1) * self._here * self.plan.rows_per_step / seconds,
            "eta_seconds": rate * (self.config.train.steps - step),
            "memory_mb": read_peak_memory_mb(next(iter(self._sums.values())).device),
            "quarantined": len(self.quarantined),
            **self._describe_stream(seconds),
            **more,
        }
        self.latest = record
        if self.rank == 0:
            for sink in self._sinks:
                sink(record)
        self._sums, self._counts, self._spent, self._steps, self._start = {}, {}, {}, 0, time.perf_counter()
        self._here, self._rows, self._clips, self._decoding, self._bytes = 0, 0, 0, 0.0, 0
        self._check_quarantine()

    def _seconds_per_step(self) -> dict[str, float]:
        """Computes this worker's seconds a step, over the steps that it took itself; 0 for what did not happen."""
        spent = {**dict.fromkeys(ACTIVITIES, 0.0), **self._spent}
        for activity, seconds in self._read_stopwatch().items():
            spent[activity] = spent.get(activity, 0.0) + seconds
        return {f"seconds/{activity}": seconds / self._here for activity, seconds in spent.items()}

    def _describe_stream(self, seconds: float) -> dict[str, float]:
        """Describes the stream as this worker saw it: the share of its time that it waited, the seconds that decoding a video
        took, and the megabytes of all workers' clips in a step; on a cluster also the use of its node's object store."""
        rows = max(self._rows, 1)
        return {
            "seconds/data_share": self._spent.get("data", 0.0) / seconds,
            "seconds/decode_per_clip": self._decoding / max(self._clips, 1),
            "memory/step_megabytes": self._bytes / rows * self.plan.rows_per_step / 1e6,
            **(self._read_store_figures() if self.rank == 0 else {}),  # Ray itself has every node's in Prometheus
        }

    def sum_unwritten(self) -> dict[str, Any]:
        """Computes what the next line would lose if the run stopped here, for its checkpoint; empty right after a line.

        All workers must call it together.
        """
        if not self._steps:
            return {}
        means = {name: [total / self.world for total in values] for name, values in self._sum_over_workers().items()}
        sums = {name: values if self._sums[name].ndim else values[0] for name, values in means.items()}
        return {"steps": self._steps, "sums": sums, "counts": dict(self._counts)}

    def restore(self, unwritten: Mapping[str, Any], device: torch.device) -> None:
        """Continues the line that ``sum_unwritten`` was taken from, on however many workers."""
        if unwritten:
            self._steps, self._counts = unwritten["steps"], dict(unwritten["counts"])
            self._sums = {name: torch.tensor(value, device=device) for name, value in unwritten["sums"].items()}

    def _sum_over_workers(self) -> dict[str, list[float]]:
        """Adds up the sums of all workers with one copy to the host; also gathers their newly quarantined videos."""
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


def read_peak_memory_mb(device: torch.device) -> float:
    """Returns the most MiB that this worker has used so far: of the GPU's memory, or on a CPU of the process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 2**20)
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
