"""What a run needs against what the cluster has, before anything starts: Ray would wait forever without a word.

Two train workers of 1 CPU on 2 CPUs leave none for decode tasks; actors that take every CPU leave none for readers. So
small machines get fractions, and what cannot fit is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.errors import UserError

if TYPE_CHECKING:  # importing torch is slow
    from pipeline.hardware import Hardware

LEAST_CPUS = 0.1
"""Smallest fraction given out by itself."""
GPU_CPUS = 2.0
"""CPUs of a worker with a GPU where there are enough: one launches kernels without a pause, and beside it the same process
copies batches into pinned memory and writes checkpoints. Choice, not measured on a GPU."""


@dataclass(frozen=True)
class Resources:
    """What one run reserves."""

    workers: int
    """Train workers; of an elastic run, as many as the cluster has room for now."""
    cpus_per_worker: float
    cpus_per_decoder: float
    gpu: bool
    train_labels: dict[str, str] = field(default_factory=dict)
    decode_labels: dict[str, str] = field(default_factory=dict)
    """Of the nodes that may train and decode; empty: all."""
    gpus_per_worker: float = 1.0
    """A fraction where trials share a GPU."""
    hardware: Hardware | None = None
    """Of a machine that a worker would run on, where it was asked."""

    @property
    def worker(self) -> dict[str, float]:
        """What Ray reserves for a worker."""
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpu else {})}

    @property
    def decoders(self) -> str:
        """For the start line."""
        return f"{self.cpus_per_decoder:g} CPU per decode task"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it carries all of them."""
        return all(self.labels.get(name) == value for name, value in labels.items())


def fit_nodes(config: Config, nodes: Sequence[Node], concurrent: int = 1) -> Resources:
    """Reservations for one of ``concurrent`` runs on these machines, by ``scale.train_labels`` and ``scale.decode_labels``.

    Where no machine may do both, decode tasks have theirs for themselves. Raises UserError.
    """
    pools = []
    for knob in ("train_labels", "decode_labels"):
        labels = getattr(config.scale, knob)
        pools.append([node for node in nodes if node.has(labels)])
        if not pools[-1]:
            carried = sorted({f"{name}={value}" for node in nodes for name, value in node.labels.items()})
            raise UserError(
                f"scale.{knob}={labels}: no node has these labels; the cluster's have {', '.join(carried) or 'none'}: "
                "give them with `ray start --labels`"
            )
    train, decode = pools
    beside_gpu = min((node.cpus / node.gpus for node in train if node.gpus), default=None)
    # a little is left for the drivers of concurrent runs, which Tune starts as tasks
    cpus = sum(node.cpus for node in train) / concurrent - (0.02 if concurrent > 1 else 0.0)
    apart = not any(node in train for node in decode)
    decode_cpus = sum(node.cpus for node in decode) / concurrent if apart else None
    return fit_resources(config, cpus, sum(node.gpus for node in train) / concurrent, decode_cpus, beside_gpu)


def check_share(config: Config) -> None:
    """Raises UserError if a step has fewer rows than workers."""
    workers, rows = config.scale.workers, config.data.labeled_per_step
    if workers > rows:
        raise UserError(
            f"scale.workers={workers} is more than data.labeled_per_step={rows}, the global batch in rows: a worker would have "
            "none"
        )


def fit_resources(
    config: Config, cpus: float, gpus: float, decode_cpus: float | None = None, beside_gpu: float | None = None
) -> Resources:
    """Reservations for a run on a cluster with these totals. Raises UserError naming what is missing and the remedy.

    Decode tasks share what the workers leave (see ``worker_cpus``), or ``decode_cpus`` on machines of their own. Where
    machines differ, ``beside_gpu`` are the CPUs for each GPU on the one that has fewest.
    """
    scale, workers = config.scale, config.scale.workers
    least = scale.min_workers or workers
    check_share(config)
    wanted = least * scale.gpus_per_worker
    if scale.gpu and gpus < wanted:
        raise UserError(
            f"scale.gpu=true needs {wanted:g} GPUs for scale.workers={workers}, the cluster has {gpus:g}: lower scale.workers, "
            "or set scale.gpu=false to train on CPUs"
        )
    if scale.gpu is None and 0 < gpus < wanted:
        raise UserError(
            f"scale.workers={workers} needs {wanted:g} GPUs, the cluster has {gpus:g}: lower scale.workers, let workers share "
            "GPUs (scale.gpus_per_worker=0.5), or set scale.gpu=false to train on CPUs"
        )
    gpu = gpus >= wanted if scale.gpu is None else scale.gpu
    if scale.min_workers is not None:
        workers = _room(config, cpus, gpus / scale.gpus_per_worker if gpu else None)
    own = worker_cpus(cpus / workers, gpu, alone=decode_cpus is not None)
    if gpu and beside_gpu is not None:
        own = min(own, beside_gpu * scale.gpus_per_worker)
    per_worker = scale.cpus_per_worker or _floor(own)
    left = cpus - workers * per_worker
    rest = left if decode_cpus is None else decode_cpus
    per_decoder = scale.cpus_per_decoder or decoder_cpus(rest)
    if min(per_worker, per_decoder) < LEAST_CPUS or left < -1e-6 or rest + 1e-6 < per_decoder:
        needed = workers * (scale.cpus_per_worker or LEAST_CPUS) + (scale.cpus_per_decoder or LEAST_CPUS)
        apart = "" if decode_cpus is None else f" that may train and {decode_cpus:g} that may decode"
        raise UserError(
            f"the cluster has {cpus:g} CPUs{apart}; {workers} train workers and at least one decode task need {needed:g} "
            f"({workers} x {per_worker:g} + {per_decoder:g}): lower scale.workers, scale.cpus_per_worker or "
            "scale.cpus_per_decoder, or add CPUs; scale.workers=0 needs no cluster"
        )
    labels = dict(scale.train_labels), dict(scale.decode_labels)
    return Resources(workers, per_worker, per_decoder, gpu, *labels, scale.gpus_per_worker)


def worker_cpus(cpus: float, gpu: bool, alone: bool = False) -> float:
    """What a train worker reserves where there are ``cpus`` for each: 1, but no more than half of them, because the other half
    decodes for it; with a GPU ``GPU_CPUS``, if that is a quarter of them at most. On machines that do not decode (``alone``) it
    may have all of them."""
    if alone:
        return min(GPU_CPUS if gpu else 1.0, cpus)
    least = min(1.0, cpus / 2)
    return max(least, min(GPU_CPUS, cpus / 4)) if gpu else least


def decoder_cpus(cpus: float) -> float:
    """What a decode task reserves where ``cpus`` are left for all: half a CPU, so that one decodes while another waits for its
    file or hands its block on, and less where not even two would run."""
    return _floor(min(0.5, cpus / 2))


def _room(config: Config, cpus: float, gpus: float | None) -> int:
    """Workers of an elastic run, of those it allows, that the cluster has room for now."""
    scale = config.scale
    fitting = scale.workers
    if gpus is not None:
        fitting = min(fitting, int(gpus))
    if scale.cpus_per_worker is not None:
        fitting = min(fitting, int((cpus - (scale.cpus_per_decoder or LEAST_CPUS)) / scale.cpus_per_worker + 1e-6))
    return max(fitting, scale.min_workers or 1)


def _floor(cpus: float) -> float:
    """Down to hundredths, so that fractions never add up to more than there is."""
    return int(cpus * 100) / 100
