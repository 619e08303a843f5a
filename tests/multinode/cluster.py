"""A Ray cluster on machines of their own: a head without CPUs, nodes that train, a node that decodes, and object storage."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tests.multinode.machines import Machine, Network
from tests.object_store import ENVIRONMENT

PORT, STORE_PORT = 6379, 9000
BUCKET = "cluster"
STORE_MEGABYTES = 120
"""Ray's object store on each node; ``/dev/shm`` of a machine is larger."""
START_SECONDS = 300.0
"""Time for a start of Ray and of the storage, on a busy machine."""
ATTEMPTS, ATTEMPT_SECONDS = 3, 80
"""How often Ray is started on the head at most: a raylet dies if the agent beside it is not ready within 15 s, which
``ray start`` notices only after this time."""
ROLES = {"train-1": "train", "train-2": "train", "decode-1": "decode"}
"""The nodes, and the label ``role`` of each."""


class Cluster:
    """The machines and what runs on them: ``with Cluster(folder) as cluster``. ``folder`` must not be below /tmp, which each
    machine has for itself.

    Whoever waits with ``wait`` also does what a supervisor does on real machines: it starts Ray again where it ended.
    """

    def __init__(self, folder: Path, nodes: Sequence[str] = tuple(ROLES)) -> None:
        self.folder, self.nodes = folder, list(nodes)
        self.token = secrets.token_hex(32)
        self.network = Network()
        self.rays: dict[str, subprocess.Popen[bytes]] = {}
        self.starts: list[str] = []
        """Names of nodes in the order in which Ray was started on them."""
        self._logs: list[IO[bytes]] = []
        self._log_starts: dict[str, int] = {}

    def __enter__(self) -> Cluster:
        self.network.__enter__()
        try:
            head, store = self.network.add("head"), self.network.add("store")
            self.head_address = f"{head.address}:{PORT}"
            self.environment = {
                **ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{store.address}:{STORE_PORT}", "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": self.token, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1", "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_raylet_start_wait_time_s": str(ATTEMPT_SECONDS),  # a busy machine plays all of these
            }  # fmt: skip
            self.store = store.start(
                [sys.executable, "-m", "tests.multinode.store", store.address, str(STORE_PORT)], self.open_log("store"), {}
            )
            self._wait_for_store(1)
            self.start_head()
            for name in self.nodes:
                self.start_node(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.network.__exit__()
        for log in self._logs:
            log.close()

    def open_log(self, name: str) -> IO[bytes]:
        """Opens the log of that name at its end."""
        self._logs.append((self.folder / f"{name}.log").open("ab"))
        return self._logs[-1]

    def start_head(self) -> None:
        """Starts Ray's head, on the machine that is there, and waits until it answers."""
        words = ["--head", f"--node-ip-address={self.network.machines['head'].address}", f"--port={PORT}", "--num-cpus=0"]
        for _ in range(ATTEMPTS):
            self._start_ray("head", [*words, "--include-dashboard=false"])
            ray = self.rays["head"]
            self.wait(lambda: self.has_started("head") or ray.poll() is not None, START_SECONDS, "the head did not start")  # noqa: B023
            if self.has_started("head"):
                return
        raise RuntimeError(f"Ray did not start on the head: see {self.folder / 'ray-head.log'}")

    def has_started(self, name: str) -> bool:
        """Whether the Ray that was last started there became ready."""
        with (self.folder / f"ray-{name}.log").open("rb") as file:
            file.seek(self._log_starts[name])
            return b"Ray runtime started" in file.read()

    def start_node(self, name: str) -> Machine:
        """Starts Ray on a node's machine, which is made if there is none."""
        machine = self.network.machines.get(name) or self.network.add(name)
        role = name.partition("-")[0]
        words = [f"--address={self.head_address}", f"--node-ip-address={machine.address}", "--num-cpus=2"]
        self._start_ray(name, [*words, "--labels", f"role={role},name={name}"])
        return machine

    def _start_ray(self, name: str, words: Sequence[str]) -> None:
        size = f"--object-store-memory={STORE_MEGABYTES * 2**20}"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, size, "--disable-usage-stats", "--block"]
        log = self.open_log(f"ray-{name}")
        self._log_starts[name] = log.tell()
        self.rays[name] = self.network.machines[name].start(command, log, self.environment)
        self.starts.append(name)

    def restore(self) -> None:
        """Puts back what a case took away: machines, networks, disks, and what the storage was told to do."""
        subprocess.run(self.network.machines["head"].enter("pkill", "-KILL", "-f", "jobs.train"), check=False, timeout=30)
        for machine in self.network.machines.values():
            machine.repair()
        for name in self.nodes:
            if name not in self.rays:
                self.start_node(name)
        for name in self.nodes:
            self.wait(lambda name=name: self.has_started(name), START_SECONDS, f"{name} did not start")  # type: ignore[misc]
        self.restore_storage()

    def restore_storage(self) -> None:
        """Has the storage answer each request at once."""
        for key in ("data", "runs"):
            self.command_store("delay", f"{BUCKET}/{key}", 0)
            self.command_store("fail", f"{BUCKET}/{key}", 0)

    def kill(self, name: str) -> None:
        """Ends a machine at once; a supervisor does not bring it back."""
        self.network.machines[name].kill()
        self.rays.pop(name)

    def supervise(self) -> None:
        """Starts Ray again on the machines where it ended."""
        for name, ray in list(self.rays.items()):
            if ray.poll() is not None and name != "head":
                self.start_node(name)

    def wait(self, until: Callable[[], bool], seconds: float, otherwise: str) -> float:
        """Waits until something holds; returns the seconds that it took. Raises TimeoutError with ``otherwise`` if it never
        does."""
        began = time.monotonic()
        while not until():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{otherwise} within {seconds:.0f} s: see {self.folder}")
            self.supervise()
            time.sleep(0.2)
        return time.monotonic() - began

    def run_on_head(
        self, command: Sequence[str], environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the head to its end, and returns what it printed."""
        machine, whole = self.network.machines["head"], {**self.environment, **(environment or {})}
        return subprocess.run(
            machine.enter("env", *(f"{name}={value}" for name, value in whole.items()), *command),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    def command_store(self, *words: object) -> None:
        """Gives the storage's machine a line, and waits until it has done what it says."""
        assert self.store.stdin is not None
        before = self._count_answers()
        self.store.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self._wait_for_store(before + 1)

    def _count_answers(self) -> int:
        return (self.folder / "store.log").read_text(encoding="utf-8").count("done\n") + 1

    def _wait_for_store(self, answers: int) -> None:
        def has_answered() -> bool:
            if self.store.poll() is not None:
                raise RuntimeError(f"the storage's machine ended: see {self.folder / 'store.log'}")
            text = (self.folder / "store.log").read_text(encoding="utf-8")
            return text.count("ready\n") + text.count("done\n") >= answers

        self.wait(has_answered, START_SECONDS, "the storage did not answer")
