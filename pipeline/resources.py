"""What a run needs against what the cluster has, before anything starts: Ray would wait forever without a word.

Two train workers of 1 CPU on 2 CPUs leave none for decode tasks; actors that take every CPU leave none for readers. So
small machines get fractions, and what cannot fit is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import UserError

LEAST_CPUS = 0.1
"""Smallest fraction given out by itself."""


@dataclass(frozen=True)
class Resources:
    """What one run reserves."""

    workers: int
    cpus_per_worker: float
    cpus_per_decoder: float
    gpu: bool
    gpus_per_worker: float
    """A fraction where trials share a GPU; 0 without."""

    @property
    def decoders(self) -> str:
        """For the start line."""
        return f"{self.cpus_per_decoder:g} CPU per decode task"


def fit_resources(config: Config, cpus: float, gpus: float) -> Resources:
    """Reservations for a run on a cluster with these totals. Raises UserError naming what is missing and the remedy.

    Half of the CPUs at most go to workers that do not have a GPU each; decode tasks share the rest.
    """
    scale, workers = config.scale, config.scale.workers
    share = config.data.labeled_per_step
    if share % workers:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        raise UserError(
            f"scale.workers={workers} does not divide data.labeled_per_step={share}, the global batch: use one of {divisors}"
        )
    wanted = workers * scale.gpus_per_worker
    if scale.gpu and gpus < wanted:
        raise UserError(f"scale.gpu=true needs {wanted:g} GPUs for scale.workers={workers}, the cluster has {gpus:g}")
    gpu = gpus >= wanted if scale.gpu is None else scale.gpu
    per_worker = scale.cpus_per_worker or _floor(min(1.0, cpus / 2 / workers))
    rest = cpus - workers * per_worker
    per_decoder = scale.cpus_per_decoder or _floor(min(1.0, rest / 2))
    if min(per_worker, per_decoder) < LEAST_CPUS or rest + 1e-6 < per_decoder:
        needed = workers * (scale.cpus_per_worker or LEAST_CPUS) + (scale.cpus_per_decoder or LEAST_CPUS)
        raise UserError(
            f"the cluster has {cpus:g} CPUs; {workers} train workers and at least one decode task need {needed:g} "
            f"({workers} x {per_worker:g} + {per_decoder:g}): lower scale.workers, scale.cpus_per_worker or "
            "scale.cpus_per_decoder, or add CPUs; scale.workers=0 needs no cluster"
        )
    return Resources(workers, per_worker, per_decoder, gpu, scale.gpus_per_worker if gpu else 0.0)


def _floor(cpus: float) -> float:
    """Down to hundredths, so that fractions never add up to more than there is."""
    return int(cpus * 100) / 100
