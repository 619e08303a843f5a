"""A process keeps the memory that it frees and has fewer page faults. Tests run in child processes since this is permanent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.processes.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from pipeline.processes.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    sum(float(torch.ones(12_000_000).sum()) for _ in range(4))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(5)))
"""


def faults(how: str) -> int:
    """Page faults while four blocks of 48 MB, which were used and freed before, are used again; the least of 5 repeats."""
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    assert faults("keep") < 1000
    assert faults("give back") > 10_000


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert keep_freed_memory() is False
