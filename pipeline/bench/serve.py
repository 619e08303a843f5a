"""Measures what serving a model over HTTP costs and brings, compared with a plain loop that predicts the same files."""

from __future__ import annotations

import http.client
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline.bench.figures import compute_ratio
from pipeline.clips.source import open_source
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.methods import build_students
from pipeline.prediction.input_videos import InputVideo
from pipeline.prediction.predict_inputs import choose_scorer, predict_inputs
from pipeline.run_folder.contents import Fingerprints
from pipeline.saved_models.saved_run import SavedRun, open_file_source
from pipeline.serving.in_process import open_answerer
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.requests.limits import Limits
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.access import Access
from pipeline.serving.web.app import build_app
from pipeline.serving.web.http_server import make_server, open_socket
from pipeline.serving.web.server_metrics import Metrics
from pipeline.serving.web.service import Service
from pipeline.video.probe import Probe, ProbeOptions, probe_file

CLIENTS = (1, 4, 16)
"""How many clients ask at the same time."""
MAX_FILES = 8
"""Different files that are asked about."""


def bench_serve(config: Config, replicas: int, requests: int, repeats: int) -> dict[str, Any]:
    """Measures requests a second, and the median and the 99th percentile of a request's time, at 1, 4 and 16 clients.

    In each repeat a plain loop probes, decodes and scores as many files in this process, one after the other, with the same
    weights, which are random, and the same decoder. ``serve_ratio`` is the server's rate at 16 clients over the loop's, and
    ``clients`` has the same for each number of them. Server, clients and loop share this machine. Raises UserError if the
    data has no test videos.
    """
    source, _ = open_source(config)
    rows = source.find_evaluation_rows("test")[:MAX_FILES]
    paths = [Path(source.manifest.locate(int(row))) for row in rows]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"bench serve uploads local files, and {missing[0]} is none")
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        saved = _save_random_weights(config, source.manifest.classes, Path(folder))
        loop = _PlainLoop(saved)
        metrics = Metrics()
        limits = Limits(waiting=max(CLIENTS), request_seconds=600.0)
        seconds: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
        waits: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
        plain: list[float] = []
        with (
            open_answerer(saved, replicas, limits, metrics) as answerer,
            _Server(answerer, limits, metrics, Path(folder)) as server,
        ):
            for repeat in range(repeats + 1):  # the first warms up, with a few requests
                count = requests if repeat else min(requests, max(CLIENTS))
                own = loop.measure(paths, count)
                for clients in CLIENTS:
                    elapsed, each = server.measure(paths, count, clients)
                    if repeat:
                        seconds[clients].append(elapsed)
                        waits[clients] += each
                if repeat:
                    plain.append(own)
    return {
        **compute_ratio("serve_ratio", plain, seconds[max(CLIENTS)]),
        "clients": {
            str(clients): {
                **compute_ratio("ratio", plain, seconds[clients]),
                "requests_a_second": round(requests / float(np.median(seconds[clients])), 2),
                "p50_ms": round(1000 * float(np.percentile(waits[clients], 50)), 1),
                "p99_ms": round(1000 * float(np.percentile(waits[clients], 99)), 1),
            }
            for clients in CLIENTS
        },
        "loop_a_second": round(requests / float(np.median(plain)), 2),
        "requests": requests, "replicas": replicas, "files": len(paths),
        "protocol": f"{config.evaluation.clips} x {config.evaluation.crops}",
    }  # fmt: skip


def _save_random_weights(config: Config, classes: Sequence[str], folder: Path) -> SavedRun:
    torch.manual_seed(config.run.seed)
    students = build_students(config, len(classes)).state_dict()
    prefix = "students" if config.train.ema_decay is None else "averages"
    weights = folder / "model.safetensors"
    save_file({f"{prefix}.{name}": value.contiguous() for name, value in students.items()}, weights)
    return SavedRun(folder, config, tuple(classes), Fingerprints("", "", ""), 0, weights, 0, 0)


class _PlainLoop:
    """Predicts one file after the other, as a program without a server would."""

    def __init__(self, saved: SavedRun) -> None:
        self.source, self.config = open_file_source(saved), saved.config
        self.score = choose_scorer(self.source, saved.config, saved.weights, None)

    def measure(self, paths: Sequence[Path], count: int) -> float:
        """Returns the seconds for ``count`` files."""
        begun = time.perf_counter()
        for number in range(count):
            path = str(paths[number % len(paths)])
            inputs = [InputVideo("file", path)]
            (prediction,) = predict_inputs(self.source, self.config, inputs, self.score, _probe)
            assert prediction.is_ok, prediction.reason
        return time.perf_counter() - begun


def _probe(locations: Sequence[str]) -> list[Probe]:
    return [probe_file(location, ProbeOptions(decoder="pyav")) for location in locations]


class _Server:
    """A web server in a thread, on a free port."""

    def __init__(self, answerer: Answerer, limits: Limits, metrics: Metrics, scratch: Path) -> None:
        self.server = make_server(build_app(Service(answerer, limits, Scratch(scratch), metrics=metrics), Access()))
        self.socket = open_socket("127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> _Server:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()

    def measure(self, paths: Sequence[Path], count: int, clients: int) -> tuple[float, list[float]]:
        """Returns the seconds for ``count`` requests of ``clients`` clients, and those of each request."""
        contents = [path.read_bytes() for path in paths]

        def work(client: int) -> list[float]:
            connection = http.client.HTTPConnection("127.0.0.1", self.socket.getsockname()[1], timeout=600)
            each = []
            for number in range(client, count, clients):
                begun = time.perf_counter()
                connection.request("POST", "/predict", contents[number % len(contents)], {"Content-Type": "video/mp4"})
                response = connection.getresponse()
                content = response.read()
                assert response.status == 200, content
                each.append(time.perf_counter() - begun)
            connection.close()
            return each

        with ThreadPoolExecutor(clients) as threads:
            begun = time.perf_counter()
            waits = [one for part in threads.map(work, range(clients)) for one in part]
            return time.perf_counter() - begun, waits
