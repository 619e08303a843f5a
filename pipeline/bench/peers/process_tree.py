"""The memory of a process and all that it started, from Linux's /proc."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class PeakMemory:
    """The most that was seen at one moment."""

    resident: int = 0
    """Bytes, summed over the processes: what several of them share counts in each."""
    proportional: int = 0
    """Bytes: what n processes share counts 1/n in each, so once in all (PSS)."""
    processes: int = 0

    def look(self, pid: int, closely: bool) -> None:
        """Look at the tree once; ``closely``, which takes longer, at what is shared too."""
        tree = list(descendants(pid))
        self.resident = max(self.resident, sum(map(resident, tree)))
        self.processes = max(self.processes, len(tree))
        if closely:
            self.proportional = max(self.proportional, sum(map(proportional, tree)))


def descendants(pid: int) -> Iterator[int]:
    """The process and all that it started, directly or not, and that run."""
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


def resident(pid: int) -> int:
    """Bytes of RAM that the process has mapped (RSS); 0 if it has ended."""
    try:
        return PAGE * int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):
        return 0


def proportional(pid: int) -> int:
    """Its share of them (PSS); 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
