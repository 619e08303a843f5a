"""``python -m jobs.bench stream|views|manifest``: speed against a floor measured in the same run, or growth with size."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
import ray.data
import torch

from jobs.command import DONE, run
from pipeline.clips.modalities import Modality, check_modalities, derive
from pipeline.clips.plan import worker_rows
from pipeline.clips.source import Source, open_source
from pipeline.clips.stream import ray_stream, steps_per_block
from pipeline.clips.views import center_views, strong_views, weak_views
from pipeline.cluster import connect
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.manifest.scale import measure_sizes

PROCESSES = 2
"""Of the floor, and consumers of the stream."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its figures; with ``--json`` one JSON object comes last on standard output."""
    arguments = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    arguments.add_argument(
        "what", choices=["stream", "views", "manifest"],
        help="stream: Ray Data stream over two plain processes that only decode; views: each kind of view on random clips; "
        "manifest: time and memory by --rows",
    )  # fmt: skip
    arguments.add_argument("--rows", default="10000,100000,1000000", metavar="N,N", help="sizes (default: %(default)s)")
    arguments.add_argument("--config", metavar="FILE")
    arguments.add_argument("--steps", type=int, default=48, help="optimizer steps' worth of videos in one repeat")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("overrides", nargs="*", metavar="key=value")
    options = arguments.parse_intermixed_args(argv)
    if options.what == "manifest":
        return bench_manifest(options.rows, options.json)
    config = load_config(options.config, options.overrides).with_absolute_paths()
    if options.what == "views":
        figures = bench_views(config, options.repeats)
    else:
        figures = bench_stream(config, options.steps, options.repeats)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value}")
    return DONE


def bench_manifest(rows: str, as_json: bool) -> int:
    """Seconds of every stage and peak memory at each size, of generated manifests."""
    if not all(word.isdecimal() for word in rows.split(",")):
        raise UserError(f"--rows {rows}: write sizes with commas between, for example 10000,100000")
    measured = measure_sizes([int(word) for word in rows.split(",")])
    if as_json:
        print(json.dumps({"sizes": measured}))
        return DONE
    for name in measured[0]:
        print(f"{name:12}" + "".join(f"{result[name]:12,}" for result in measured))
    return DONE


def bench_stream(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Videos per second of the stream and of its floor, in turns so that a drifting machine hits both alike.

    Both decode the same run rows. The first quarter of each is start-up and left out of the rates, which are of the steady
    state; the time to the first batch is reported beside them.
    """
    if steps < 8:
        raise UserError(f"--steps {steps}: at least 8 are needed for a steady state")
    source, _ = open_source(config)
    connect()
    cpus = min(1.0, ray.cluster_resources().get("CPU", 1.0) / PROCESSES)
    ray.data.DataContext.get_current().enable_progress_bars = False
    floors, streams, firsts = [], [], []
    for _ in range(repeats):
        floors.append(floor_rate(source, steps))
        rate, first = stream_rate(source, config, steps, cpus)
        streams.append(rate)
        firsts.append(first)
    ratios = [a / b for a, b in zip(streams, floors, strict=True)]
    return {
        "clips_per_second": statistics.median(streams),
        "floor_clips_per_second": statistics.median(floors),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "ratio_n": repeats,
        "first_batch_seconds": statistics.median(firsts),
        "clips_per_repeat": steps * source.plan.rows_per_step * source.plan.slots,
        "clips_per_block": steps_per_block(source, PROCESSES, config.data.clips_per_block)
        * source.plan.rows_per_step // PROCESSES * source.plan.slots,
    }  # fmt: skip


VIEWS: dict[str, tuple[str, dict[str, Any], Modality]] = {
    "weak": ("weak", {}, "rgb"),
    "strong": ("strong", {}, "rgb"),
    "strong, geometry alone": ("strong", {"appearance": False, "cutout": 0.0}, "rgb"),
    "strong, appearance alone": ("strong", {"geometric": False, "cutout": 0.0}, "rgb"),
    "strong, cutout alone": ("strong", {"ops": 0}, "rgb"),
    "weak and temporal gradient": ("weak", {}, "temporal_gradient"),
    "weak and optical flow": ("weak", {}, "optical_flow"),
}
"""Kind of view, what of ``views.strong`` is changed, and the modality made of it."""
VIEW_CLIPS = 32


def bench_views(config: Config, repeats: int) -> dict[str, Any]:
    """Milliseconds per clip of the primary, median over repeats, on the GPU if there is one; and each as a multiple of the
    floor, which is resizing the clip and nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip, size = config.primary.clip, config.data.decode_size
    clips = torch.randint(0, 256, (VIEW_CLIPS, clip.frames, size, size, 3), dtype=torch.uint8, device=device)
    seeds = list(range(VIEW_CLIPS))
    makers = {"weak": weak_views, "strong": strong_views}

    def view(kind: str, strong: dict[str, Any], modality: Modality) -> torch.Tensor:
        section = config.views.model_copy(update={"strong": config.views.strong.model_copy(update=strong)})
        return derive(makers[kind](clips, seeds, section, clip.size), modality)

    check_modalities([modality for _, _, modality in VIEWS.values()])
    work: dict[str, Callable[[], torch.Tensor]] = {"floor, resize alone": lambda: center_views(clips, clip.size)}
    work |= {name: partial(view, *parts) for name, parts in VIEWS.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, make in work.items():
            start = time.perf_counter()
            make()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                times[name].append(1000 * (time.perf_counter() - start) / VIEW_CLIPS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    floor = medians["floor, resize alone"]
    return {
        "milliseconds_per_clip": {name: round(value, 3) for name, value in medians.items()},
        "times_floor": {name: round(value / floor, 2) for name, value in medians.items()},
        "clip": f"{clip.frames} frames of {size} to {clip.size} pixels, {VIEW_CLIPS} at once",
        "device": device.type,
        "threads": torch.get_num_threads(),
        "n": repeats,
    }


def stream_rate(source: Source, config: Config, steps: int, cpus: float) -> tuple[float, float]:
    """(videos per second in the steady state, seconds to the first batch) of two consumers that discard what they get."""
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    dataset = ray_stream(source, short, 0, PROCESSES, cpus)
    dataset.context.execution_options.preserve_order = True
    share = source.plan.rows_per_step // PROCESSES
    begun = time.time()
    shards = dataset.streaming_split(PROCESSES, equal=True)
    arrivals = ray.get([_consume.options(num_cpus=0.01).remote(shard, share) for shard in shards])
    times = sorted(moment for worker in arrivals for moment in worker)
    return _steady(times, share * source.plan.slots), times[0] - begun


@ray.remote  # type: ignore[untyped-decorator]
def _consume(shard: ray.data.DataIterator, share: int) -> list[float]:
    return [time.time() for _ in shard.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2)]


def floor_rate(source: Source, steps: int) -> float:
    """Videos per second in the steady state of two plain processes that only decode the same rows."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        plain = replace(source, limits=None)  # what isolation costs must not hide in the floor
        jobs = [(plain, steps, worker) for worker in range(PROCESSES)]
        times = sorted(moment for worker in pool.starmap(_decode_all, jobs) for moment in worker)
    return _steady(times, source.plan.rows_per_step // PROCESSES * source.plan.slots)


def _decode_all(source: Source, steps: int, worker: int) -> list[float]:
    times = []
    for rows in worker_rows(range(steps), source.plan.rows_per_step, worker, PROCESSES):
        source.rows(rows)
        times.append(time.time())
    return times


def _steady(times: list[float], videos: int) -> float:
    """Rate after the first quarter of the arrivals, each of which brings ``videos``."""
    skip = len(times) // 4
    return (len(times) - 1 - skip) * videos / (times[-1] - times[skip])


if __name__ == "__main__":
    raise SystemExit(run(main))
