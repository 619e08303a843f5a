"""The program that runs in an ``isolation.ChildProcess``: it calls one function again and again, as its parent asks.

It is started as ``python -m pipeline.processes.child IN OUT SHARED MODULE:FUNCTION SECONDS BYTES`` with the file descriptors
of two pipes and of shared memory, the time limit of a call, and the limit of address space (0: none).
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import mmap
import os
import pickle
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from pipeline.processes.garbage import exempt_imports
from pipeline.processes.isolation import RaisedError

GRACE_SECONDS = 30.0
"""Time after the time limit of a call until the process ends by itself; before that its parent stops it, if it still runs."""


def main(incoming: str, outgoing: str, shared: str, name: str, seconds: str, address_space: str) -> None:
    """Runs the function for each message with arguments, and sends back its result, until the parent closes the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent handles Ctrl-C; `ray job stop` sends SIGTERM to children, too
    requests, responses = Connection(int(incoming), writable=False), Connection(int(outgoing), readable=False)
    module, _, function = name.partition(":")
    with exempt_imports():
        call = getattr(importlib.import_module(module), function)
    memory = _SharedMemory(int(shared))
    if int(address_space):
        _limit_address_space(int(address_space))
    with contextlib.suppress(EOFError, BrokenPipeError), open(os.devnull, "w", encoding="ascii") as devnull:
        responses.send("ready")
        while True:
            arguments = requests.recv()
            # this is a thread in C: it also ends a library that hangs while it holds the interpreter's lock
            faulthandler.dump_traceback_later(float(seconds) + GRACE_SECONDS, exit=True, file=devnull)
            try:
                result: Any = call(*arguments)
            except Exception as error:
                result = RaisedError(error)
            faulthandler.cancel_dump_traceback_later()
            buffers: list[pickle.PickleBuffer] = []
            content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
            responses.send((content, memory.write(buffers)))


def _limit_address_space(more: int) -> None:
    """Limits this process to ``more`` bytes beyond what its libraries have mapped."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", "rb") as file:  # where the system does not tell
        limit = int(file.read().split()[0]) * mmap.PAGESIZE + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _SharedMemory:
    def __init__(self, file: int) -> None:
        self.file, self.memory = file, mmap.mmap(file, mmap.PAGESIZE)

    def write(self, buffers: list[pickle.PickleBuffer]) -> list[int]:
        """Copy buffers one after the other, and return their lengths. The memory grows if it is too small."""
        contents = [buffer.raw() for buffer in buffers]
        lengths = [content.nbytes for content in contents]
        if sum(lengths) > len(self.memory):
            os.ftruncate(self.file, sum(lengths))
            self.memory = mmap.mmap(self.file, sum(lengths))
        offset = 0
        for content, length in zip(contents, lengths, strict=True):
            self.memory[offset : offset + length] = content
            offset += length
        return lengths


if __name__ == "__main__":
    main(*sys.argv[1:])
