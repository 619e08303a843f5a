"""Processes that may crash, hang or eat all memory without taking the rest of the work with them.

Video libraries are C code on files from anywhere: their issue trackers report crashes, endless loops and leaks.
``concurrent.futures`` gives up the whole pool after one crash; here the item is named and the others go on.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 120.0
"""For a process to import what it needs, on a busy machine."""
LOOK_SECONDS = 0.25
"""Between two looks at the memory of a process at work."""


@dataclass(frozen=True)
class Limits:
    """What one item may take."""

    seconds: float = 120.0
    memory_bytes: int = 4 * 2**30
    """Of a process beyond what it shares; with more after an item it is replaced, with twice as much during one stopped."""


@dataclass(frozen=True)
class Lost:
    """Stands for the result of an item whose process crashed or was stopped."""

    reason: str
    doubtful: bool = field(default=False, compare=False)
    """It may not have been the item's fault, so that another attempt in a fresh process is worth its price."""


@dataclass(frozen=True)
class Raised:
    """Carries an exception to the parent."""

    error: Exception


class Child:
    """A process that calls one importable function, item by item; results' arrays come by shared memory.

    A fresh interpreter: forks of threads (torch, Arrow, Ray) have their locks in whatever state they are, and
    ``multiprocessing`` would import the parent's main module, in a Ray worker all of Ray.
    """

    def __init__(self, function: Callable[..., Any], limits: Limits) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: _Pipe
        self._statm: int | None = None
        self._shared: mmap.mmap
        self.function, self.limits = function, limits
        _children.add(self)

    def call(self, *arguments: Any) -> Any:
        """``function(*arguments)``, or Lost. Raises what it raises. Arrays in the result are valid until the next call."""
        try:
            answer = self._ask(arguments)
        except BaseException:
            # interrupted, as Ray does to tasks that it cancels: the answer to come is that of another call than the next
            self.stop()
            raise
        if isinstance(answer, Lost):
            self.stop()
            return answer
        content, lengths = answer
        if sum(lengths) > len(self._shared):
            self._shared = mmap.mmap(self._file, os.fstat(self._file).st_size)
        views, place = [], 0
        for length in lengths:
            views.append(memoryview(self._shared)[place : place + length])
            place += length
        result = pickle.loads(content, buffers=views)
        if self.memory() > self.limits.memory_bytes:  # a leak: what it did is good, but it must not go on
            self._end()
        if isinstance(result, Raised):
            raise result.error
        return result

    def _ask(self, arguments: tuple[Any, ...]) -> Any:
        if self._process is None:
            self._start()
        assert self._process is not None
        with contextlib.suppress(OSError):  # it died while idle: noticed below
            self._pipe.send(pickle.dumps(arguments, protocol=pickle.HIGHEST_PROTOCOL))
        return self._receive(self.limits.seconds)

    def memory(self) -> int:
        """Bytes that the process has for itself; 0 where the system does not tell."""
        if self._process is None or self._statm is None:
            return 0
        try:
            fields = os.pread(self._statm, 200, 0).split()
        except OSError:  # it has ended
            return 0
        return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE

    def kill(self) -> None:
        """End a call that another thread waits for: it gets Lost."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process, now. Another call starts another one."""
        self.kill()
        self._end()

    def __del__(self) -> None:
        self.stop()

    def _start(self) -> None:
        here, there = os.pipe(), os.pipe()
        self._file = _anonymous_file()
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._shared = mmap.mmap(self._file, mmap.PAGESIZE)
        name = f"{self.function.__module__}:{self.function.__qualname__}"
        words = [str(number) for number in (here[0], there[1], self._file)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.processes.child", *words, name, str(self.limits.seconds)],
            pass_fds=(here[0], there[1], self._file),
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        os.close(here[0])
        os.close(there[1])
        with contextlib.suppress(OSError):
            self._statm = os.open(f"/proc/{self._process.pid}/statm", os.O_RDONLY)
        self._pipe = _Pipe(there[0], here[1])
        ready = self._receive(START_SECONDS)
        if isinstance(ready, Lost):
            self.stop()
            raise RuntimeError(f"a process for {name} does not start: {ready.reason}")

    def _receive(self, seconds: float) -> Any:
        """What the process sends next, or Lost."""
        assert self._process is not None
        waited = 0.0
        while True:
            begun = time.monotonic()
            if self._pipe.poll(max(0.0, min(LOOK_SECONDS, seconds - waited))):
                break
            # time in which this process was stopped too (a frozen container, a laptop asleep) is not the child's fault
            waited += min(time.monotonic() - begun, 2 * LOOK_SECONDS)
            if waited >= seconds:
                return Lost(f"no result after {seconds:g} s")
            if self.memory() > 2 * self.limits.memory_bytes:
                return Lost(f"more than {2 * self.limits.memory_bytes / 2**20:.0f} MB of memory", doubtful=True)
        try:
            return self._pipe.receive()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"crashed ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
            return Lost(f"the process {how}", doubtful=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._pipe.close()  # it ends when it reads the end of this; arrays handed out keep their memory
            os.close(self._file)
            statm, self._statm = self._statm, None
            if statm is not None:
                os.close(statm)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
                return
            process.kill()
            process.wait()


class _Pipe:
    def __init__(self, readable: int, writable: int) -> None:
        self.incoming, self.outgoing = Connection(readable, writable=False), Connection(writable, readable=False)
        self.send, self.receive, self.poll = self.outgoing.send_bytes, self.incoming.recv, self.incoming.poll

    def close(self) -> None:
        self.incoming.close()
        self.outgoing.close()


_children: weakref.WeakSet[Child] = weakref.WeakSet()


@atexit.register
def _stop_children() -> None:
    for child in list(_children):
        child.stop()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_isolated(
    function: Callable[..., Any], items: Sequence[Any], processes: int | None = None, timeout_seconds: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Yield (index, function(item)) in order of completion; ``Lost`` where the process crashed or ran out of time or memory.

    ``function`` must be importable by name. What it raises is raised here: only crashes and hangs are swallowed.
    """
    todo = iter(range(len(items)))
    done: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=1000)
    children = [Child(function, Limits(timeout_seconds)) for _ in range(min(processes or num_cores(), len(items)))]
    lock, stopped = threading.Lock(), threading.Event()

    def work(child: Child) -> None:
        while not stopped.is_set():
            with lock:
                index = next(todo, -1)
            if index < 0:
                break
            try:
                done.put((index, child.call(items[index])))
            except Exception as error:
                done.put((index, Raised(error)))
        child.stop()

    threads = [threading.Thread(target=work, args=(child,), daemon=True) for child in children]
    for thread in threads:
        thread.start()
    try:
        for _ in range(len(items)):
            index, result = done.get()
            if isinstance(result, Raised):
                raise result.error
            yield index, result
    finally:
        stopped.set()
        for child in children:
            child.kill()  # its thread notices
        while any(thread.is_alive() for thread in threads):
            with contextlib.suppress(queue.Empty):
                done.get(timeout=0.01)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _signal_name(number: int) -> str:
    return next((s.name for s in signal.Signals if s.value == number), f"signal {number}")
