"""Describes a run without running it: what follows from its configuration, and an estimate of the memory of one device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from pipeline.clips.plan import Plan, compute_largest_share
from pipeline.clips.sampling import describe_clip
from pipeline.config import STUDENTS, Config
from pipeline.manifest.label_file import FileLabels
from pipeline.methods import (
    LossWeights,
    UnlabeledViews,
    Views,
    build_method,
    compute_loss_weights,
    find_first_unlabeled_step,
)
from pipeline.methods.parts.precision import autocast
from pipeline.stream.batches import lay_out_blocks
from pipeline.training.loop import divide_step
from pipeline.training.model_options import apply_train_options, list_blocks
from pipeline.training.optimizer import build_optimizer
from pipeline.training.prepared_run import PreparedRun

MB = 1e6


def describe_run(prepared: PreparedRun) -> list[str]:
    """Describes in lines what follows from the configuration. Raises UserError if workers and parts do not divide a step."""
    run, plan = prepared.run, prepared.run.plan
    config, train = run.config, run.config.train
    workers = max(1, config.scale.workers)
    block_layout = lay_out_blocks(prepared.run.source, config, prepared.step, workers)
    steps, unlabeled = block_layout.steps_per_block, plan.rows_per_step * plan.unlabeled_per_labeled
    first = find_first_unlabeled_step(config)
    decoded = train.steps * plan.rows_per_step + (train.steps - first) * unlabeled
    rows = divide_step(plan, config, workers)[0][0]
    frames = config.primary.clip.frames + config.auxiliary.clip.frames
    return [
        f"a step: {plan.rows_per_step} labeled + {unlabeled} unlabeled videos; {workers} worker{'s' * (workers > 1)}, at most "
        f"{compute_largest_share(plan.rows_per_step, workers)} rows each, computed in parts of {rows}",
        f"clips: primary {describe_clip(config.primary.clip)}; auxiliary {describe_clip(config.auxiliary.clip)}",
        f"decoding: {frames} frames of each of {plan.rows_per_step * plan.slots} videos a step; {decoded:,} videos in the run, "
        "repeats counted",
        f"stream: {block_layout.blocks:,} blocks to decode, each of at most {steps} step{'s' * (steps > 1)} and "
        f"{steps * block_layout.share * plan.slots} videos"
        if block_layout.blocks else "stream: no block is left",
        f"schedule: {train.warmup_steps} steps of warm-up, then {train.schedule}; "
        + (f"unlabeled videos count from step {first} on" if first < train.steps else "unlabeled videos never count"),
        f"writes: a line of metrics every {train.log_every} steps, a checkpoint every {train.checkpoint_every} "
        f"({-(-train.steps // train.checkpoint_every)} in the run, {train.keep_checkpoints + train.keep_best} kept)",
        "parameters: " + ", ".join(f"{name} {number:,}" for name, number in prepared.facts["parameters"].items()),
        f"run folder: {run.folder}, " + (f"at step {prepared.step}" if prepared.step else "nothing is trained yet"),
    ]  # fmt: skip


def estimate_memory(config: Config, plan: Plan, num_classes: int, file_labels: FileLabels | None = None) -> dict[str, int]:
    """Estimates the bytes on the fullest device at the end of a forward pass, by what they are for.

    ``file_labels`` are those of ``method.file_label.file``, if there is one, which are on the device as well.

    Nothing is computed: the method and its step run on tensors without storage, of the shapes and types that operations on
    the CPU have, and what autograd keeps for the backward pass is added up. Fragmentation, workspaces of kernels and the CUDA
    context (0.3 to 1 GB) come on top.
    """
    workers = max(1, config.scale.workers)
    rows = compute_largest_share(plan.rows_per_step, workers)
    pixels = 3 * config.data.decode_size**2 * (config.primary.clip.frames + config.auxiliary.clip.frames)
    method = _build_plain_method(config, plan, num_classes, file_labels)
    trained = _count_bytes(p for p in method.parameters() if p.requires_grad)
    sizes = {
        "weights": _count_bytes(method.students.state_dict().values()),
        "gradients": trained,
        "gradients in DDP's buckets": trained if workers > 1 else 0,
        "optimizer state": _count_optimizer_bytes(config, method),
        "running means, teachers, label statistics": _count_bytes(_list_other_state(method)),
        "labels from a file": _count_bytes(getattr(method, "file_labels", {}).values()),
        "decoded clips of a step, uint8": rows * plan.slots * pixels,
    }
    with FakeTensorMode():
        _forget_values(method)
        views = _make_empty_views(config, divide_step(plan, config, workers)[0][0], plan.unlabeled_per_labeled)
        sizes["views of a part, float32"] = _count_bytes(_list_views(views))
        return sizes | measure_activations(method, views, config)


def _build_plain_method(config: Config, plan: Plan, num_classes: int, file_labels: FileLabels | None) -> Any:
    """Builds the method as the loop does, without values and without options that change no size."""
    tree: dict[str, Any] = config.model_dump()
    for name in STUDENTS:
        tree[name]["network"]["weights"] = None
    tree["train"] |= {"compile": "off", "sync_batch_norm": False}
    plain = Config.model_validate(tree)
    with torch.device("meta"):  # drawing random weights would take a second
        return apply_train_options(build_method(plain, num_classes, *plan.sizes, file_labels=file_labels), plain.train)


def _count_optimizer_bytes(config: Config, method: Any) -> int:
    """Counts the bytes of the optimizers' state after a step. The method is on the meta device: nothing is computed."""
    optimizers = [build_optimizer(method.students[name], getattr(config, name).optimizer) for name in STUDENTS]
    for parameter in method.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    return _count_bytes(v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, torch.Tensor))


def _forget_values(method: Any) -> None:
    """Within FakeTensorMode, replaces all that the method holds by tensors without storage, as if on the CPU."""
    for module in method.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_make_empty(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _make_empty(buffer))
    method.file_labels = {name: _make_empty(table) for name, table in getattr(method, "file_labels", {}).items()}


def _make_empty(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def _make_empty_views(config: Config, rows: int, unlabeled_per_labeled: int) -> Views:
    layout = torch.channels_last_3d if config.train.channels_last else torch.contiguous_format

    def clips(number: int) -> dict[str, torch.Tensor]:
        shapes = {name: getattr(config, name).clip for name in STUDENTS}
        return {
            name: torch.empty(number, 3, clip.frames, clip.size, clip.size).contiguous(memory_format=layout)
            for name, clip in shapes.items()
        }

    labels, number = torch.zeros(rows, dtype=torch.int64), rows * unlabeled_per_labeled
    if not number:
        return Views(clips(rows), labels)
    numbers = torch.zeros(number, dtype=torch.int64)
    return Views(clips(rows), labels, UnlabeledViews(clips(number), clips(number), numbers, numbers))


def measure_activations(method: Any, views: Views, config: Config) -> dict[str, int]:
    """Measures the bytes that autograd keeps of a forward pass of the last step, in which all losses count. Each storage is
    counted once, and weights and views are not."""
    known = {_storage_id(tensor): tensor for tensor in (*method.parameters(), *method.buffers(), *_list_views(views))}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage_id(tensor) not in known:
            kept[_storage_id(tensor)] = tensor.untyped_storage()  # held, so that no other gets its place
        return tensor

    def keep_inputs(_block: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if torch.is_grad_enabled() and isinstance(value, torch.Tensor):
                keep(value)

    if config.train.activation_checkpointing:  # what enters a block is kept by other means than autograd's
        for student in method.students.values():
            for block in list_blocks(student):
                block.register_forward_pre_hook(keep_inputs)
    weights: LossWeights = compute_loss_weights(config.method, config.train.steps - 1)
    cast = autocast(torch.device("cpu"), config.train.precision)
    with saved_tensors_hooks(keep, lambda tensor: tensor), cast:
        method(views, weights)
    return {"activations": sum(storage.nbytes() for storage in kept.values())}


def _list_views(views: Views) -> list[torch.Tensor]:
    unlabeled = (views.unlabeled.weak, views.unlabeled.strong) if views.unlabeled else ()
    return [clips for kind in (views.labeled, *unlabeled) for clips in kind.values()]


def _list_other_state(method: nn.Module) -> list[torch.Tensor]:
    return [value for key, value in method.state_dict().items() if not key.startswith("students.")]


def _storage_id(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _count_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def format_memory(parts: dict[str, int]) -> list[str]:
    """Formats the estimate as the lines of a table, in MB."""
    rows = [(name, value) for name, value in [*parts.items(), ("together", sum(parts.values()))] if value]
    return ["memory of a device, estimated:", *(f"  {name:44} {value / MB:12,.1f} MB" for name, value in rows)]
