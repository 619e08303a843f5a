"""Running a function in child processes that may crash, hang or exhaust memory without ending the rest of the work.

Video libraries are C code that reads files of any origin; their issue trackers report crashes, endless loops and memory
leaks. ``concurrent.futures`` gives up the whole pool after one crash; here only the item that caused it fails.
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

START_TIMEOUT_SECONDS = 120.0
"""Time in which a process must have imported what it needs, even on a busy machine."""
MEMORY_CHECK_SECONDS = 0.25
"""Time between two checks of the memory of a working process."""
_calls = threading.local()


@dataclass(frozen=True)
class ProcessLimits:
    """The time and memory that a child process may take for one item."""

    seconds: float = 120.0
    memory_bytes: int = 4 * 2**30
    """Memory of the process without what it shares. If it has more after an item, another process takes its place; if it has
    twice as much during an item, it is stopped."""
    address_space_bytes: int = 0
    """Address space that the process may use beyond what it has when it starts, which the system enforces at once: what asks
    for more gets an error; 0: as much as it likes. Its own threads need 80 MB of it."""


@dataclass(frozen=True)
class ProcessFailure:
    """Stands for the result of an item whose process crashed or was stopped."""

    reason: str
    is_worth_retrying: bool = field(default=False, compare=False)
    """Whether the item may not be the cause, so that it should be tried again in a new process."""


@dataclass(frozen=True)
class RaisedError:
    """Carries an exception that the function raised from the child process to its parent."""

    error: Exception


@contextlib.contextmanager
def end_calls_at(deadline: float) -> Iterator[None]:
    """Ends the calls of child processes that this thread makes within the block at ``deadline``, in the time of
    ``time.monotonic``, if their own limit is later: whoever waited for the result has then given up."""
    before, _calls.deadline = getattr(_calls, "deadline", float("inf")), deadline
    try:
        yield
    finally:
        _calls.deadline = before


def compute_seconds_left() -> float:
    """Computes the time until the deadline of ``end_calls_at``; infinite outside of it."""
    return float(getattr(_calls, "deadline", float("inf"))) - time.monotonic()


class ChildProcess:
    """A child process that calls one importable function, item by item. Arrays in the results come by shared memory.

    It is a new interpreter and not a fork, because a fork of a process with threads (torch, Arrow, Ray) has their locks in
    whatever state they were. ``multiprocessing`` would import the parent's main module, which in a Ray worker is all of Ray.
    """

    def __init__(self, function: Callable[..., Any], limits: ProcessLimits) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: _Pipe
        self._statm: int | None = None
        self._shared: mmap.mmap
        self.function, self.limits = function, limits
        _children.add(self)

    def call(self, *arguments: Any) -> Any:
        """Returns ``function(*arguments)``, or a ProcessFailure. Raises what the function raises.

        Arrays in the result are valid until the next call.
        """
        try:
            response = self._request(arguments)
        except BaseException:
            # interrupted, as by Ray when it cancels a task: the next call must not receive this call's response
            self.stop()
            raise
        if isinstance(response, ProcessFailure):
            self.stop()
            return response
        content, lengths = response
        if sum(lengths) > len(self._shared):
            self._shared = mmap.mmap(self._file, os.fstat(self._file).st_size)
        views, offset = [], 0
        for length in lengths:
            views.append(memoryview(self._shared)[offset : offset + length])
            offset += length
        result = pickle.loads(content, buffers=views)
        if self.measure_memory() > self.limits.memory_bytes:  # it leaks: the result is good, but the next call needs another
            self._end()
        if isinstance(result, RaisedError):
            raise result.error
        return result

    def _request(self, arguments: tuple[Any, ...]) -> Any:
        if compute_seconds_left() <= 0:
            return ProcessFailure("no time was left for it")
        if self._process is None:
            self._start()
        assert self._process is not None
        with contextlib.suppress(OSError):  # it ended while it was idle, which ``_receive`` notices
            self._pipe.send(pickle.dumps(arguments, protocol=pickle.HIGHEST_PROTOCOL))
        return self._receive(min(self.limits.seconds, compute_seconds_left()))

    def measure_memory(self) -> int:
        """Measures the bytes of memory that the process does not share; returns 0 where the system does not tell."""
        if self._process is None or self._statm is None:
            return 0
        try:
            fields = os.pread(self._statm, 200, 0).split()
        except OSError:  # it has ended
            return 0
        return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE

    def kill(self) -> None:
        """Kills the process. A call that another thread waits for returns a ProcessFailure."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """Ends the process at once. The next call starts a new one."""
        self.kill()
        self._end()

    def __del__(self) -> None:
        self.stop()

    def _start(self) -> None:
        to_child, from_child = os.pipe(), os.pipe()
        self._file = _anonymous_file()
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._shared = mmap.mmap(self._file, mmap.PAGESIZE)
        name = f"{self.function.__module__}:{self.function.__qualname__}"
        descriptors = (to_child[0], from_child[1], self._file)
        words = [*map(str, descriptors), name, str(self.limits.seconds), str(self.limits.address_space_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.processes.child", *words],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        os.close(to_child[0])
        os.close(from_child[1])
        with contextlib.suppress(OSError):
            self._statm = os.open(f"/proc/{self._process.pid}/statm", os.O_RDONLY)
        self._pipe = _Pipe(from_child[0], to_child[1])
        ready = self._receive(START_TIMEOUT_SECONDS)
        if isinstance(ready, ProcessFailure):
            self.stop()
            raise RuntimeError(f"a child process for {name} does not start: {ready.reason}")

    def _receive(self, seconds: float) -> Any:
        """What the process sends next, or a ProcessFailure."""
        assert self._process is not None
        waited = 0.0
        while True:
            begun = time.monotonic()
            if self._pipe.poll(max(0.0, min(MEMORY_CHECK_SECONDS, seconds - waited))):
                break
            # time in which this process was stopped, too (a frozen container, a sleeping laptop), does not count
            waited += min(time.monotonic() - begun, 2 * MEMORY_CHECK_SECONDS)
            if waited >= seconds:
                return ProcessFailure(f"no result after {round(seconds, 3):g} s")
            if self.measure_memory() > 2 * self.limits.memory_bytes:
                megabytes = 2 * self.limits.memory_bytes / 2**20
                return ProcessFailure(f"more than {megabytes:.0f} MB of memory", is_worth_retrying=True)
        try:
            return self._pipe.receive()
        except (EOFError, OSError):
            code = self._process.wait()
            how = f"crashed ({_signal_name(-code)})" if code < 0 else f"ended with exit code {code}"
            return ProcessFailure(f"the process {how}", is_worth_retrying=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._pipe.close()  # this ends the process; arrays in results stay valid
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


_children: weakref.WeakSet[ChildProcess] = weakref.WeakSet()


@atexit.register
def _stop_children() -> None:
    for child in list(_children):
        child.stop()


def count_cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[..., Any], items: Sequence[Any], processes: int | None = None, timeout_seconds: float = 120.0
) -> Iterator[tuple[int, Any]]:
    """Yields (index, function(item)) in the order in which items are done.

    Where the process crashed or exceeded its limits, the result is a ProcessFailure. ``function`` must be importable by name;
    what it raises is raised here.
    """
    remaining = iter(range(len(items)))
    done: queue.Queue[tuple[int, Any]] = queue.Queue(maxsize=1000)
    number = min(processes or count_cores(), len(items))
    children = [ChildProcess(function, ProcessLimits(timeout_seconds)) for _ in range(number)]
    lock, stopped = threading.Lock(), threading.Event()

    def work(child: ChildProcess) -> None:
        while not stopped.is_set():
            with lock:
                index = next(remaining, -1)
            if index < 0:
                break
            try:
                done.put((index, child.call(items[index])))
            except Exception as error:
                done.put((index, RaisedError(error)))
        child.stop()

    threads = [threading.Thread(target=work, args=(child,), daemon=True) for child in children]
    for thread in threads:
        thread.start()
    try:
        for _ in range(len(items)):
            index, result = done.get()
            if isinstance(result, RaisedError):
                raise result.error
            yield index, result
    finally:
        stopped.set()
        for child in children:
            child.kill()  # its thread receives a ProcessFailure and ends
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
