"""Takes requests from their first byte to their answer, and no more of them at a time than there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.requests import Request

from pipeline.serving.answerer import Answerer
from pipeline.serving.answers import Answer, Wanted
from pipeline.serving.limits import Limits, Refusal, refuse_too_late
from pipeline.serving.server_metrics import Metrics
from pipeline.serving.uploads.fetch_uri import UriRules, check_uri, fetch
from pipeline.serving.uploads.receive_upload import JSON, get_content_type, read_uri, receive_body, save_upload

SPARE_SECONDS = 1.0
"""How much later than ``request_seconds`` an answerer is given up that does not keep to them."""


class Service:
    """Receives uploads, has them answered, and knows how many requests there are. For one event loop."""

    def __init__(
        self, answerer: Answerer, limits: Limits, scratch: Path, rules: UriRules | None = None, metrics: Metrics | None = None
    ) -> None:
        """``scratch`` is an existing folder for uploads, which are removed from it when they were answered."""
        self.answerer, self.limits, self.scratch = answerer, limits, scratch
        self.rules, self.metrics = rules or UriRules(), metrics or Metrics()
        self._uploads = 0
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._fetchers = ThreadPoolExecutor(limits.uploads, thread_name_prefix="fetch")
        self._last_seconds = 1.0

    async def predict(self, request: Request, wanted: Wanted) -> Answer:
        """Receives a file, or fetches it, and has it predicted. Raises Refusal."""
        begun = time.monotonic()
        place = tempfile.TemporaryDirectory(dir=self.scratch)  # one each, so that a file lies beside no other upload
        path = Path(place.name) / "upload"
        try:
            async with receive_body(request, self.limits) as limited:
                with self._count_upload():
                    await self._receive(limited, path)
            self._check_waiting()
        except BaseException:
            place.cleanup()
            raise
        receive_seconds = time.monotonic() - begun
        self.metrics.bytes.inc(path.stat().st_size)
        answer = await self._wait_for(asyncio.create_task(self._answer(place, path, wanted)))
        seconds = answer.seconds.model_copy(update={"receive": receive_seconds})
        for part, value in seconds.model_dump().items():
            self.metrics.seconds.labels(part).observe(value)
        return answer.model_copy(update={"seconds": seconds})

    async def finish(self) -> None:
        """Waits for the requests that are being answered."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.limits.request_seconds)
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _count_upload(self) -> Iterator[None]:
        """Raises Refusal if there are too many requests."""
        self._check_waiting()
        if self._uploads >= self.limits.uploads:
            raise self._make_busy()
        self._uploads += 1
        self.metrics.uploads.set(self._uploads)
        try:
            yield
        finally:
            self._uploads -= 1
            self.metrics.uploads.set(self._uploads)

    def _check_waiting(self) -> None:
        if len(self._tasks) >= self.limits.waiting:
            raise self._make_busy()

    def _make_busy(self) -> Refusal:
        seconds = max(1, math.ceil(min(self._last_seconds, self.limits.request_seconds)))
        return Refusal(503, "busy", "too many requests wait for their answer: try again later", retry_after=seconds)

    async def _receive(self, request: Request, path: Path) -> None:
        """Brings the file of a request to ``path``."""
        if get_content_type(request) != JSON:
            await save_upload(request, path)
            return
        uri = await read_uri(request)
        check_uri(uri, self.rules)  # before a thread is asked for it
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._fetchers, fetch, uri, self.rules, self.limits, path)

    async def _answer(self, place: tempfile.TemporaryDirectory[str], path: Path, wanted: Wanted) -> Answer:
        """Answers a request and removes its file, also where nobody waits for the answer anymore."""
        begun = time.monotonic()
        try:
            return await self.answerer.answer(path, wanted)
        finally:
            place.cleanup()
            self._last_seconds = time.monotonic() - begun

    async def _wait_for(self, task: asyncio.Task[Answer]) -> Answer:
        """Waits for an answer until it is too late. The task keeps its place in the queue until it ends: it still computes."""
        self._tasks.add(task)
        self.metrics.waiting.set(len(self._tasks))
        task.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(self.limits.request_seconds + SPARE_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError:
            raise refuse_too_late(self.limits) from None

    def _forget(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        self.metrics.waiting.set(len(self._tasks))
        if not task.cancelled():
            task.exception()  # so that asyncio does not complain of one that nobody waited for
