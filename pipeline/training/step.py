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
from pipeline.clips.plan import shares
from pipeline.collectives import set_shares
from pipeline.config import Config
from pipeline.methods import LossWeights, Views, loss_weights, make_views_of_parts
from pipeline.methods.parts.monitors import SCORES
from pipeline.methods.parts.precision import autocast
from pipeline.seeds import hash64
from pipeline.training.checkpoints.checkpoint import TrainState
from pipeline.training.model_options import update_ema
from pipeline.training.optimizer import clip_gradient, set_lr
from pipeline.training.schedule import lr_factor

PARTS = ("views", "forward", "backward", "update")
"""What a step spends its time on: names of its ranges in a profile."""
Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Place:
    """Whose step it is."""

    rank: int
    device: torch.device
    weight: float
    """Rows of this worker over the mean of all workers."""
    views: Callable[..., Iterator[Views]] = make_views_of_parts
    """How the views of a step's parts are made: benchmarks have them made beforehand."""
    parts: Sequence[Sequence[int]] = ()
    """[parts][workers]: rows of a step; by default ``train.accumulation`` parts, the same on all workers."""


def take_step(wrapped: Any, state: TrainState, batch: Batch, config: Config, place: Place) -> Results:
    """Gradients of the batch, in ``train.accumulation`` parts, and an update of both students.

    Returns means over the worker's clips times the worker's weight, so that their mean over workers is that over clips; what
    begins with ``kept`` are sums, ``scores/`` are rows of a record. Nothing here waits for the device, and workers meet only
    in DDP's buckets and where a loss needs all workers' features.
    """
    torch.manual_seed(int(hash64(config.run.seed, "torch", state.step, place.rank) >> 1))
    weights = loss_weights(config.method, state.step)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    rows = place.parts or [[part] for part in shares(len(batch.rows), config.train.accumulation)]
    parts = list(split(batch, [of_workers[place.rank if place.parts else 0] for of_workers in rows]))
    weighs = [place.weight * (len(part.rows) / len(batch.rows)) for part in parts]
    found: list[Results] = []
    wanted = {"unlabeled": weights.use_unlabeled, "strong": weights.use_strong}
    views = place.views(parts, config, config.run.seed, place.device, **wanted)
    for number, weight in enumerate(weighs):
        set_shares(rows[number])
        waits = number + 1 < len(parts) and hasattr(wrapped, "no_sync")
        with wrapped.no_sync() if waits else contextlib.nullcontext():
            found.append(_add_gradient(wrapped, state, views, config, weights, weight))
    with record_function("update"):
        norms = _update(state, config)
    return {**_together(found, weighs), **{name: place.weight * norm for name, norm in norms.items()}}


def split(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    """The batch in parts of so many rows."""
    assert sum(sizes) == len(batch.rows)
    names = ("rows", "videos", "labels", "primary", "auxiliary")
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        yield replace(batch, **{name: getattr(batch, name)[end - size : end] for name in names})


def _add_gradient(
    wrapped: Any, state: TrainState, parts: Iterator[Views], config: Config, weights: LossWeights, share: float
) -> Results:
    """Views, forward and backward of the next of the step's ``parts``, which counts by ``share``."""
    with record_function("views"):
        views = next(parts)
    with record_function("forward"), autocast(views.labels.device, config.train.precision):
        results: Results = wrapped(views, weights)
    with record_function("backward"):
        loss = share * results["loss"]
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
    found = {name: value.detach() for name, value in results.items()}
    return found | _weighted(found, weights)


def _weighted(results: Results, weights: LossWeights) -> Results:
    """``weighted/{term}``: what each kind of loss adds to the total, for any method whose parts are named ``{term}_loss`` after
    a loss of ``LossWeights``, or ``{term}_loss/{student}``; longer names are of single modalities, which are in the mean."""
    terms: Results = {}
    for term, weight in weights.items():
        losses = [value for name, value in results.items() if name.split("/")[0] == f"{term}_loss" and name.count("/") < 2]
        if losses:
            terms[f"weighted/{term}"] = weight * torch.stack(losses).sum()
    return terms


def _update(state: TrainState, config: Config) -> Results:
    """Clip, step, and move the running means; returns gradient norms before clipping, by student.

    With fp16, a student whose gradient overflowed keeps its weights: its norm counts as 0 and its step as ``skipped``.
    """
    norms: Results = {}
    for name, optimizer in state.optimizers.items():
        section = getattr(config, name).optimizer
        set_lr(optimizer, section.lr * lr_factor(state.step, config.train))
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
    update_ema(state.method, state.students, config.train.ema_decay, state.step)
    return norms


def _together(found: list[Results], weighs: Sequence[float]) -> Results:
    """Results of all parts: rows of the record of scores one after the other, sums of sums, weighted means of all else."""
    total: Results = {}
    for name in found[0]:
        values = [results[name] for results in found]
        if name.startswith(f"{SCORES}/"):
            total[name] = torch.cat(values)
        else:
            sums = name.startswith("kept")
            parts = [value if sums else weight * value for value, weight in zip(values, weighs, strict=True)]
            total[name] = torch.stack(parts).sum(dim=0)
    return total
