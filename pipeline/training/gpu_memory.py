"""Checks before anything is written whether a run can be trained on the GPUs that there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.hardware import Hardware, check_compiler, is_on_gpu, read_hardware
from pipeline.ray_cluster.resources import Resources
from pipeline.training.dry_run import estimate_memory
from pipeline.training.loop import TrainingRun

CUDA_CONTEXT = 0.5e9
"""The least number of bytes that CUDA and its libraries take of a GPU for themselves."""
GB = 1e9
Estimate = Callable[[Config], int]
"""Returns the bytes that training by a configuration takes of each GPU."""


def check_training(run: TrainingRun, resources: Resources | None, needed: int | None = None) -> None:
    """Raises UserError if the GPU's memory or a compiler would be missing; a GPU that cannot be used was refused before.

    ``resources`` are the run's on a cluster; None: it runs on this machine, in this process. ``needed`` are the bytes that
    ``estimate_memory`` gives for the run; None: they are estimated if there is a GPU.
    """
    hardware = read_hardware() if resources is None else resources.hardware
    if hardware is None:
        return
    gpu = is_on_gpu(run.config, hardware) if resources is None else resources.gpu
    check_compiler(run.config, hardware, gpu)
    if gpu:

        def estimate(config: Config) -> int:
            return sum(estimate_memory(config, run.plan, run.num_classes, run.file_labels).values())

        check_memory(run.config, hardware, estimate, needed)


def check_memory(config: Config, hardware: Hardware, estimate: Estimate, needed: int | None = None) -> None:
    """Raises UserError if the estimate is more than a worker's share of the GPU; it names knobs with which it is not.

    ``needed`` is the estimate for ``config`` itself, if it is known already.
    """
    room = hardware.gpu_memory * (config.scale.gpus_per_worker if config.scale.workers else 1.0) - CUDA_CONTEXT
    needed = estimate(config) if needed is None else needed
    if needed <= room:
        return
    remedies = _list_remedies(config, hardware)
    remedy = next((remedy for remedy in remedies if estimate(_change_train(config, remedy)) <= room), None)
    share = f"{config.scale.gpus_per_worker:g} of " if config.scale.workers and config.scale.gpus_per_worker < 1 else ""
    advice = (
        "it fits with " + " ".join(f"train.{key}={_format_yaml(value)}" for key, value in remedy.items())
        if remedy else
        "no value of train.precision, train.activation_checkpointing and train.accumulation makes it fit: lower "
        "data.labeled_per_step, data.unlabeled_per_labeled or the students' clip.size and clip.frames, or use more workers"
    )  # fmt: skip
    raise UserError(
        f"training needs about {needed / GB:.1f} GB of each GPU's memory, and {share}{hardware.gpus[0]} has {room / GB:.1f} GB "
        f"to give: {advice} (--dry-run lists what needs how much; scale.gpu=false computes on the CPU)"
    )


def _list_remedies(config: Config, hardware: Hardware) -> Iterator[dict[str, Any]]:
    """Lists changes of ``train`` that save memory: those of few knobs first, and of these last what changes results most, which
    is accumulation."""
    train, rows = config.train, config.data.labeled_per_step // max(1, config.scale.workers)
    whole = config.data.labeled_per_step % max(1, config.scale.workers) == 0  # else no accumulation divides the workers' rows
    parts = [n for n in range(train.accumulation + 1, rows + 1) if rows % n == 0] if whole else []
    half = {"precision": "bf16" if hardware.bf16 else "fp16"}
    precisions: list[dict[str, Any]] = [{}, half] if train.precision == "fp32" else [{}]
    fixed = train.activation_checkpointing or train.compile != "off"  # which exclude each other
    recomputed: list[dict[str, Any]] = [{}] if fixed else [{}, {"activation_checkpointing": True}]
    changes = [{**a, **b, **c} for a, b, c in product(precisions, recomputed, [{}, *({"accumulation": n} for n in parts)])]
    kinds = ("precision", "activation_checkpointing")
    return iter(sorted(filter(None, changes), key=lambda change: (len(change), *(kind not in change for kind in kinds))))


def _change_train(config: Config, changed: dict[str, Any]) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changed)})


def _format_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
