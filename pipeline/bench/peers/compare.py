"""Compares the loaders in turns on the same rows of the plan, each time in a new process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from pipeline.bench.end_to_end import choose_num_steps
from pipeline.bench.figures import compute_ratio, configure_bench
from pipeline.bench.peers.compared_loaders import LOADERS, OURS, LeftOut, list_loaders, measure_loader
from pipeline.bench.peers.process_tree import PeakMemory
from pipeline.bench.peers.requests import check_same_work, count_views_per_step
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import open_source
from pipeline.config import Config
from pipeline.errors import RunFailed, UserError
from pipeline.hardware import choose_device
from pipeline.processes.isolation import count_cores
from pipeline.progress import show_progress

LOOK_SECONDS, CLOSE_LOOK_EVERY = 0.25, 4
"""Seconds between two measurements of a process tree's memory, and how often one of them is a close one."""
MAX_FOLDER_BYTES = 64
"""The length of a temporary folder's path at most, so that the paths of sockets below it are not too long."""
Figures = dict[str, Any]
Values = dict[str, list[float]]
"""What was measured of one loader: for each quantity a value from every repeat."""


def bench_peers(config: Config, steps: int, repeats: int) -> Figures:
    """Measures views per second of each loader alone, training steps per second with it, and the peak memory of its processes.

    All have one training process, the same videos, moments, views and step, and are measured in turns. A peer that needs what
    this machine lacks, or that fails, is left out, and ``left_out`` says why. Raises UserError if the peers cannot do the same
    work.
    """
    config = limit_to_one_worker(config)
    source, _ = open_source(configure_bench(config, steps))
    check_same_work(source, configure_bench(config, steps))
    steps, steps_after = choose_num_steps(config, steps, min_steps=steps)
    comparison = LoaderComparison(config)
    arguments = (config.model_dump_json(), steps, steps_after)
    for name, _ in comparison.iterate_turns(repeats):
        comparison.measure(name, measure_loader, name, *arguments)
    views = count_views_per_step(source, configure_bench(config, steps))
    return {
        "ours_over": {
            name: _compare(comparison.figures[OURS], values) for name, values in comparison.figures.items() if name != OURS
        },
        "loaders": {name: _summarize(name, values, views) for name, values in comparison.figures.items()},
        "left_out": comparison.left_out,
        "views_per_step": views,
        "videos_per_step": source.plan.rows_per_step * source.plan.slots,
        "steps": steps,
        "clips": " and ".join(map(describe_clip, source.clips)),
        "device": choose_device(config).type,
        "cores": count_cores(),
    }


def limit_to_one_worker(config: Config) -> Config:
    """Returns the configuration with one training process: on Ray if the configuration has workers, else without."""
    scale = config.scale.model_copy(update={"workers": min(1, config.scale.workers), "min_workers": None})
    return config.model_copy(update={"scale": scale})


class LoaderComparison:
    """The loaders that take turns to be measured, and what was measured so far."""

    def __init__(self, config: Config) -> None:
        self.left_out: dict[str, str] = {}
        self.figures: dict[str, Values] = {}
        self._all = list_loaders(config)

    def list_names(self) -> list[str]:
        """Lists the names of the loaders that are not left out."""
        return [name for name in self._all if name not in self.left_out]

    def iterate_turns(self, repeats: int) -> Iterator[tuple[str, int]]:
        """Yields the name of the loader whose turn it is and the number of the repeat, from 0, and shows the progress."""
        every = [(name, repeat) for repeat in range(repeats) for name in self.list_names()]
        for name, repeat in show_progress(every, len(every), "loaders measured"):
            if name not in self.left_out:
                yield name, repeat

    def measure(self, name: str, work: Callable[..., dict[str, float]], *arguments: Any) -> None:
        """Does ``work`` for the loader of this name in a new process and keeps the result.

        A peer that cannot be measured is left out, with a message. Raises RunFailed if this project's own loader fails.
        """
        try:
            result = run_in_new_process(work, *arguments)
        except LeftOut as reason:
            self._leave_out(name, str(reason))
        except RunFailed as error:
            if name == OURS:
                raise
            self._leave_out(name, f"it failed: {error}")
        else:
            for quantity, value in result.items():
                self.figures.setdefault(name, {}).setdefault(quantity, []).append(value)

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = " ".join(reason.split())
        self.figures.pop(name, None)
        print(f"{name} is left out: {self.left_out[name]}", file=sys.stderr, flush=True)


def run_in_new_process(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Calls ``work`` in a new process and returns its result with the peak memory of that process and of all that it starts.

    The new process is forked from one that has imported torch and this package, and has done nothing yet. Raises LeftOut and
    UserError if ``work`` does, and RunFailed if anything else ends the process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([measure_loader.__module__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, work, arguments))
    with _short_temporary_folder():
        process.start()
    sender.close()
    assert process.pid is not None
    peak, looks = PeakMemory(), 0
    try:
        while not receiver.poll(LOOK_SECONDS):
            peak.update(process.pid, closely=looks % CLOSE_LOOK_EVERY == 0)
            looks += 1
        kind, answer = receiver.recv()
    except EOFError:
        process.join()
        raise RunFailed(f"its process ended with exit code {process.exitcode} and said nothing") from None
    finally:
        receiver.close()
        if process.is_alive():
            process.join(timeout=30)  # Ray ends
            process.terminate()
            process.join()
    if kind == "figures":
        memory = {"resident": peak.resident, "proportional": peak.proportional, "processes": peak.processes}
        return {**answer, **memory}
    raise {"left out": LeftOut, "user": UserError}.get(kind, RunFailed)(answer)


@contextlib.contextmanager
def _short_temporary_folder() -> Iterator[None]:
    """Gives children a temporary folder with a short path if the own one is long, because sockets in it need short paths."""
    if len(os.fsencode(tempfile.gettempdir())) < MAX_FOLDER_BYTES:
        yield
        return
    from pipeline.ray_cluster.sockets import shorten_temporary_folder_of_children

    with shorten_temporary_folder_of_children():
        tempfile.tempdir = None  # so that it is looked up again
        yield
    tempfile.tempdir = None


def _send_result(connection: Connection, work: Callable[..., dict[str, float]], arguments: Sequence[Any]) -> None:
    """Does the work and sends its result, or what kept it from one."""
    answer: tuple[str, Any]
    try:
        answer = "figures", work(*arguments)
    except LeftOut as reason:
        answer = "left out", str(reason)
    except UserError as error:
        answer = "user", str(error)
    except Exception as error:
        traceback.print_exc()
        answer = "failed", f"{type(error).__name__}: {str(error)[:300]}"
    connection.send(answer)
    connection.close()


def _compare(ours: Values, theirs: Values) -> Figures:
    """Divides this project's figures by those of a peer, repeat by repeat."""
    names = {"views_per_second": "steps_alone", "steps_per_second": "steps", "peak_memory": "proportional"}
    return {what: compute_ratio(f"{what}_ratio", ours[name], theirs[name]) for what, name in names.items()}


def _summarize(name: str, values: Values, views: int) -> Figures:
    """Summarizes the figures of one loader, of which a step has so many views."""
    return {
        "about": LOADERS[name].about,
        "views_per_second": summarize_values([views * rate for rate in values["steps_alone"]], 1),
        "steps_per_second": summarize_values(values["steps"], 3),
        "views_per_second_with_training": summarize_values([views * rate for rate in values["steps"]], 1),
        "seconds_to_first_views": summarize_values(values["first"], 2),
        "peak_memory_mb": summarize_values([value / 1e6 for value in values["proportional"]], 0),
        "peak_rss_mb": summarize_values([value / 1e6 for value in values["resident"]], 0),
        "processes": int(max(values["processes"])),
    }


def summarize_values(values: Sequence[float], digits: int) -> Figures:
    """Returns the median of the values, the smallest and the largest, and how many there are."""
    return {
        "median": round(statistics.median(values), digits),
        "spread": [round(min(values), digits), round(max(values), digits)],
        "n": len(values),
    }
