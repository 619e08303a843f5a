"""The comparison: every loader in a process of its own, in turns, on the same rows of the plan."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from pipeline.bench.end_to_end import lengths
from pipeline.bench.figures import for_bench, ratio
from pipeline.bench.peers.candidates import CANDIDATES, OURS, LeftOut, measure, names_for
from pipeline.bench.peers.process_tree import PeakMemory
from pipeline.bench.peers.requests import check_same_work, views_per_step
from pipeline.clips.sampling import describe_clip
from pipeline.clips.source import open_source
from pipeline.config import Config
from pipeline.errors import RunFailed, UserError
from pipeline.hardware import choose_device
from pipeline.processes.isolation import count_cores
from pipeline.progress import progress

LOOK_SECONDS, CLOSE_LOOKS = 0.25, 4
"""Between two looks at a process tree's memory, and how many of them there are to a close one."""
SHORT = 64
"""Bytes of a path that leave room for a socket's name."""
Figures = dict[str, Any]


@dataclass
class Measured:
    """Of one loader, a value from every repeat."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: dict[str, float]) -> None:
        """What one repeat found."""
        for name, value in found.items():
            self.values.setdefault(name, []).append(value)


def bench_peers(config: Config, steps: int, repeats: int) -> Figures:
    """Views per second of each loader alone, training steps per second with it, and the peak memory of its processes.

    All have one training process, the same videos, moments, views and step, and are measured in turns. A peer that needs what
    this machine lacks, or that fails, is left out, and ``left_out`` says why. Raises UserError.
    """
    config = one_worker(config)
    source, _ = open_source(for_bench(config, steps))
    check_same_work(source, for_bench(config, steps))
    steps, more = lengths(config, steps, least=steps)
    turns = Turns(config)
    arguments = (config.model_dump_json(), steps, more)
    for name, _ in turns.in_turns(repeats):
        turns.take(name, measure, name, *arguments)
    views = views_per_step(source, for_bench(config, steps))
    return {
        "ours_over": {name: _over(turns.found[OURS], found) for name, found in turns.found.items() if name != OURS},
        "loaders": {name: _figures(name, found, views) for name, found in turns.found.items()},
        "left_out": turns.left_out,
        "views_per_step": views,
        "videos_per_step": source.plan.rows_per_step * source.plan.slots,
        "steps": steps,
        "clips": " and ".join(map(describe_clip, source.clips)),
        "device": choose_device(config).type,
        "cores": count_cores(),
    }


def one_worker(config: Config) -> Config:
    """The same with one training process: on Ray if the configuration has workers, else without."""
    scale = config.scale.model_copy(update={"workers": min(1, config.scale.workers), "min_workers": None})
    return config.model_copy(update={"scale": scale})


class Turns:
    """Loaders that are measured one after the other, each time in a new process."""

    def __init__(self, config: Config) -> None:
        self.left_out: dict[str, str] = {}
        self.found: dict[str, Measured] = {}
        self._all = names_for(config)

    def names(self) -> list[str]:
        """Of the loaders that are not left out."""
        return [name for name in self._all if name not in self.left_out]

    def in_turns(self, repeats: int) -> Iterator[tuple[str, int]]:
        """Loaders and the repeat, from 0, that it is their turn in; how far they are is said."""
        every = [(name, repeat) for repeat in range(repeats) for name in self.names()]
        for name, repeat in progress(every, len(every), "loaders measured"):
            if name not in self.left_out:
                yield name, repeat

    def take(self, name: str, work: Callable[..., dict[str, float]], *arguments: Any) -> None:
        """Do ``work`` in a process of its own. What keeps a peer from being measured is noted and said; of this project's own
        loader it is raised."""
        try:
            found = apart(work, *arguments)
        except LeftOut as reason:
            self._leave_out(name, str(reason))
        except RunFailed as error:
            if name == OURS:
                raise
            self._leave_out(name, f"it failed: {error}")
        else:
            self.found.setdefault(name, Measured()).add(found)

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = " ".join(reason.split())
        self.found.pop(name, None)
        print(f"{name} is left out: {self.left_out[name]}", file=sys.stderr, flush=True)


def apart(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Its figures from a new process, and the peak memory of that process and all that it starts.

    It is forked from a process that has imported torch and this package, and has done nothing yet.
    Raises LeftOut and UserError as ``work`` does, and RunFailed for whatever else ends it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([measure.__module__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, arguments))
    with _short_temporary_folder():
        process.start()
    theirs.close()
    assert process.pid is not None
    peak, looks = PeakMemory(), 0
    try:
        while not ours.poll(LOOK_SECONDS):
            peak.look(process.pid, closely=looks % CLOSE_LOOKS == 0)
            looks += 1
        kind, answer = ours.recv()
    except EOFError:
        process.join()
        raise RunFailed(f"its process ended with exit code {process.exitcode} and said nothing") from None
    finally:
        ours.close()
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
    """Sockets of processes lie in the temporary folder, and their paths must be short: where its own is long, another name."""
    if len(os.fsencode(tempfile.gettempdir())) < SHORT:
        yield
        return
    from pipeline.ray_cluster.sockets import shorten_temporary_folder_of_children

    with shorten_temporary_folder_of_children():
        tempfile.tempdir = None  # read again
        yield
    tempfile.tempdir = None


def _answer(connection: Connection, work: Callable[..., dict[str, float]], arguments: Sequence[Any]) -> None:
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


def _over(ours: Measured, theirs: Measured) -> Figures:
    """This project's figures over a peer's, repeat by repeat."""
    names = {"views_per_second": "steps_alone", "steps_per_second": "steps", "peak_memory": "proportional"}
    return {what: ratio(f"{what}_ratio", ours.values[name], theirs.values[name]) for what, name in names.items()}


def _figures(name: str, found: Measured, views: int) -> Figures:
    values = found.values
    return {
        "about": CANDIDATES[name].about,
        "views_per_second": spread_of([views * rate for rate in values["steps_alone"]], 1),
        "steps_per_second": spread_of(values["steps"], 3),
        "views_per_second_with_training": spread_of([views * rate for rate in values["steps"]], 1),
        "seconds_to_first_views": spread_of(values["first"], 2),
        "peak_memory_mb": spread_of([value / 1e6 for value in values["proportional"]], 0),
        "peak_rss_mb": spread_of([value / 1e6 for value in values["resident"]], 0),
        "processes": int(max(values["processes"])),
    }


def spread_of(values: Sequence[float], digits: int) -> Figures:
    """Median, smallest and largest, and their number."""
    return {
        "median": round(statistics.median(values), digits),
        "spread": [round(min(values), digits), round(max(values), digits)],
        "n": len(values),
    }
