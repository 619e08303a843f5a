"""The loaders that are compared, and what is measured of one of them in a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.bench.end_to_end import run_seconds
from pipeline.bench.figures import steady_rate
from pipeline.bench.peers import feed
from pipeline.bench.peers.feed import Fed, Feed, Wanted, data_loader, first_steps
from pipeline.bench.timed_step import Ready, free_memory, prepared_alone, ready_here
from pipeline.clips.plan import BlockLayout
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods import make_views
from pipeline.stream.batches import lay_out_blocks
from pipeline.training.prepared_run import PreparedRun
from pipeline.training.step import take_step

OURS, HERE, SHUFFLED = "ours", "ours_in_one_process", "ray_data"


class LeftOut(Exception):
    """This loader cannot be measured on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Candidate:
    """One loader."""

    about: str
    load: Callable[[], Feed]
    """Imports what it needs. Raises LeftOut."""
    at_once: bool = False
    """Whether nothing comes before all of an epoch is decoded: then its rate is that of the whole."""


def _pictures() -> Feed:
    from pipeline.bench.peers import svformer_loader

    _require_decord()
    return data_loader(svformer_loader.make_views)


def _spans() -> Feed:
    from pipeline.bench.peers import pyslowfast_loader

    return data_loader(pyslowfast_loader.make_views)


def _shuffled() -> Feed:
    _require_decord()
    try:
        import pipeline.bench.peers.ray_data_loader  # noqa: F401
    except ModuleNotFoundError as error:
        raise LeftOut(f"{error.name} is not installed: pip install -e .") from None
    return feed.shuffled_by_ray


def _torchcodec() -> Feed:
    try:
        from pipeline.bench.peers import torchcodec_loader
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torchcodec"):
            raise
        raise LeftOut("torchcodec is not installed: pip install -e .[torchcodec]") from None
    except (RuntimeError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise LeftOut(
            f"torchcodec does not load: {reason} It needs FFmpeg's shared libraries (libavcodec and others), of a version "
            "that it knows"
        ) from None
    return data_loader(torchcodec_loader.make_views)


def _require_decord() -> None:
    from pipeline.video.decord_check import decord

    if decord is None:
        raise LeftOut("decord is not installed: pip install -e .")


CANDIDATES = {
    OURS: Candidate("this project as configured: Ray Data's stream, or threads with scale.workers=0", lambda: feed.on_ray),
    HERE: Candidate("this project with scale.workers=0: threads of the training process", lambda: feed.in_process),
    "svformer": Candidate("DataLoader; decord opens the file for every view; PIL images augmented on the CPU", _pictures),
    "pyslowfast": Candidate("DataLoader; PyAV decodes the clip's span for every view; float tensors augmented", _spans),
    SHUFFLED: Candidate("Ray Data: map(decode), random_shuffle, map(augment), iter_torch_batches", _shuffled, at_once=True),
    "torchcodec": Candidate("DataLoader; torchcodec opens a video once; uint8 tensors augmented", _torchcodec),
}
"""This project's own first, then its peers."""


def names_for(config: Config) -> list[str]:
    """Of the loaders that are compared: this project's own without Ray is the configured one already with scale.workers=0."""
    return [name for name in CANDIDATES if name != HERE or config.scale.workers > 0]


def load(name: str, config: Config) -> Feed:
    """Raises LeftOut."""
    return feed.in_process if name == OURS and config.scale.workers == 0 else CANDIDATES[name].load()


def measure(name: str, tree: str, steps: int, more: int) -> dict[str, float]:
    """``steps_alone``, of the loader alone, and ``steps`` with training, each a second, and ``first``, the seconds to the
    first step's views. Raises LeftOut."""
    config, one, uses_ray = start(name, tree)
    quiet = contextlib.redirect_stdout(io.StringIO())  # the run's lines of metrics
    with quiet, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        prepared = prepared_alone(config, folder, steps + more)
        ready = ready_here(prepared)
        wanted = Wanted(prepared.source, ready.config, steps, ready.device)
        if CANDIDATES[name].at_once:  # its processes start: with the others' that is before the steady state
            loader_rate(one, replace(wanted, steps=2), ready, at_once=True)
        rate_alone, first = loader_rate(one, wanted, ready, CANDIDATES[name].at_once, _block_layout(name, prepared, config))
        if name in (OURS, HERE):
            del ready
            free_memory()
            if uses_ray:
                end_own_ray()  # with the stream that was not read to its end
            rate = 1 / run_seconds(config, steps, more)
        else:
            rate, _ = train_rate(one, wanted, ready, CANDIDATES[name].at_once)
    return {"steps_alone": rate_alone, "steps": rate, "first": first}


def start(name: str, tree: str) -> tuple[Config, Feed, bool]:
    """The configuration, the loader, and whether it needed a Ray, which is this process's own whatever else runs here: its
    memory is counted. Raises LeftOut."""
    config = Config.model_validate_json(tree)
    if name == HERE:
        config = config.model_copy(update={"scale": config.scale.model_copy(update={"workers": 0})})
    one, uses_ray = load(name, config), name == SHUFFLED or (name == OURS and config.scale.workers > 0)
    if uses_ray:
        from pipeline.ray_cluster.connect import connect

        os.environ["RAY_ADDRESS"] = "local"
        connect()
    return config, one, uses_ray


def end_own_ray() -> None:
    """All of its processes."""
    import ray

    ray.shutdown()


def _block_layout(name: str, prepared: PreparedRun, config: Config) -> BlockLayout | None:
    """The blocks in which batches come, if they come in blocks."""
    return lay_out_blocks(prepared.source, prepared.run.config, 0, 1) if name == OURS and config.scale.workers else None


def loader_rate(
    one: Feed, wanted: Wanted, ready: Ready, at_once: bool = False, layout: BlockLayout | None = None
) -> tuple[float, float]:
    """(steps a second of a loader whose views nobody uses, seconds to the first)."""
    use = ready.weights.use_unlabeled, ready.weights.use_strong

    def views(fed: Fed) -> None:
        if fed.views is None:
            make_views(fed.batch, wanted.config, wanted.config.run.seed, wanted.device, *use)

    return _rate(one, wanted, views, at_once, layout)


def train_rate(one: Feed, wanted: Wanted, ready: Ready, at_once: bool = False) -> tuple[float, float]:
    """(training steps a second with this loader, seconds to the end of the first)."""
    return _rate(one, wanted, lambda fed: train_step(ready, fed), at_once)


def train_step(ready: Ready, fed: Fed) -> None:
    """The step that this project takes, with the views of another loader."""
    context, views = ready.context, fed.views
    if views is not None:
        context = replace(context, make_views=lambda *_, **__: iter([views]))
    take_step(ready.wrapped, ready.state, fed.batch, ready.config, context)
    ready.state.step += 1


def _rate(
    one: Feed, wanted: Wanted, use: Callable[[Fed], Any], at_once: bool, layout: BlockLayout | None = None
) -> tuple[float, float]:
    begun, times = time.time(), []
    for fed in first_steps(one, wanted):
        use(fed)
        if wanted.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.time())
    if len(times) < 2:
        raise UserError(f"--steps {wanted.steps}: at least 2")
    first = times[0] - begun
    return (len(times) / (times[-1] - begun) if at_once else steady_rate([times], 1, layout)), first
