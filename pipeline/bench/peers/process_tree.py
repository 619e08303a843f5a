"""Reads the memory of a process and of all that it started, from Linux's /proc."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""The number of bytes in a page of memory."""


@dataclass
class PeakMemory:
    """The largest values that were measured at one moment."""

    resident: int = 0
    """Bytes of RAM, summed over the processes: what several of them share counts in each (RSS)."""
    proportional: int = 0
    """Bytes of RAM, where what n processes share counts 1/n in each, so once in all (PSS)."""
    processes: int = 0
    """The number of processes."""

    def update(self, pid: int, closely: bool) -> None:
        """Measures the process and all that it started once; ``closely``, which takes longer, includes ``proportional``."""
        tree = list(list_processes(pid))
        self.resident = max(self.resident, sum(map(read_resident_bytes, tree)))
        self.processes = max(self.processes, len(tree))
        if closely:
            self.proportional = max(self.proportional, sum(map(read_proportional_bytes, tree)))


def list_processes(pid: int) -> Iterator[int]:
    """Yields the process and the running ones that it started, directly or not."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):  # it has ended
                words = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                children[int(words[1])].append(int(entry))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children[one]


def read_resident_bytes(pid: int) -> int:
    """Reads the bytes of RAM that the process has mapped (RSS); 0 if it has ended."""
    try:
        return PAGE_BYTES * int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):
        return 0


def read_proportional_bytes(pid: int) -> int:
    """Reads the process's share of the bytes that it has mapped (PSS); 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
