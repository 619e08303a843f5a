"""What a driver's terminal shows of Ray's processes: the lines of this project plainly, and nothing that concerns Ray alone.

Harmless lines of Ray, whose text is known, go to a file beside Ray's logs, ``actnetformer-PID.log``. Everything else that
workers, raylets or Ray print is shown.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray

HARMLESS = re.compile(
    "|".join(
        [
            # of Ray Train's own actor, whose arguments Ray Train keeps itself
            r"Actor with class name: 'PreemptionWatcher' .*has constructor arguments in the object store and max_restarts > 0",
            r"Progress bars (for operators )?disabled\. To enable, set `ray\.data\.DataContext",
            r"A new progress UI is available\. To enable",
            # of Ray Train's own actor, every few seconds on a cluster without a dashboard, which it would ask
            r"Failed to query Ray Train Controller actor state\. State API may be temporarily unavailable",
            # of Ray Train's controller on a busy machine, which asks again; a traceback comes with it (see ShortMessages)
            r"Failed to send resource request for train-\w+\. If this only happens transiently",
            # of torch in workers on a machine without a name server; they then call each other by address
            r"\[c10d\] The hostname of the client socket cannot be retrieved",
            # what protects a cluster is there; a warning that it is missing is shown
            r"Token authentication is enabled for this Ray cluster\.",
            r"Tip: use `ray status` to view detailed cluster status",
        ]
    )
)
"""Lines of Ray 2.60 and of torch in its workers, each seen in a run that succeeded, or marked by Ray as a hint."""
PRINTER = "ray_print_logs"
"""Ray's name for the handler that prints the output of its processes."""
TRAIN_WORKER = "RayTrainWorker"
"""Ray's name for the processes that train."""


class HarmlessLines:
    """The file of harmless lines, created with the first one. Lines are kept in memory until its path is known."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._waiting: list[str] = []
        self._lock = threading.Lock()

    def keep(self, source: str, text: str) -> bool:
        """Writes a line to the file. Returns False if it cannot."""
        line = f"{datetime.now().isoformat(timespec='seconds')} {source} {text}\n"
        with self._lock:
            if self._path is None:
                self._waiting.append(line)
                return True
            return self._write(line)

    def write_to(self, path: Path) -> None:
        """Writes the lines kept so far, and all later ones, to the file ``path``."""
        with self._lock:
            self._path = self._path or path
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                if not self._write(line):
                    sys.stderr.write(line)

    def _write(self, line: str) -> bool:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:
            return False
        return True


_lines = HarmlessLines()
_is_plain = threading.Event()


@contextlib.contextmanager
def divert_harmless_lines() -> Iterator[None]:
    """Sends harmless lines of this process and of Ray's to a file beside Ray's logs.

    Ray is started or joined within the ``with`` block; the lines are diverted from then on. What Ray prints of its processes
    has colors only on a terminal. What they print on standard output is shown whole: Ray would leave out lines of one that are
    like those of another.
    """
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # Ray alone would color lines of log files, too
    for handler in logging.getLogger("ray").handlers:
        if not any(isinstance(one, WithoutHarmless) for one in handler.filters):
            handler.addFilter(WithoutHarmless())
    try:
        yield
        _redirect()
    finally:
        _lines.write_to(_beside_rays_logs())


def _redirect() -> None:
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher
        from ray._private.ray_logging import stdout_deduplicator

        stdout_deduplicator.allow_re = re.compile("")  # two runs that are at the same step are not the same news
        printers = [handler for name, handler in dispatcher.handlers if name == PRINTER]
    except (ImportError, AttributeError, TypeError, ValueError):  # another version of Ray: all is shown
        return
    for printer in printers:
        dispatcher.remove_handler(PRINTER)
        dispatcher.add_handler(PRINTER, partial(show_without_harmless_lines, printer))


@contextlib.contextmanager
def show_train_workers_plainly() -> Iterator[None]:
    """Shows within the ``with`` block what train workers print as if this process did, without Ray's ``(NAME pid=...)``.

    That is for one run at a time. Lines on standard error, which may be a worker's last words, still name the process.
    """
    _is_plain.set()
    try:
        yield
    finally:
        _is_plain.clear()


def show_without_harmless_lines(show: Callable[..., None], data: dict[str, Any]) -> None:
    """Calls ``show`` with Ray's batch of lines of one process, without the harmless ones that were written to the file.

    ``show`` is Ray's own function. It takes ``ignore_prefix=True`` for lines to be shown plainly.
    """
    source = f"({data.get('actor_name') or data.get('task_name') or ''} pid={data.get('pid')}, ip={data.get('ip')})"
    lines = [line for line in data["lines"] if not (HARMLESS.search(str(line)) and _lines.keep(source, str(line)))]
    if lines:
        plain = _is_plain.is_set() and data.get("actor_name") == TRAIN_WORKER and not data.get("is_err")
        show({**data, "lines": lines}, **({"ignore_prefix": True} if plain else {}))


class WithoutHarmless(logging.Filter):
    """Does the same for what Ray logs in this process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the record is shown."""
        text = record.getMessage()
        return not (HARMLESS.search(text) and _lines.keep(record.name, text))


def _beside_rays_logs() -> Path:
    node = ray._private.worker._global_node
    folder = Path(node.get_logs_dir_path()).resolve() if node is not None else Path()
    if node is None or not os.access(folder, os.W_OK):  # a cluster that another user started
        return Path(tempfile.gettempdir()) / f"actnetformer-ray-{os.getpid()}.log"
    return folder / f"actnetformer-{os.getpid()}.log"
