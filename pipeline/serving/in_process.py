"""Answers by a model in this process, and chooses between that and replicas on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.answers import Answer, RequestOptions
from pipeline.serving.model.served_model import ServedModel
from pipeline.serving.requests.limits import Limits
from pipeline.serving.web.server_metrics import Metrics


class InProcess:
    """Answers by threads of this process."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.facts, self.labels = model, model.facts, model.source.manifest.classes
        self._threads = ThreadPoolExecutor(model.limits.waiting, thread_name_prefix="answer")

    async def answer(self, path: Path, options: RequestOptions) -> Answer:
        """Predicts a file in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.model.answer, path, options)

    async def is_ready(self) -> bool:
        """Whether a request would be answered now: the model is loaded before there is an ``InProcess``."""
        return True

    def stop(self) -> None:
        """Ends its threads and processes, after requests that are being answered."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.model.stop()


@contextmanager
def open_answerer(
    saved: SavedRun, replicas: int, limits: Limits, metrics: Metrics, scratch: Path | None = None
) -> Iterator[Answerer]:
    """Loads a model into this process, or with ``replicas`` above 0 that often on a Ray cluster, until the block ends.

    ``scratch`` is where replicas make their folders for uploads; None: in the system's temporary folder.
    """
    if replicas == 0:
        here = InProcess(ServedModel(saved, limits, metrics.batch.observe))
        try:
            yield here
        finally:
            here.stop()
    else:
        from pipeline.serving.on_ray.start import open_replicas  # only where --replicas asks for Ray

        with open_replicas(saved, replicas, limits, scratch) as there:
            yield there
