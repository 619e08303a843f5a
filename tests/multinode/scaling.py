"""Does ``jobs.bench simulate`` predict how fast several machines train?
``python -m tests.multinode.scaling [--nodes 1,2] [--json]``

Measures a run on 1 to 4 machines that train, each with one worker, and one that decodes, twice: bound by training and bound by
decoding. Every worker may use so little of a core, and every video comes so late from the storage, that the cores of this
machine do not limit it. The simulation gets what was measured with one machine, and predicts the others. Root, iproute2 and
cgroups (version 1) are needed; twelve minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from jobs.command import DONE, run
from pipeline.bench.simulate import Site, simulate
from pipeline.errors import UserError
from pipeline.run_folder.contents import read_metrics
from tests.multinode.cluster import BUCKET, Cluster
from tests.multinode.machines import find_missing
from tests.multinode.training import Run, prepare

CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
SHARE = 2
"""Labeled videos of a step for each worker; each comes with two unlabeled ones."""
SLOTS = 3
DECODERS = 4
"""Decode tasks at once for each worker."""
BLOCKS_AHEAD = 2
STEP_SECONDS = 1.0
"""What a worker is made to need for a step."""
DELAY_SECONDS = 0.6
"""What the storage takes for a request when decoding is to be the bottleneck."""
MEASURED_STEPS = {"training": 20, "decoding": 12}
SETTLE_STEPS = {"training": 3, "decoding": 2 * BLOCKS_AHEAD + 2}
"""Steps after a change that are left out: the blocks that were decoded before it."""
START_SECONDS, STEP_LIMIT_SECONDS = 240.0, 240.0


@dataclass(frozen=True)
class Measured:
    """How fast the run was on some machines."""

    workers: int
    bound: str
    """``training`` or ``decoding``."""
    steps_per_second: float
    waited: float
    """The share of the first worker's time that it waited for clips."""
    busy_seconds: float
    """Seconds of a step in which it did not wait, with what lies between two steps."""
    collective_seconds: float
    """The part of them in which the workers add up gradients."""
    decode_seconds: float
    """Seconds to read and decode a video."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    measured: Measured
    predicted: float
    """Steps per second."""
    predicted_wait: float

    @property
    def error(self) -> float:
        """How much more the simulation predicts than there was, as a share of what was measured."""
        return self.predicted / self.measured.steps_per_second - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, predicts and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.multinode.scaling", description=__doc__)
    parser.add_argument("--nodes", metavar="1,2", default="1,2,3,4", help="numbers of machines that train, with 1 first")
    parser.add_argument("--json", action="store_true", help="the table as JSON, last")
    options = parser.parse_args(argv)
    missing = find_missing() or ("" if (CPU_GROUPS / "cpu.cfs_quota_us").exists() else "cgroups of version 1 are needed")
    if missing:
        raise UserError(f"tests.multinode.scaling makes machines of namespaces: {missing}")
    numbers = [int(word) for word in options.nodes.split(",") if word.isdecimal()]
    if not numbers or numbers[0] != 1 or not set(numbers) <= {1, 2, 3, 4}:
        raise UserError(f"--nodes {options.nodes}: give numbers from 1 to 4, with 1 first: it is what the simulation gets")
    folder = Path(tempfile.mkdtemp(prefix="scaling-", dir="/var/tmp"))
    measured: list[Measured] = []
    with Cluster(folder, ["train-1", "decode-1"]) as cluster:
        prepare(cluster)
        quota = None
        for workers in numbers:
            for number in range(2, workers + 1):
                if f"train-{number}" not in cluster.nodes:
                    cluster.nodes.append(f"train-{number}")
            cluster.restore()  # starts what is not there, and takes delays back
            quota, found = measure(cluster, workers, quota)
            measured += found
            print(*(format_measured(one) for one in found), sep="\n", flush=True)
    rows = [Row(one, *predict(one, measured)) for one in measured]
    print("\n".join(format_table(rows)))
    if options.json:
        print(json.dumps([{**asdict(row), "error": row.error} for row in rows]))
    shutil.rmtree(folder)
    return DONE


def measure(cluster: Cluster, workers: int, quota: float | None) -> tuple[float, list[Measured]]:
    """Measures a run of so many workers, bound by training and then by decoding.

    ``quota`` is the share of a core that each worker may use; None to find the one with which a step takes ``STEP_SECONDS``.
    Returns it with what was measured.
    """
    training = Run(
        cluster,
        f"workers-{workers}",
        [
            f"scale.workers={workers}", f"data.labeled_per_step={SHARE * workers}", f"data.clips_per_block={SHARE * SLOTS}",
            f"data.blocks_ahead={BLOCKS_AHEAD}", f"scale.cpus_per_decoder={2 / DECODERS / workers:.4f}",
            "train.steps=1000000", "train.checkpoint_every=1000000", "train.step_timeout_seconds=120",
        ],
    )  # fmt: skip
    training.start()
    training.wait_for_step(5, START_SECONDS)
    with CpuGroup() as group:
        trainers = find_trainers(cluster)
        assert len(trainers) == workers, f"{len(trainers)} train workers run, not {workers}"
        if quota is None:
            quota = measure_cpu_seconds(training, trainers) / STEP_SECONDS
        group.limit(trainers, quota)
        phases = {"training": wait_for_steps(training, "training")}
        cluster.command_store("delay", f"{BUCKET}/data", DELAY_SECONDS)
        phases["decoding"] = wait_for_steps(training, "decoding")
        cluster.command_store("delay", f"{BUCKET}/data", 0)
    stop(training)
    lines = {int(line["step"]): line for line in read_metrics(save(cluster, training))}
    return quota, [
        summarize(workers, bound, seconds, [lines[step] for step in range(first + 1, last + 1)])
        for bound, (first, last, seconds) in phases.items()
    ]


def find_trainers(cluster: Cluster) -> list[psutil.Process]:
    """Finds Ray Train's workers on the cluster's machines, by their process ids on this one."""
    machines = {os.readlink(f"/proc/{machine.pid}/ns/pid") for machine in cluster.network.machines.values()}
    workers = [one for one in psutil.process_iter(["cmdline"]) if "RayTrainWorker" in " ".join(one.info["cmdline"] or [])]
    return [one for one in workers if os.readlink(f"/proc/{one.pid}/ns/pid") in machines]


def measure_cpu_seconds(training: Run, trainers: Sequence[psutil.Process], steps: int = 40) -> float:
    """Measures how many CPU seconds a worker uses for a step."""
    first, before = training.step, sum(trainers[0].cpu_times()[:2])
    training.wait_for_step(first + steps, STEP_LIMIT_SECONDS)
    return float(sum(trainers[0].cpu_times()[:2]) - before) / (training.step - first)


def wait_for_steps(training: Run, bound: str) -> tuple[int, int, float]:
    """Waits until the run has settled and done the steps to be measured. Returns the first and the last step, and the seconds
    between them."""
    first = training.step + SETTLE_STEPS[bound]
    training.wait_for_step(first, STEP_LIMIT_SECONDS)
    first, began = training.step, time.monotonic()
    training.wait_for_step(first + MEASURED_STEPS[bound], STEP_LIMIT_SECONDS)
    return first, training.step, time.monotonic() - began


def stop(training: Run) -> None:
    """Ends the run with a checkpoint, which brings its metrics to the storage."""
    head = training.cluster.network.machines["head"]
    subprocess.run(head.enter("pkill", "-TERM", "-f", "jobs.train"), check=False, timeout=30)
    training.cluster.wait(training.has_ended, STEP_LIMIT_SECONDS, "the run did not stop")


def save(cluster: Cluster, training: Run) -> Path:
    """Copies the run's folder from the storage, and returns the copy."""
    folder = cluster.folder / "saved"
    cluster.command_store("save", f"{BUCKET}/runs/{training.name}/", folder)
    return folder / "runs" / training.name


def summarize(workers: int, bound: str, seconds: float, lines: Sequence[dict[str, float]]) -> Measured:
    """Summarizes the lines of metrics, one for each step, of the ``seconds`` that were measured: means, as the rate is one."""

    def mean(name: str) -> float:
        return statistics.mean(line[name] for line in lines)

    step = seconds / len(lines)  # with what lies between two steps: a line of metrics goes to the storage
    busy = step - mean("seconds/data")
    return Measured(
        workers, bound, 1 / step, 1 - busy / step, busy, mean("seconds/collective"), mean("seconds/decode_per_clip")
    )


def predict(one: Measured, measured: Sequence[Measured]) -> tuple[float, float]:
    """Predicts steps per second, and the share of time that training waits, from what one worker needed in both phases."""
    known = {other.bound: other for other in measured if other.workers == 1}
    site = Site(
        videos=10**6, labeled=10**5, workers=one.workers, decoders=DECODERS * one.workers, rows_per_step=SHARE * one.workers,
        unlabeled_per_labeled=SLOTS - 1, frames=8, decode_size=40, clips_per_block=SHARE * SLOTS, blocks_ahead=BLOCKS_AHEAD,
        decode_seconds=known[one.bound].decode_seconds, decode_spread=0.0, train_seconds=known["training"].busy_seconds,
        nodes=one.workers,
    )  # fmt: skip
    found = simulate(site, 400)
    return found["videos_per_second"] / (site.rows_per_step * site.slots), found["data_wait_share"]


class CpuGroup:
    """A control group that limits how much of a core each of some processes may use: ``with CpuGroup() as group``."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="multinode-", dir=CPU_GROUPS))

    def __enter__(self) -> CpuGroup:
        return self

    def __exit__(self, *_: object) -> None:
        folders = [*self.folder.glob("worker-*"), self.folder]
        for folder in folders:
            for pid in (folder / "cgroup.procs").read_text(encoding="ascii").split():
                (CPU_GROUPS / "cgroup.procs").write_text(pid, encoding="ascii")
            folder.rmdir()

    def limit(self, processes: Sequence[psutil.Process], share: float, period: float = 0.02) -> None:
        """Allows each process ``share`` of a core, measured anew every ``period`` seconds."""
        for number, process in enumerate(processes):
            folder = self.folder / f"worker-{number}"
            folder.mkdir(exist_ok=True)
            (folder / "cpu.cfs_period_us").write_text(str(round(1e6 * period)), encoding="ascii")
            (folder / "cpu.cfs_quota_us").write_text(str(max(1000, round(1e6 * period * share))), encoding="ascii")
            (folder / "cgroup.procs").write_text(str(process.pid), encoding="ascii")


def format_measured(one: Measured) -> str:
    """Formats what was measured for the terminal."""
    return (
        f"{one.workers} nodes, bound by {one.bound}: {one.steps_per_second:.3f} steps/s, waits {one.waited:.0%}, "
        f"{one.busy_seconds:.3f} s a step of which gradients {one.collective_seconds:.3f} s, {one.decode_seconds:.3f} s a video"
    )


def format_table(rows: Sequence[Row]) -> list[str]:
    """Formats the table as Markdown."""
    head = "| nodes that train | bound by | steps/s | predicted | error | waits | predicted |"
    return [head, "| ---: | --- | ---: | ---: | ---: | ---: | ---: |"] + [
        f"| {row.measured.workers} | {row.measured.bound} | {row.measured.steps_per_second:.3f} | {row.predicted:.3f} "
        f"| {row.error:+.1%} | {row.measured.waited:.0%} | {row.predicted_wait:.0%} |"
        for row in rows
    ]


if __name__ == "__main__":
    raise SystemExit(run(main))
