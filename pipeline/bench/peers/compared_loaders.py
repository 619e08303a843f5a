"""Lists the loaders that are compared, and measures one of them in this process."""

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

from pipeline.bench.end_to_end import measure_run
from pipeline.bench.figures import compute_steady_rate
from pipeline.bench.peers import step_inputs
from pipeline.bench.peers.step_inputs import Loader, StepInput, StepsRequest, build_data_loader, take_first_steps
from pipeline.bench.timed_step import TimedStep, build_timed_step, free_memory, prepare_bench_run
from pipeline.clips.plan import BlockLayout
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods import make_views
from pipeline.stream.batches import lay_out_blocks
from pipeline.training.prepared_run import PreparedRun
from pipeline.training.step import take_step

OURS, OURS_IN_PROCESS, RAY_DATA = "ours", "ours_in_one_process", "ray_data"
"""The names of loaders that need special treatment."""


class LeftOut(Exception):
    """This loader cannot be measured on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class ComparedLoader:
    """A loader that is compared, under its name in ``LOADERS``."""

    about: str
    """What the loader does, in a few words."""
    import_loader: Callable[[], Loader]
    """Imports what the loader needs, and returns it. Raises LeftOut."""
    whole_epochs: bool = False
    """Whether it gives nothing before a whole epoch is decoded. Its rate is then measured from the request on."""


def _import_svformer() -> Loader:
    from pipeline.bench.peers import svformer_loader

    _require_decord()
    return build_data_loader(svformer_loader.make_svformer_views)


def _import_pyslowfast() -> Loader:
    from pipeline.bench.peers import pyslowfast_loader

    return build_data_loader(pyslowfast_loader.make_pyslowfast_views)


def _import_ray_data() -> Loader:
    _require_decord()
    try:
        import pipeline.bench.peers.ray_data_loader  # noqa: F401
    except ModuleNotFoundError as error:
        raise LeftOut(f"{error.name} is not installed: pip install -e .") from None
    return step_inputs.load_shuffled_by_ray


def _import_torchcodec() -> Loader:
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
    return build_data_loader(torchcodec_loader.make_torchcodec_views)


def _require_decord() -> None:
    from pipeline.video.decord_check import decord

    if decord is None:
        raise LeftOut("decord is not installed: pip install -e .")


LOADERS = {
    OURS: ComparedLoader(
        "this project as configured: Ray Data's stream, or threads with scale.workers=0", lambda: step_inputs.load_on_ray
    ),
    OURS_IN_PROCESS: ComparedLoader(
        "this project with scale.workers=0: threads of the training process", lambda: step_inputs.load_in_process
    ),
    "svformer": ComparedLoader(
        "DataLoader; decord opens the file for every view; PIL images augmented on the CPU", _import_svformer
    ),
    "pyslowfast": ComparedLoader(
        "DataLoader; PyAV decodes the clip's span for every view; float tensors augmented", _import_pyslowfast
    ),
    RAY_DATA: ComparedLoader(
        "Ray Data: map(decode), random_shuffle, map(augment), iter_torch_batches", _import_ray_data, whole_epochs=True
    ),
    "torchcodec": ComparedLoader("DataLoader; torchcodec opens a video once; uint8 tensors augmented", _import_torchcodec),
}
"""This project's own loaders, then its peers."""


def list_loaders(config: Config) -> list[str]:
    """Lists the names of the loaders to compare; with ``scale.workers=0``, ``ours`` is already the one without Ray."""
    return [name for name in LOADERS if name != OURS_IN_PROCESS or config.scale.workers > 0]


def import_loader(name: str, config: Config) -> Loader:
    """Imports and returns the loader of this name. Raises LeftOut."""
    return step_inputs.load_in_process if name == OURS and config.scale.workers == 0 else LOADERS[name].import_loader()


def measure_loader(name: str, tree: str, steps: int, steps_after: int) -> dict[str, float]:
    """Measures the loader of this name alone and with training.

    Args:
        name: One of ``LOADERS``.
        tree: The configuration as JSON.
        steps: The number of steps that are timed.
        steps_after: The number of steps that follow in a run of this project, so that the timed ones end while it decodes.

    Returns:
        Steps per second of the loader alone (``steps_alone``) and with training (``steps``), and the seconds to the views of
        the first step (``first``).

    Raises:
        LeftOut: the loader cannot be measured on this machine.
    """
    config, load, uses_ray = start_loader(name, tree)
    quiet = contextlib.redirect_stdout(io.StringIO())  # the run's lines of metrics
    with quiet, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        prepared = prepare_bench_run(config, folder, steps + steps_after)
        timed = build_timed_step(prepared)
        request = StepsRequest(prepared.run.source, timed.config, steps, timed.device)
        if LOADERS[name].whole_epochs:  # so that its processes have started: others start theirs before the steady state
            measure_views_rate(load, replace(request, steps=2), timed, whole_epochs=True)
        layout = _lay_out_blocks(name, prepared, config)
        rate_alone, first = measure_views_rate(load, request, timed, LOADERS[name].whole_epochs, layout)
        if name in (OURS, OURS_IN_PROCESS):
            del timed
            free_memory()
            if uses_ray:
                from pipeline.ray_cluster.connect import disconnect

                disconnect()  # with the stream that was not read to its end
            rate = 1 / measure_run(config, steps, steps_after)
        else:
            rate, _ = measure_training_rate(load, request, timed, LOADERS[name].whole_epochs)
    return {"steps_alone": rate_alone, "steps": rate, "first": first}


def start_loader(name: str, tree: str) -> tuple[Config, Loader, bool]:
    """Prepares to use the loader of this name.

    If it needs Ray, a Ray of this process alone is started, whatever else runs on this machine, because its memory is counted.

    Returns:
        The configuration that the loader trains with, the loader, and whether Ray was started.

    Raises:
        LeftOut: the loader cannot be measured on this machine.
    """
    config = Config.model_validate_json(tree)
    if name == OURS_IN_PROCESS:
        config = config.model_copy(update={"scale": config.scale.model_copy(update={"workers": 0})})
    load, uses_ray = import_loader(name, config), name == RAY_DATA or (name == OURS and config.scale.workers > 0)
    if uses_ray:
        from pipeline.ray_cluster.connect import connect

        os.environ["RAY_ADDRESS"] = "local"
        connect()
    return config, load, uses_ray


def _lay_out_blocks(name: str, prepared: PreparedRun, config: Config) -> BlockLayout | None:
    """Returns the blocks in which batches arrive; None if each arrives by itself."""
    return lay_out_blocks(prepared.run.source, prepared.run.config, 0, 1) if name == OURS and config.scale.workers else None


def measure_views_rate(
    load: Loader, request: StepsRequest, timed: TimedStep, whole_epochs: bool = False, layout: BlockLayout | None = None
) -> tuple[float, float]:
    """Measures the loader alone: steps per second, and seconds to the first step's views."""
    use = timed.weights.has_unlabeled, timed.weights.has_strong

    def make_missing_views(step_input: StepInput) -> None:
        if step_input.views is None:
            make_views(step_input.batch, request.config, request.config.run.seed, request.device, *use)

    return _measure_rate(load, request, make_missing_views, whole_epochs, layout)


def measure_training_rate(
    load: Loader, request: StepsRequest, timed: TimedStep, whole_epochs: bool = False
) -> tuple[float, float]:
    """Measures training with the loader: steps per second, and seconds to the end of the first."""
    return _measure_rate(load, request, lambda step_input: take_training_step(timed, step_input), whole_epochs)


def take_training_step(timed: TimedStep, step_input: StepInput) -> None:
    """Takes this project's training step with the views of a loader, or with its own if the loader gives none."""
    context, views = timed.context, step_input.views
    if views is not None:
        context = replace(context, make_views=lambda *_, **__: iter([views]))
    take_step(timed.wrapped, timed.state, step_input.batch, timed.config, context)
    timed.state.step += 1


def _measure_rate(
    load: Loader, request: StepsRequest, use: Callable[[StepInput], Any], whole_epochs: bool, layout: BlockLayout | None = None
) -> tuple[float, float]:
    begun, times = time.time(), []
    for step_input in take_first_steps(load, request):
        use(step_input)
        if request.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.time())
    if len(times) < 2:
        raise UserError(f"--steps {request.steps}: at least 2")
    first = times[0] - begun
    return (len(times) / (times[-1] - begun) if whole_epochs else compute_steady_rate([times], 1, layout)), first
