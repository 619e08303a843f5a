"""The other end of ``isolation.Child``: ``python -m pipeline.processes.child IN OUT SHARED MODULE:FUNCTION SECONDS``."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import mmap
import os
import pickle
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from pipeline.processes.isolation import Raised

GRACE_SECONDS = 30.0
"""After the time limit a process whose parent did not stop it, because there is none any more, ends by itself."""


def main(incoming: str, outgoing: str, shared: str, name: str, seconds: str) -> None:
    """Answer calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    calls, answers = Connection(int(incoming), writable=False), Connection(int(outgoing), readable=False)
    module, _, function = name.partition(":")
    call = getattr(importlib.import_module(module), function)
    memory = _Shared(int(shared))
    with contextlib.suppress(EOFError, BrokenPipeError), open(os.devnull, "w", encoding="ascii") as nowhere:
        answers.send("ready")
        while True:
            arguments = calls.recv()
            # a thread in C: it also ends a library that hangs with the interpreter's lock in its hands
            faulthandler.dump_traceback_later(float(seconds) + GRACE_SECONDS, exit=True, file=nowhere)
            try:
                result: Any = call(*arguments)
            except Exception as error:
                result = Raised(error)
            faulthandler.cancel_dump_traceback_later()
            buffers: list[pickle.PickleBuffer] = []
            content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
            answers.send((content, memory.put(buffers)))


class _Shared:
    def __init__(self, file: int) -> None:
        self.file, self.memory = file, mmap.mmap(file, mmap.PAGESIZE)

    def put(self, buffers: list[pickle.PickleBuffer]) -> list[int]:
        """Copy buffers one after the other; returns their lengths. The memory grows when it must."""
        contents = [buffer.raw() for buffer in buffers]
        lengths = [content.nbytes for content in contents]
        if sum(lengths) > len(self.memory):
            os.ftruncate(self.file, sum(lengths))
            self.memory = mmap.mmap(self.file, sum(lengths))
        place = 0
        for content, length in zip(contents, lengths, strict=True):
            self.memory[place : place + length] = content
            place += length
        return lengths


if __name__ == "__main__":
    main(*sys.argv[1:])
