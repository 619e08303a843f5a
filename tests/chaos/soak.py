"""Does a server last? ``python -m tests.chaos.soak MODEL VIDEO ... [--seconds 600] [--clients 8] [--replicas N]``

Starts ``jobs.serve`` and asks it for so long, good videos mixed with bad ones: no videos, truncated ones, too large ones,
playlists, files of the server, uploads that break off. Each answer must be the one that it must be. The memory of the server
and its processes, its open files and its files on disk are sampled, and must not grow. The exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.command import DONE, FAILED, parse_positive, run
from pipeline.errors import UserError

GROWTH = 1.15, 64 * 2**20
"""The second half may have so many times the memory of the first, and so many bytes more: allocators keep some."""
SAMPLE_SECONDS = 1.0


@dataclass
class Report:
    """What was seen."""

    answers: Counter[str] = field(default_factory=Counter)
    """How many requests of each kind got which status, as ``kind: status``."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what they must be, and requests without an answer."""
    memory: list[int] = field(default_factory=list)
    """Bytes of the server and all its processes together."""
    files: list[int] = field(default_factory=list)
    """Open files of the server's process."""
    left: list[str] = field(default_factory=list)
    """Uploads that were not removed."""
    exit_code: int | None = None

    def find_problems(self) -> list[str]:
        """Lists what a server that lasts would not have."""
        problems = list(self.wrong[:10])
        early, late = _compare_halves(self.memory)
        if late > GROWTH[0] * early + GROWTH[1]:
            problems.append(f"memory grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB")
        early, late = _compare_halves(self.files)
        if late > early + 32:
            problems.append(f"open files grew from {early} to {late}")
        problems += [f"left behind: {name}" for name in self.left[:5]]
        return problems + ([] if self.exit_code == 0 else [f"the server ended with exit code {self.exit_code}"])


def _compare_halves(samples: Sequence[int]) -> tuple[int, int]:
    """Returns the largest sample of the first half and of the second; zeros for less than two."""
    half = len(samples) // 2
    return (max(samples[:half]), max(samples[half:])) if half else (0, 0)


def make_requests(videos: Sequence[bytes]) -> dict[str, tuple[Callable[[random.Random], bytes], dict[str, str], set[int]]]:
    """Makes each kind of request: its body, its headers and the statuses that are right."""
    video, octets = {"Content-Type": "video/mp4"}, {"Content-Type": "application/octet-stream"}
    return {
        "good": (lambda chance: chance.choice(videos), video, {200}),
        "text": (lambda chance: b"no video " * chance.randrange(1, 1000), octets, {415}),
        "empty": (lambda chance: b"", octets, {400}),
        "truncated": (lambda chance: (one := chance.choice(videos))[: chance.randrange(100, len(one) // 2)], video, {415, 422}),
        "garbage": (lambda chance: b"\0\0\0\x20ftypisom" + chance.randbytes(chance.randrange(1000, 50_000)), video, {415, 422}),
        "playlist": (lambda chance: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", octets, {415}),
        "too large": (lambda chance: bytes(3 * 2**20), octets, {413}),
        "uri": (lambda chance: b'{"uri": "file:///etc/hostname"}', {"Content-Type": "application/json"}, {403}),
        "flipped": (lambda chance: _flip(chance.choice(videos), chance), video, {200, 415, 422}),
    }  # fmt: skip


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(30):
        changed[chance.randrange(8, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@contextmanager
def start_server(model: Path, words: Sequence[str], scratch: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Starts ``jobs.serve`` on a free port, and kills it at the end if it still runs."""
    command = [sys.executable, "-m", "jobs.serve", str(model), "--port", "0", "--scratch", str(scratch), "--max-megabytes", "2"]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            while line and "http://" not in line:  # Ray's processes may print before
                line = process.stdout.readline()
            found = re.search(r"http://[\w.]+:(\d+)", line)
            if not found:
                raise UserError("the server did not start")
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield process, int(found[1])
        finally:
            process.kill()


def soak(model: Path, videos: Sequence[bytes], seconds: float, clients: int, words: Sequence[str], seed: int = 0) -> Report:
    """Asks a server for so long, and stops it."""
    report, lock = Report(), threading.Lock()
    kinds = make_requests(videos)
    with tempfile.TemporaryDirectory() as scratch, start_server(model, words, Path(scratch)) as (process, port):
        end = time.monotonic() + seconds

        def work(number: int) -> None:
            chance = random.Random(f"{seed} {number}")
            while time.monotonic() < end:
                kind = "good" if chance.random() < 0.5 else chance.choice([*kinds, "broken off"])
                told = _break_off(port, videos[0]) if kind == "broken off" else _ask(port, *kinds[kind], chance)
                with lock:
                    report.answers[f"{kind}: {told[0]}"] += 1
                    report.wrong += [f"{kind}: {told[0]} {told[1]}"] if told[1] else []

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(SAMPLE_SECONDS)
            report.memory.append(_measure_memory(process.pid))
            report.files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        deadline = time.monotonic() + 30  # those that broke off may still be noticed
        while (left := [str(path) for path in Path(scratch).glob("*/*")]) and time.monotonic() < deadline:
            time.sleep(0.1)
        report.left = left
        process.send_signal(signal.SIGTERM)
        report.exit_code = process.wait(timeout=120)
        report.left += [str(path) for path in Path(scratch).iterdir()]
    return report


def _ask(
    port: int, make: Callable[[random.Random], bytes], headers: dict[str, str], right: set[int], chance: random.Random
) -> tuple[str, str]:
    """Sends a request, again while the server is busy. Returns the status, and what is wrong with the answer, or ""."""
    body = make(chance)
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("POST", "/predict", body, headers)
            response = connection.getresponse()
            content = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            return "none", f"no answer: {error!r}"
        finally:
            connection.close()
        if response.status == 503:
            time.sleep(0.2)
            continue
        is_right = response.status in right and (("classes" if response.status == 200 else "error") in content)
        return str(response.status), "" if is_right else f"{content}"


def _break_off(port: int, video: bytes) -> tuple[str, str]:
    """Sends half of an upload and goes away."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        length = f"Content-Length: {len(video)}"
        lines = ["POST /predict HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: video/mp4", length]
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + video[: len(video) // 2])
    return "gone", ""


def _measure_memory(pid: int) -> int:
    """Measures the resident memory of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except OSError:
            continue  # it has ended
    return total


def describe(report: Report) -> str:
    """Describes a report in a few lines."""
    lines = [f"{name}  {count}" for name, count in sorted(report.answers.items())]
    marks = [report.memory[index] / 2**20 for index in range(0, len(report.memory), max(1, len(report.memory) // 10))]
    lines.append("memory in MiB over time: " + " ".join(f"{mark:.0f}" for mark in marks))
    lines.append(f"open files: at most {max(report.files, default=0)}; exit code {report.exit_code}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, prints what was seen, and returns 1 if the server did not last."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("videos", type=Path, nargs="+", help="good ones, of at most 2 MiB")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=parse_positive, default=8)
    parser.add_argument("--replicas", type=int, default=0)
    options: Any = parser.parse_args(argv)
    videos = [path.read_bytes() for path in options.videos]
    report = soak(options.model, videos, options.seconds, options.clients, ["--replicas", str(options.replicas)])
    print(describe(report))
    problems = report.find_problems()
    print("\n".join(problems) or "it lasts")
    return FAILED if problems else DONE


if __name__ == "__main__":
    raise SystemExit(run(main))
