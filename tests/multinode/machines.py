"""Machines that are Linux namespaces of this one: each has its own network address, processes, host name, ``/tmp`` and
``/dev/shm``. Python and the code are shared, as if all had the same image.

Needs root, and ``ip`` and ``tc`` of iproute2. No packet leaves these namespaces, whose addresses are in 10.231.0.0/24.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SUBNET = "10.231.0."
GATEWAY = f"{SUBNET}254"
SWITCH = "switch"
TOOLS = ("ip", "tc", "unshare", "nsenter", "setpriv", "mount")
ENDS_WITH_US = ("setpriv", "--pdeathsig", "SIGKILL")
"""Before a command: it is killed when the process that started it ends, however that ends."""
TMP_MEGABYTES = 600
SHM_MEGABYTES = 400


def find_missing() -> str:
    """Says what is missing to make such machines; empty if nothing is."""
    if os.geteuid() != 0:
        return "root is needed for namespaces"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} of iproute2 and util-linux: not found"
    links = "ip link add switch type bridge && ip link add one type veth peer name other"
    namespaces = ["--net", "--pid", "--mount", "--uts", "--ipc"]
    tried = subprocess.run(["unshare", *namespaces, "--fork", "sh", "-c", links], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"namespaces cannot be made here: {tried.stderr.strip()}"


class Machine:
    """One machine. All its processes end with ``kill`` or at the end of ``with Network()``."""

    def __init__(self, network: Network, name: str, address: str, link: str) -> None:
        self.network, self.name, self.address, self.link = network, name, address, link
        self._is_limited = False
        self.processes: list[subprocess.Popen[bytes]] = []
        namespaces = ["--net", "--pid", "--mount", "--uts", "--ipc"]
        sizes = f"mount -t tmpfs -o size={TMP_MEGABYTES}m tmp /tmp && mount -t tmpfs -o size={SHM_MEGABYTES}m shm /dev/shm"
        names = f"cp /etc/hosts /tmp/hosts && echo {address} {name} >> /tmp/hosts && mount --bind /tmp/hosts /etc/hosts"
        script = f"{sizes} && {names} && hostname {name} && echo ready && exec sleep infinity"
        self.first = subprocess.Popen(
            [*ENDS_WITH_US, "unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.first.stdout is not None and self.first.stderr is not None
        if self.first.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} could not be made: {self.first.stderr.read()}")
        self.pid = int(Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children").read_text(encoding="ascii").split()[0])
        run_tool(
            "ip", "link", "add", self.link, "netns", str(network.pid), "type", "veth", "peer", "eth0", "netns", str(self.pid)
        )
        network.configure("ip", "link", "set", self.link, "master", SWITCH, "up")
        for words in (
            "link set lo up",
            f"addr add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {GATEWAY} dev eth0",  # nobody is there; Ray finds its own address by asking for the route
        ):
            run_tool(*self.enter("ip", *words.split()))

    def enter(self, *command: str) -> list[str]:
        """Returns the command line that runs a command on this machine."""
        return [
            "nsenter",
            "--target",
            str(self.pid),
            "--net",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            f"--wd={os.getcwd()}",
            *command,
        ]

    def start(self, command: Sequence[str], log: IO[Any], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts a command on this machine, with its output in ``log``."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        process = subprocess.Popen(
            self.enter(*command), stdin=subprocess.PIPE, stdout=log, stderr=log, env={**known, **environment}, bufsize=0
        )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Takes the machine off the network; its processes go on."""
        self.network.configure("ip", "link", "set", self.link, "down")

    def join(self) -> None:
        """Puts the machine on the network again."""
        self.network.configure("ip", "link", "set", self.link, "up")

    def limit_rate(self, megabits: float) -> None:
        """Limits what the machine receives and what it sends, to so many Mbit a second each."""
        self._is_limited = True
        shape = ["root", "tbf", "rate", f"{megabits:g}mbit", "burst", "64kb", "latency", "400ms"]
        run_tool(*self.enter("tc", "qdisc", "replace", "dev", "eth0", *shape))
        self.network.configure("tc", "qdisc", "replace", "dev", self.link, *shape)

    def fill_tmp(self) -> None:
        """Fills the machine's /tmp, where Ray spills and logs and decoders write."""
        subprocess.run(self.enter("sh", "-c", "cat /dev/zero > /tmp/filler"), capture_output=True, check=False)

    def repair(self) -> None:
        """Undoes ``cut``, ``limit_rate`` and ``fill_tmp``."""
        self.join()
        if self._is_limited:
            run_tool(*self.enter("tc", "qdisc", "delete", "dev", "eth0", "root"))
            self.network.configure("tc", "qdisc", "delete", "dev", self.link, "root")
            self._is_limited = False
        self.free_tmp()

    def free_tmp(self) -> None:
        """Removes what ``fill_tmp`` wrote."""
        run_tool(*self.enter("rm", "-f", "/tmp/filler"))

    def kill(self) -> None:
        """Ends the machine at once: all its processes, its memory, its disks."""
        self.first.kill()  # --kill-child: the first process of its process namespace ends with it, and so do all others
        for process in [self.first, *self.processes]:
            process.communicate(timeout=30)
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.network.machines.pop(self.name, None)


class Network:
    """A switch and the machines on it: ``with Network() as network: network.add("head")``."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self._addresses: dict[str, str] = {}
        self._made = 0

    def __enter__(self) -> Network:
        self._switch = subprocess.Popen([*ENDS_WITH_US, "unshare", "--net", "sleep", "infinity"])
        self.pid, own = self._switch.pid, os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{self.pid}/ns/net") == own and time.monotonic() < deadline:
            time.sleep(0.01)
        self.configure("ip", "link", "add", SWITCH, "type", "bridge")
        self.configure("ip", "link", "set", SWITCH, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for machine in list(self.machines.values()):
            machine.kill()
        self._switch.send_signal(signal.SIGKILL)
        self._switch.wait(10)

    def add(self, name: str) -> Machine:
        """Adds a machine. After it was killed, another one with its name gets its address."""
        address = self._addresses.setdefault(name, f"{SUBNET}{len(self._addresses) + 1}")
        self._made += 1
        self.machines[name] = machine = Machine(self, name, address, f"link{self._made}")
        return machine

    def configure(self, *command: str) -> None:
        """Runs a command of iproute2 where the switch is."""
        run_tool("nsenter", "--target", str(self.pid), "--net", *command)


def run_tool(*command: str) -> None:
    """Runs a command that must succeed; what it says is in the error if it does not."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
