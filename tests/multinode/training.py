"""A run of ``jobs.train`` on the cluster: how far it is, by what it prints, and what it left on the storage."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.multinode.cluster import BUCKET, Cluster

CONFIG = """
run: {{storage_path: s3://{bucket}/runs}}
data: {{manifest: s3://{bucket}/data/manifest.parquet, root: s3://{bucket}/data/videos,
  labeled_per_step: 4, unlabeled_per_labeled: 2, decode_size: 40, clips_per_block: 12}}
primary: {{network: {{depth: 10, width: 8, norm: group}}, clip: {{frames: 4, fps: 8, size: 32}}, optimizer: {{lr: 0.001}}}}
auxiliary: {{network: {{width: 32, depth: 2, heads: 2, patch: 8, tubelet: 2}}, clip: {{frames: 4, fps: 16, size: 32}},
  optimizer: {{lr: 0.001}}}}
train: {{warmup_steps: 2, log_every: 1, checkpoint_every: 10, max_failures: 10, step_timeout_seconds: 30}}
evaluation: {{clips: 1, crops: 1}}
scale: {{workers: 2, torch_threads: 1, start_timeout_seconds: 60, cpus_per_worker: 2, cpus_per_decoder: 1,
  train_labels: {{role: train}}, decode_labels: {{role: decode}}}}
"""


def prepare(cluster: Cluster) -> None:
    """Makes a small data set, puts it on the cluster's storage, and writes the configuration of its runs."""
    data = cluster.folder / "data"
    command = ["-m", "jobs.prepare", "synthetic", str(data), "--videos", "32", "--classes", "4", "--seed", "0"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=300)
    (cluster.folder / "config.yaml").write_text(CONFIG.format(bucket=BUCKET), encoding="utf-8")
    folder = cluster.folder / "objects"
    folder.mkdir()
    data.rename(folder / "data")
    cluster.command_store("load", folder, BUCKET)


class Run:
    """One run. ``start`` gives the command, again and again if need be."""

    def __init__(self, cluster: Cluster, name: str, words: Sequence[str] = ()) -> None:
        self.cluster, self.name, self.words = cluster, name, words
        self.log = cluster.folder / f"run-{name}.log"
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Gives the command on the head."""
        config = str(self.cluster.folder / "config.yaml")
        command = [sys.executable, "-m", "jobs.train", "--config", config, f"run.name={self.name}", *self.words]
        environment = {**self.cluster.environment, "RAY_ADDRESS": self.cluster.head_address}
        log = self.cluster.open_log(f"run-{self.name}")
        self.driver = self.cluster.network.machines["head"].start(command, log, environment)

    @property
    def text(self) -> str:
        """What the command printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    @property
    def step(self) -> int:
        """The step of the newest line that it printed."""
        return max(map(int, re.findall(r"\bstep (\d+)/\d+ ", self.text)), default=0)

    def wait_for_step(self, step: int, seconds: float) -> float:
        """Waits until a step is done; returns the seconds that it took."""

        def is_there() -> bool:
            if self.driver is not None and self.driver.poll() not in (None, 0):
                raise RuntimeError(f"{self.name} ended with exit code {self.driver.returncode}: {self.tail()}")
            return self.step >= step or self.has_ended()

        return self.cluster.wait(is_there, seconds, f"{self.name} did not reach step {step}")

    def has_ended(self) -> bool:
        """Whether the command has ended."""
        return self.driver is not None and self.driver.poll() is not None

    def finish(self, seconds: float) -> Path:
        """Waits until the command has ended well; returns a copy of the run's folder."""
        self.cluster.wait(self.has_ended, seconds, f"{self.name} did not end")
        assert self.driver is not None
        if self.driver.returncode:
            raise RuntimeError(f"{self.name} ended with exit code {self.driver.returncode}: {self.tail()}")
        folder = self.cluster.folder / "saved"
        self.cluster.command_store("save", f"{BUCKET}/runs/{self.name}/", folder)
        return folder / "runs" / self.name

    def tail(self) -> str:
        """The last lines that the command printed."""
        return " | ".join(self.text.splitlines()[-4:])
