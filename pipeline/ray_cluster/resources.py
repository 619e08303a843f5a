"""Compares what a run needs with what the cluster has, before anything starts; Ray itself would wait forever in silence.

Two train workers of 1 CPU each on 2 CPUs leave none for decode tasks. On small machines workers and tasks therefore reserve
fractions of a CPU, and a run that cannot fit is refused with a message.
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
"""The smallest fraction of a CPU that is reserved unless the configuration sets one."""
GPU_CPUS = 2.0
"""CPUs that a worker with a GPU reserves if there are enough: one launches kernels all the time, and on the other the same
process copies batches into pinned memory and writes checkpoints. Choice, not measured on a GPU."""


@dataclass(frozen=True)
class Resources:
    """What one run reserves in the cluster."""

    workers: int
    """The number of train workers; for an elastic run, as many as fit into the cluster now."""
    cpus_per_worker: float
    cpus_per_decoder: float
    gpu: bool
    train_labels: dict[str, str] = field(default_factory=dict)
    decode_labels: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes that may decode, as ``train_labels`` are of those that may train; empty means all nodes."""
    gpus_per_worker: float = 1.0
    """A fraction if several workers share a GPU."""
    hardware: Hardware | None = None
    """The hardware of a machine that a worker would run on; None if it was not looked at."""

    @property
    def worker(self) -> dict[str, float]:
        """What Ray reserves for one worker, by the name of the resource."""
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpu else {})}

    @property
    def decoders(self) -> str:
        """What a decode task reserves, in words for the line printed at the start."""
        return f"{self.cpus_per_decoder:g} CPU per decode task"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def has_labels(self, labels: Mapping[str, str]) -> bool:
        """Returns whether the machine has all of ``labels``."""
        return all(self.labels.get(name) == value for name, value in labels.items())


def plan_resources_on_nodes(config: Config, nodes: Sequence[Node], concurrent: int = 1) -> Resources:
    """Computes what one of ``concurrent`` runs reserves on ``nodes``, by ``scale.train_labels`` and ``scale.decode_labels``.

    If no machine may both train and decode, decode tasks do not share CPUs with workers. Raises UserError if no node has the
    labels, or as ``plan_resources`` does.
    """
    pools = []
    for knob in ("train_labels", "decode_labels"):
        labels = getattr(config.scale, knob)
        pools.append([node for node in nodes if node.has_labels(labels)])
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
    return plan_resources(config, cpus, sum(node.gpus for node in train) / concurrent, decode_cpus, beside_gpu)


def check_rows_per_worker(config: Config) -> None:
    """Raises UserError if a step has fewer rows than there are workers."""
    workers, rows = config.scale.workers, config.data.labeled_per_step
    if workers > rows:
        raise UserError(
            f"scale.workers={workers} is more than data.labeled_per_step={rows}, the global batch in rows: a worker would have "
            "none"
        )


def plan_resources(
    config: Config, cpus: float, gpus: float, decode_cpus: float | None = None, beside_gpu: float | None = None
) -> Resources:
    """Computes what a run reserves in a cluster with these numbers of CPUs and GPUs in total.

    Decode tasks share the CPUs that the workers leave (see ``compute_worker_cpus``), or the ``decode_cpus`` of machines that
    only decode. ``beside_gpu`` is the number of CPUs per GPU on the machine that has fewest. Raises UserError that names what
    is missing and the remedy.
    """
    scale, workers = config.scale, config.scale.workers
    least = scale.min_workers or workers
    check_rows_per_worker(config)
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
        workers = _count_fitting_workers(config, cpus, gpus / scale.gpus_per_worker if gpu else None)
    own = compute_worker_cpus(cpus / workers, gpu, alone=decode_cpus is not None)
    if gpu and beside_gpu is not None:
        own = min(own, beside_gpu * scale.gpus_per_worker)
    per_worker = scale.cpus_per_worker or _round_down(own)
    left = cpus - workers * per_worker
    rest = left if decode_cpus is None else decode_cpus
    per_decoder = scale.cpus_per_decoder or compute_decoder_cpus(rest)
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


def compute_worker_cpus(cpus: float, gpu: bool, alone: bool = False) -> float:
    """Returns how many CPUs a train worker reserves if there are ``cpus`` for each worker.

    That is 1, but at most half of them, because the other half decodes for it. With a GPU it is up to ``GPU_CPUS``, as far as
    that is a quarter of them. On machines that do not decode (``alone``) a worker may have all of them.
    """
    if alone:
        return min(GPU_CPUS if gpu else 1.0, cpus)
    least = min(1.0, cpus / 2)
    return max(least, min(GPU_CPUS, cpus / 4)) if gpu else least


def compute_decoder_cpus(cpus: float) -> float:
    """Returns how many CPUs a decode task reserves if ``cpus`` are left for all of them.

    That is half a CPU, so that one task decodes while another waits for its file or passes on its block; and less if
    otherwise not even two tasks could run.
    """
    return _round_down(min(0.5, cpus / 2))


def _count_fitting_workers(config: Config, cpus: float, gpus: float | None) -> int:
    """Returns how many workers of an elastic run fit into the cluster now, within the numbers that the run allows."""
    scale = config.scale
    fitting = scale.workers
    if gpus is not None:
        fitting = min(fitting, int(gpus))
    if scale.cpus_per_worker is not None:
        fitting = min(fitting, int((cpus - (scale.cpus_per_decoder or LEAST_CPUS)) / scale.cpus_per_worker + 1e-6))
    return max(fitting, scale.min_workers or 1)


def count_workers(nodes: Sequence[Node], resources: Resources, most: int) -> int:
    """Counts how many workers, up to ``most``, fit on ``nodes`` beside at least one decode task.

    ``nodes`` are what is left for the run on each machine. Ray places each worker on one machine that has the run's
    ``train_labels``.
    """

    def fit(cpus: float, node: Node) -> int:
        fitting = int(cpus / resources.cpus_per_worker + 1e-6) if resources.cpus_per_worker else most
        return min(fitting, int(node.gpus / resources.gpus_per_worker + 1e-6)) if resources.gpu else fitting

    train = [fit(node.cpus, node) if node.has_labels(resources.train_labels) else 0 for node in nodes]
    best = 0
    for own, node in zip(train, nodes, strict=True):
        left = node.cpus - resources.cpus_per_decoder
        if node.has_labels(resources.decode_labels) and left > -1e-6:  # the decode task is here
            best = max(best, sum(train) - own + min(own, fit(left, node)))
    return min(best, most)


def _round_down(cpus: float) -> float:
    """Rounds down to hundredths, so that fractions never add up to more CPUs than there are."""
    return int(cpus * 100) / 100
