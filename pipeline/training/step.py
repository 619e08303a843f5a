"""One optimizer step of both students."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import record_function

from pipeline.clips.batch import Batch
from pipeline.clips.plan import divide_rows
from pipeline.collectives import set_worker_rows
from pipeline.config import Config
from pipeline.methods import LossWeights, Views, compute_loss_weights, make_views_of_parts
from pipeline.methods.parts.monitors import SCORES
from pipeline.methods.parts.precision import autocast
from pipeline.methods.parts.terms import Results
from pipeline.seeds import hash_to_uint64
from pipeline.training.checkpoints.checkpoint import TrainState
from pipeline.training.model_options import update_ema
from pipeline.training.optimizer import clip_gradient, set_learning_rate
from pipeline.training.schedule import compute_lr_factor


@dataclass(frozen=True)
class StepContext:
    """Which worker takes the step, and how its share of the global batch is computed."""

    rank: int
    device: torch.device
    weight: float
    """The rows of this worker divided by the mean of all workers' rows."""
    make_views: Callable[..., Iterator[Views]] = make_views_of_parts
    """Makes the views of the step's parts; benchmarks give views that were made beforehand."""
    part_rows: Sequence[Sequence[int]] = ()
    """[parts][workers] rows of a step; by default ``train.accumulation`` parts, the same on all workers."""


def take_step(wrapped: Any, state: TrainState, batch: Batch, config: Config, context: StepContext) -> Results:
    """Computes the gradients of the batch in ``train.accumulation`` parts, and updates both students.

    Returns means over the worker's clips times the worker's weight, so that their mean over workers is the mean over clips.
    Names that begin with ``kept`` are sums instead, and those that begin with ``scores/`` are rows for ``ScoreLog``. Nothing
    here waits for the device, and workers meet only in DDP's buckets and where a loss needs all workers' features.
    """
    torch.manual_seed(int(hash_to_uint64(config.run.seed, "torch", state.step, context.rank) >> 1))
    weights = compute_loss_weights(config.method, state.step)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    part_rows = context.part_rows or [[rows] for rows in divide_rows(len(batch.rows), config.train.accumulation)]
    parts = list(split_batch(batch, [of_workers[context.rank if context.part_rows else 0] for of_workers in part_rows]))
    part_weights = [context.weight * (len(part.rows) / len(batch.rows)) for part in parts]
    part_results: list[Results] = []
    wanted = {"unlabeled": weights.has_unlabeled, "strong": weights.has_strong}
    views = context.make_views(parts, config, config.run.seed, context.device, **wanted)
    for index, part_weight in enumerate(part_weights):
        set_worker_rows(part_rows[index])
        is_last = index + 1 == len(parts)  # until then DDP need not add up the workers' gradients
        with contextlib.nullcontext() if is_last or not hasattr(wrapped, "no_sync") else wrapped.no_sync():
            part_results.append(_add_gradient(wrapped, state, views, config, weights, part_weight))
    with record_function("update"):
        norms = _update(state, config)
    return {**_combine_parts(part_results, part_weights), **{name: context.weight * norm for name, norm in norms.items()}}


def split_batch(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    """Splits a batch into parts of these ``sizes`` in rows."""
    assert sum(sizes) == len(batch.rows)
    names = ("rows", "videos", "labels", "primary", "auxiliary")
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        yield replace(batch, **{name: getattr(batch, name)[end - size : end] for name in names})


def _add_gradient(
    wrapped: Any, state: TrainState, part_views: Iterator[Views], config: Config, weights: LossWeights, part_weight: float
) -> Results:
    """Makes the views of the step's next part, and adds the gradient of its loss times ``part_weight``."""
    with record_function("views"):
        views = next(part_views)
    with record_function("forward"), autocast(views.labels.device, config.train.precision):
        results: Results = wrapped(views, weights)
    with record_function("backward"):
        loss = part_weight * results["loss"]
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
    detached = {name: value.detach() for name, value in results.items()}
    return detached | _weight_losses(detached, weights)


def _weight_losses(results: Results, weights: LossWeights) -> Results:
    """Computes ``weighted/{term}``, what each term of ``LossWeights`` adds to the total.

    Its losses are those that the method named ``{term}_loss`` or ``{term}_loss/{student}``. Longer names are of single
    modalities, which these losses are means of.
    """
    terms: Results = {}
    for term, weight in weights.items():
        losses = [value for name, value in results.items() if name.split("/")[0] == f"{term}_loss" and name.count("/") < 2]
        if losses:
            terms[f"weighted/{term}"] = weight * torch.stack(losses).sum()
    return terms


def _update(state: TrainState, config: Config) -> Results:
    """Clips gradients, steps the optimizers and updates the running means of weights. Returns each student's gradient norm
    before clipping.

    With fp16, a student whose gradient overflowed keeps its weights: its norm counts as 0 and its step as ``skipped``.
    """
    norms: Results = {}
    for name, optimizer in state.optimizers.items():
        section = getattr(config, name).optimizer
        set_learning_rate(optimizer, section.lr * compute_lr_factor(state.step, config.train))
        if state.scaler is not None:
            state.scaler.unscale_(optimizer)
        norm = clip_gradient(state.students[name], section.clip_gradient_norm)
        if state.scaler is None:
            optimizer.step()
        else:
            state.scaler.step(optimizer)
            norms[f"skipped/{name}"] = (~norm.isfinite()).float()
            norm = norm.nan_to_num(0.0, 0.0, 0.0)
        norms[f"gradient_norm/{name}"] = norm
    if state.scaler is not None:
        state.scaler.update()
    update_ema(state.method, config.train.ema_decay, state.step)
    return norms


def _combine_parts(part_results: list[Results], part_weights: Sequence[float]) -> Results:
    """Combines the parts' results to the step's: rows for ``ScoreLog`` are concatenated, sums added, all else averaged."""
    total: Results = {}
    for name in part_results[0]:
        values = [results[name] for results in part_results]
        if name.startswith(f"{SCORES}/"):
            total[name] = torch.cat(values)
        else:
            is_sum = name.startswith("kept")
            terms = [value if is_sum else weight * value for value, weight in zip(values, part_weights, strict=True)]
            total[name] = torch.stack(terms).sum(dim=0)
    return total
