"""The report of runs that are under way, made again whenever their files have changed, for a browser of this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path

from pipeline.analysis.records.run_record import RunRecord
from pipeline.analysis.records.study_reader import read_report_input
from pipeline.analysis.records.study_record import ReportInput
from pipeline.analysis.run_list import UNDER_WAY
from pipeline.errors import UserError
from pipeline.files.folder_lock import find_writer
from pipeline.report.loopback import HOST, LoopbackHandler, open_port
from pipeline.report.pages.report_content import collect_content
from pipeline.report.pages.report_page import render_report

FRESH_SECONDS = 600.0
"""A run whose files changed within this time counts as under way, even if no process holds it: its study may begin the next."""
READ_SUFFIXES = (".json", ".jsonl", ".yaml", ".parquet")
"""Endings of the files that a report reads."""


class LivePage:
    """A page that is as new as its files, or ``seconds`` older."""

    def __init__(self, folders: Sequence[str], seconds: float) -> None:
        """Reads the folders of runs and studies once. Raises UserError if one of them is neither."""
        self.folders, self.seconds = folders, seconds
        self._lock = threading.Lock()
        self._files: dict[str, tuple[int, int]] | None = None
        self._made = -float("inf")
        self._page = b""
        self.is_under_way = False
        """Whether the page may change by itself: a process writes there, or files changed in the last FRESH_SECONDS."""
        self.read()

    def read(self) -> bytes:
        """Returns the page. It is made again if files have changed, and not more often than every ``seconds``.

        Raises UserError if a folder is gone; a later call tries again.
        """
        with self._lock:
            if time.monotonic() - self._made < self.seconds:
                return self._page
            files = _list_files(self.folders)
            if files != self._files or self.is_under_way:  # a run that was killed changes no file anymore
                given = read_report_input(self.folders)
                live = describe_live(given, datetime.now(UTC))
                self._page = render_report(collect_content(given), Path.cwd(), live).encode()
                newest = max((changed for _, changed in files.values()), default=0) / 1e9
                self._files, self.is_under_way = files, bool(live) or time.time() - newest < FRESH_SECONDS
            self._made = time.monotonic()
            return self._page


def _list_files(folders: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Lists the files that a report may read, with size and time of change."""
    found = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for path in (os.path.join(parent, name) for name in names if name.endswith(READ_SUFFIXES)):
                try:
                    status = os.stat(path)
                except FileNotFoundError:  # replaced meanwhile
                    continue
                found[path] = status.st_size, status.st_mtime_ns
    return found


def describe_live(given: ReportInput, now: datetime) -> list[str]:
    """Describes how far each run and study is that a process works on, and when that was read; nothing if none does."""
    lines = []
    for study in given.studies:
        left = sum(study.counts.get(state, 0) for state in UNDER_WAY)
        if left and any(find_writer(run.folder) for run in given.runs if given.find_study(run) is study):
            lines.append(f"{study.name}: {len(study.trials) - left} of {len(study.trials)} trials have ended.")
    lines += [_describe_run(run) for run in given.runs if find_writer(run.folder) is not None]
    return [*lines, f"Read at {now:%H:%M:%S} UTC."] if lines else []


def _describe_run(run: RunRecord) -> str:
    steps = run.config.get("train.steps")
    if not run.lines:
        return f"{run.name} is starting."
    last = run.lines[-1]
    parts = [f"{run.name}: step {run.last_step:,}" + (f" of {steps:,}" if steps else "")]
    if last.get("clips_per_second") is not None:
        parts.append(f"{last['clips_per_second']:.0f} videos a second")
    if last.get("seconds/data") is not None and last.get("seconds/step"):
        parts.append(f"{last['seconds/data'] / last['seconds/step']:.0%} of the time waiting for data")
    if last.get("eta_seconds") is not None and steps and run.last_step < steps:
        minutes = round(last["eta_seconds"] / 60)
        parts.append(f"{minutes // 60} h {minutes % 60} min left" if minutes >= 60 else f"{minutes} min left")
    return ", ".join(parts) + "."


def start_live_server(page: LivePage, port: int) -> ThreadingHTTPServer:
    """Starts to listen on this machine's loopback address; call ``serve_forever``. Raises UserError if the port is taken."""
    return open_port(lambda: _LiveServer(port, page), port, "--port")


class _LiveServer(ThreadingHTTPServer):
    """A server on loopback with the page that its handlers answer with."""

    def __init__(self, port: int, page: LivePage) -> None:
        self.page = page
        super().__init__((HOST, port), _Handler)


class _Handler(LoopbackHandler):
    """Answers with the page, and has the browser ask again while a run is under way."""

    server: _LiveServer

    def answer_get(self) -> None:
        if self.path != "/":
            self.reply(404, b"only the page itself is served: open / again", "text/plain")
            return
        refresh = {"Refresh": f"{max(1, round(self.server.page.seconds))}"}
        try:
            page = self.server.page.read()
        except UserError as error:
            self.reply(500, f"{error}\n\nThe page is read again by itself.".encode(), "text/plain; charset=utf-8", refresh)
            return
        self.reply(200, page, "text/html; charset=utf-8", refresh if self.server.page.is_under_way else {})
