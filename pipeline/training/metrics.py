"""Monitors: summed on the device, added up over workers once a line, written by the first worker."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.clips.batch import Batch
from pipeline.clips.gauges import publish, store_figures
from pipeline.clips.plan import Plan
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run_folder import append_metrics, read_quarantine, write_quarantine
from pipeline.training.schedule import lr_factor


class MetricLog:
    """Means over the steps since the last line, exact over workers; also the record of quarantined videos.

    ``latest`` is the newest line. Nothing here synchronizes the device but ``write``.
    """

    def __init__(self, config: Config, folder: Path, plan: Plan, usable_videos: int, rank: int, world: int, step: int) -> None:
        self.config, self.folder, self.plan, self.usable_videos = config, folder, plan, usable_videos
        self.rank, self.world = rank, world
        self.latest: dict[str, Any] = {}
        self.quarantined: list[dict[str, Any]] = read_quarantine(folder)
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}
        self._new: list[dict[str, Any]] = []
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()
        self._rows, self._decoding, self._bytes = 0, 0.0, 0
        self._begun, self._begun_step = self._start, step

    def add(self, results: dict[str, torch.Tensor], waited: float, batch: Batch) -> None:
        """Add one step."""
        for name, value in results.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        self._waited += waited
        self._rows += len(batch.rows)
        self._decoding += batch.decode_seconds
        self._bytes += batch.clip_bytes
        self._new += batch.quarantined

    def write(self, step: int) -> None:
        """End a line at this step. Raises UserError on all workers when too many videos failed."""
        seconds = time.perf_counter() - self._start
        totals = self._over_workers({name: float(value) for name, value in self._sums.items()})
        record: dict[str, Any] = {"step": step, "epoch": round(self.plan.epoch(step * self.plan.rows_per_step), 4)}
        record |= _means(totals, {name: count * self.world for name, count in self._counts.items()})
        factor = lr_factor(step - 1, self.config.train)
        record |= {f"lr/{name}": getattr(self.config, name).optimizer.lr * factor for name in ("primary", "auxiliary")}
        record |= {
            "seconds/step": seconds / self._steps,
            "seconds/data": self._waited / self._steps,
            "clips_per_second": self._steps * self.plan.rows_per_step * self.plan.slots / seconds,
            "quarantined": len(self.quarantined),
            **self._stream(seconds),
        }
        publish(self.config.run.name, self.rank, record)
        self.latest = record
        if self.rank == 0:
            append_metrics(self.folder, record)
            print(self._line(record), flush=True)
        self._sums, self._counts, self._steps, self._waited, self._start = {}, {}, 0, 0.0, time.perf_counter()
        self._rows, self._decoding, self._bytes = 0, 0.0, 0
        self._check_quarantine()

    def _stream(self, seconds: float) -> dict[str, float]:
        """What this worker saw of the stream: its share of time in waiting, of its videos the seconds of decoding each,
        and megabytes of clips in a step, of all workers; on a cluster also the use of its node's object store."""
        rows = max(self._rows, 1)
        return {
            "seconds/data_share": self._waited / seconds,
            "seconds/decode_per_clip": self._decoding / (rows * self.plan.slots),
            "memory/step_megabytes": self._bytes / rows * self.plan.rows_per_step / 1e6,
            **store_figures(),
        }

    def unwritten(self) -> dict[str, Any]:
        """What the next line would lose if the run stopped here: called by all workers together, empty after a line."""
        if not self._steps:
            return {}
        totals = self._over_workers({name: float(value) for name, value in self._sums.items()})
        means = {name: total / self.world for name, total in totals.items()}
        return {"steps": self._steps, "sums": means, "counts": dict(self._counts)}

    def restore(self, unwritten: Mapping[str, Any], device: torch.device) -> None:
        """Go on with a line that ``unwritten`` was taken from, on however many workers."""
        if unwritten:
            self._steps, self._counts = unwritten["steps"], dict(unwritten["counts"])
            self._sums = {name: torch.tensor(value, device=device) for name, value in unwritten["sums"].items()}

    def _over_workers(self, sums: dict[str, float]) -> dict[str, float]:
        """Sum over workers; also gathers their newly quarantined videos, which are rare, when there are any."""
        failures = float(len(self._new))
        if self.world > 1:
            device = next(iter(self._sums.values())).device
            vector = torch.tensor([*sums.values(), failures], dtype=torch.float64, device=device)
            dist.all_reduce(vector)
            *totals, failures = vector.tolist()
            sums = dict(zip(sums, totals, strict=True))
        if failures:
            gathered: list[Any] = [self._new]
            if self.world > 1:
                gathered = [None] * self.world
                dist.all_gather_object(gathered, self._new)
            self.quarantined += [record for records in gathered for record in records]
            if self.rank == 0:
                write_quarantine(self.folder, self.quarantined)
        self._new = []
        return sums

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

    def _line(self, record: dict[str, Any]) -> str:
        total, step = self.config.train.steps, int(record["step"])
        left = (time.perf_counter() - self._begun) / max(1, step - self._begun_step) * (total - step)
        parts = [f"step {step}/{total}", f"loss {record['loss']:.3f}"]
        for name in sorted((name for name in record if name.startswith("mask_rate/")), reverse=True):
            direction = name.partition("/")[2]
            accuracy = record.get(f"pseudo_label_accuracy/{direction}")
            right = "" if accuracy is None else f" {accuracy:.0%} right"
            short = direction.replace("primary", "Z").replace("auxiliary", "A").replace("_to_", ">")
            parts.append(f"{short} {record[name]:.0%} kept{right}")
        wait = record["seconds/data"] / max(record["seconds/step"], 1e-9)
        parts += [f"{record['clips_per_second']:.0f} videos/s", f"data wait {wait:.0%}"]
        if self.quarantined:
            parts.append(f"{len(self.quarantined)} decodes failed")
        return "  ".join([*parts, f"{int(left // 60)}:{int(left % 60):02d} left"])


def _means(totals: dict[str, float], counts: dict[str, int]) -> dict[str, float | None]:
    """Means over the steps that had a value; accuracy of kept labels is a ratio of sums, None where none was kept."""
    means: dict[str, float | None] = {}
    for name, total in totals.items():
        head, _, direction = name.partition("/")
        if head == "kept_correct":
            known = totals[f"kept/{direction}"]
            means[f"pseudo_label_accuracy/{direction}"] = total / known if known else None
        elif head != "kept":
            means[name] = total / counts[name]
    return means
