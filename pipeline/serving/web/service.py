"""Handles each request from its first byte to its answer, and refuses requests for which there is no room."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from starlette.requests import Request

from pipeline.serving.model.answerer import Answerer
from pipeline.serving.model.answers import Answer, RequestOptions
from pipeline.serving.requests.fetch_uri import UriRules, check_uri, fetch
from pipeline.serving.requests.limits import Limits, Refusal, make_busy_refusal, make_too_late_refusal, make_too_slow_refusal
from pipeline.serving.requests.receive_upload import (
    DRAIN_SECONDS,
    JSON,
    get_content_type,
    read_uri,
    receive_body,
    save_upload,
)
from pipeline.serving.requests.scratch import Scratch
from pipeline.serving.web.server_metrics import Metrics

SPARE_SECONDS = 1.0
"""How much later than ``request_seconds`` an answerer is given up that does not keep to them."""

STOP_UPLOAD_SECONDS = 5.0
"""How long files that arrive when the server is stopped may go on arriving."""


def compute_stop_seconds(limits: Limits) -> int:
    """Computes how long the requests at work may take at most when the server is stopped: each has its own limits."""
    return math.ceil(STOP_UPLOAD_SECONDS + DRAIN_SECONDS + limits.request_seconds + SPARE_SECONDS) + 1


class Service:
    """Receives uploads, has them answered, and knows how many requests there are. For one event loop."""

    def __init__(
        self,
        answerer: Answerer,
        limits: Limits,
        scratch: Scratch,
        rules: UriRules | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """``scratch`` is for uploads, which are removed from it when they were answered."""
        self.answerer, self.limits, self.scratch = answerer, limits, scratch
        self.rules, self.metrics = rules or UriRules(), metrics or Metrics()
        self._uploads = 0
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._arriving: set[asyncio.Timeout] = set()
        self._fetches = 0
        self._stopping = asyncio.Event()
        self._last_seconds = 1.0

    async def predict(self, request: Request, options: RequestOptions) -> Answer:
        """Receives a file, or fetches it, and has it predicted. Raises Refusal."""
        begun = time.monotonic()
        deadline = begun + self.limits.upload_seconds
        with contextlib.ExitStack() as undo:
            async with receive_body(request, self.limits) as limited:
                with self._count_upload():
                    upload_folder = self.scratch.make_upload_folder()
                    undo.callback(upload_folder.cleanup)
                    path = Path(upload_folder.name) / "upload"
                    async with self._end_arrival_at(deadline):
                        await self._receive(limited, path, deadline)
            self._check_waiting()
            with self.scratch.refuse_errors():
                size = path.stat().st_size
            undo.pop_all()
        receive_seconds = time.monotonic() - begun
        self.metrics.bytes.inc(size)
        answer = await self._wait_for(asyncio.create_task(self._answer(upload_folder, path, options)))
        seconds = answer.seconds.model_copy(update={"receive": receive_seconds})
        for part, value in seconds.model_dump().items():
            self.metrics.seconds.labels(part).observe(value)
        return answer.model_copy(update={"seconds": seconds})

    def stop(self) -> None:
        """Gives files that are still arriving ``STOP_UPLOAD_SECONDS`` more, and takes no new ones."""
        self._stopping.set()
        loop = asyncio.get_running_loop()
        for limit in self._arriving:
            when = limit.when()
            assert when is not None
            limit.reschedule(min(when, loop.time() + STOP_UPLOAD_SECONDS))

    async def finish(self) -> None:
        """Waits for what still computes for nobody, which ends at once: all requests were answered, or given up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_UPLOAD_SECONDS)

    @contextlib.asynccontextmanager
    async def _end_arrival_at(self, deadline: float) -> AsyncIterator[None]:
        """Raises Refusal in the block at ``deadline``, or soon after ``stop``: one rule for uploads and for URIs."""
        if self._stopping.is_set():
            raise self._make_stopping_refusal()
        try:
            async with asyncio.timeout_at(deadline) as limit:  # the loop's time is that of time.monotonic
                self._arriving.add(limit)
                try:
                    yield
                finally:
                    self._arriving.discard(limit)
        except TimeoutError:
            raise self._make_stopping_refusal() if self._stopping.is_set() else make_too_slow_refusal(self.limits) from None

    def _make_stopping_refusal(self) -> Refusal:
        return Refusal(503, "stopping", "the server is being stopped: send the file again, to whatever takes its place", 5)

    @contextlib.contextmanager
    def _count_upload(self) -> Iterator[None]:
        """Raises Refusal if there are too many requests."""
        self._check_waiting()
        if self._uploads >= self.limits.uploads:
            raise self._make_busy_refusal()
        self._uploads += 1
        self.metrics.uploads.set(self._uploads)
        try:
            yield
        finally:
            self._uploads -= 1
            self.metrics.uploads.set(self._uploads)

    def _check_waiting(self) -> None:
        if len(self._tasks) >= self.limits.waiting:
            raise self._make_busy_refusal()

    def _make_busy_refusal(self) -> Refusal:
        return make_busy_refusal(min(self._last_seconds, self.limits.request_seconds))

    async def _receive(self, request: Request, path: Path, deadline: float) -> None:
        """Brings the file of a request to ``path``."""
        if get_content_type(request) != JSON:
            await save_upload(request, path, self.scratch)
            return
        uri = await read_uri(request)
        check_uri(uri, self.rules)  # before a thread is asked for it
        if self._fetches >= self.limits.uploads:
            raise self._make_busy_refusal()
        await self._fetch(uri, path, deadline)

    def _fetch(self, uri: str, path: Path, deadline: float) -> asyncio.Future[None]:
        """Fetches a file in a thread. One that hangs, because a name server or a store does not answer, keeps neither the
        request nor the end of the program waiting."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(error: BaseException | None) -> None:
            self._fetches -= 1
            if done.cancelled():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work() -> None:
            error = None
            try:
                fetch(uri, self.rules, self.limits, path, deadline, self.scratch)
            except BaseException as found:
                error = found
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(finish, error)

        threading.Thread(target=work, name="fetch", daemon=True).start()
        self._fetches += 1
        return done

    async def _answer(self, upload_folder: tempfile.TemporaryDirectory[str], path: Path, options: RequestOptions) -> Answer:
        """Answers a request and removes its file, also where nobody waits for the answer anymore."""
        begun = time.monotonic()
        try:
            return await self.answerer.answer(path, options)
        except Exception:
            if path.exists():
                raise
            text = "the uploaded file was removed from the server's disk meanwhile: send it again"
            raise Refusal(503, "upload_lost", text, retry_after=1) from None
        finally:
            upload_folder.cleanup()
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
            raise make_too_late_refusal(self.limits) from None

    def _forget(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        self.metrics.waiting.set(len(self._tasks))
        if not task.cancelled():
            task.exception()  # so that asyncio does not complain of one that nobody waited for
