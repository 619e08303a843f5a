"""What Ray prints on a driver's terminal: lines that concern nobody who did not write Ray go to a file.

Only lines that are known, word for word, are taken away; whatever else workers, raylets or Ray say is shown as it comes.
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
            # what protects a cluster is there; that it is missing is said
            r"Token authentication is enabled for this Ray cluster\.",
            r"Tip: use `ray status` to view detailed cluster status",
        ]
    )
)
"""Lines of Ray 2.60, each seen in a run that went well, or said by Ray to be a hint."""
PRINTER = "ray_print_logs"
"""Ray's name for what prints the lines of its processes."""


class HarmlessLines:
    """The file that they go to, made with the first of them. Before its path is known they wait."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._waiting: list[str] = []
        self._said = False
        self._lock = threading.Lock()

    def keep(self, source: str, text: str) -> bool:
        """Write a line down and, the first time, say where. Returns False, for the line to be shown, if that fails."""
        line = f"{datetime.now().isoformat(timespec='seconds')} {source} {text}\n"
        with self._lock:
            if self._path is None:
                self._waiting.append(line)
                return True
            return self._write(line)

    def into(self, path: Path) -> None:
        """Write what waits, and from now on all, into this file."""
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
        if not self._said:
            print(f"Ray's remarks that concern no user: {self._path}", file=sys.stderr, flush=True)
            self._said = True
        return True


_lines = HarmlessLines()


@contextlib.contextmanager
def harmless_lines_in_a_file() -> Iterator[None]:
    """Start or join Ray within; from then on harmless lines of this process and of Ray's processes go to a file beside Ray's
    logs, whose path is said."""
    for handler in logging.getLogger("ray").handlers:
        if not any(isinstance(one, WithoutHarmless) for one in handler.filters):
            handler.addFilter(WithoutHarmless())
    try:
        yield
        _redirect()
    finally:
        _lines.into(_beside_rays_logs())


def _redirect() -> None:
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        printers = [handler for name, handler in dispatcher.handlers if name == PRINTER]
    except (ImportError, AttributeError, TypeError, ValueError):  # another version of Ray: all is shown
        return
    for printer in printers:
        dispatcher.remove_handler(PRINTER)
        dispatcher.add_handler(PRINTER, partial(without_harmless_lines, printer))


def without_harmless_lines(show: Callable[[dict[str, Any]], None], data: dict[str, Any]) -> None:
    """Call ``show`` with Ray's batch of lines of one process, less those that are harmless and were written down."""
    source = f"({data.get('actor_name') or data.get('task_name') or ''} pid={data.get('pid')}, ip={data.get('ip')})"
    lines = [line for line in data["lines"] if not (HARMLESS.search(str(line)) and _lines.keep(source, str(line)))]
    if lines:
        show({**data, "lines": lines})


class WithoutHarmless(logging.Filter):
    """The same for what Ray logs in this process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        text = record.getMessage()
        return not (HARMLESS.search(text) and _lines.keep(record.name, text))


def _beside_rays_logs() -> Path:
    node = ray._private.worker._global_node
    folder = Path(node.get_logs_dir_path()).resolve() if node is not None else Path()
    if node is None or not os.access(folder, os.W_OK):  # a cluster that another user started
        return Path(tempfile.gettempdir()) / f"actnetformer-ray-{os.getpid()}.log"
    return folder / f"actnetformer-{os.getpid()}.log"
