"""Follows the log of a job on a cluster until the job ends, through lost connections and restarts of the cluster's head."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import ClientError
from ray.job_submission import JobDetails

from pipeline.errors import RunFailed
from pipeline.ray_cluster.dashboard import Cluster, ConnectionLost, read_job

PATIENCE_SECONDS = 600.0
"""How long a dashboard may be silent before its job's log is given up. A head that is replaced needs some minutes."""
RETRY_SECONDS = 2.0
SILENT_SECONDS = 30.0
"""Time without a line of the log after which the dashboard is asked whether it is still there: a connection that a network has
forgotten looks like a job that says nothing."""
SILENCES = 10
"""So many times of silence in a row, and the log is read anew from the beginning, without showing it twice."""


def follow_log(
    cluster: Cluster,
    job: str,
    show: Callable[[str], None],
    warn: Callable[[str], None],
    patience_seconds: float = PATIENCE_SECONDS,
) -> JobDetails:
    """Passes the job's log to ``show`` piece by piece, from its beginning and each piece once, and returns how the job ended.

    ``warn`` gets a sentence when the connection is lost and when it is there again. Raises ConnectionLost if the dashboard
    does not answer for ``patience_seconds``, and RunFailed if the cluster was restarted and no longer knows the job.
    """
    return asyncio.run(_Follower(cluster, job, show, warn, patience_seconds).follow())


class _Follower:
    def __init__(
        self, cluster: Cluster, job: str, show: Callable[[str], None], warn: Callable[[str], None], patience_seconds: float
    ) -> None:
        self.cluster, self.job, self.show, self.warn, self.patience_seconds = cluster, job, show, warn, patience_seconds
        self.shown = 0  # characters
        self.broken = 0  # how often in a row the log broke off with nothing new
        self.lost_at: float | None = None

    async def follow(self) -> JobDetails:
        while True:
            try:
                details = self._ask()
                if details.status.is_terminal() and self.broken > 1:  # the node that has the log is gone
                    self.warn("the rest of the log cannot be read")
                    return details
                await self._show_rest()
                details = self._ask()
                if details.status.is_terminal():
                    return details
            except ConnectionLost as error:
                self._note_loss(error)
            await asyncio.sleep(RETRY_SECONDS)

    def _ask(self) -> JobDetails:
        """Asks for the job. Raises the same as ``Cluster.read``, but RunFailed for an unknown job."""
        try:
            return read_job(self.cluster, self.job)
        except KeyError:
            raise RunFailed(
                f"the cluster at {self.cluster.address} does not know job {self.job} anymore: it was started anew, and the "
                "job ended with the old one; send the same command again, and its run continues"
            ) from None

    def _note_loss(self, error: ConnectionLost) -> None:
        now = time.monotonic()
        if self.lost_at is None:
            self.lost_at = now
            patience = f"{self.patience_seconds / 60:g} min" if self.patience_seconds >= 60 else f"{self.patience_seconds:g} s"
            self.warn(f"lost the connection to {self.cluster.address} ({error}); trying again for {patience}")
        elif now - self.lost_at > self.patience_seconds:
            raise ConnectionLost(f"no answer for {now - self.lost_at:.0f} s: {error}") from None

    def _note_answer(self) -> None:
        if self.lost_at is not None:
            self.warn(f"the connection is back after {time.monotonic() - self.lost_at:.0f} s")
        self.lost_at = None

    async def _show_rest(self) -> None:
        """Shows what was not shown yet, until the log ends. Raises ConnectionLost if it breaks off."""
        pieces, skip, silences = self.cluster.tail_log(self.job), self.shown, 0
        reader = asyncio.create_task(_read_piece(pieces))
        try:
            while silences < SILENCES:
                if not (await asyncio.wait([reader], timeout=SILENT_SECONDS))[0]:
                    silences += 1
                    if self._ask().status.is_terminal():
                        raise ConnectionLost("the job has ended, but not its log")
                    continue
                piece = reader.result()
                self._note_answer()
                if piece is None:
                    self.broken = 0
                    return
                if piece[skip:]:
                    self.broken = 0
                    self.show(piece[skip:])
                self.shown += len(piece[skip:])
                skip, silences = max(0, skip - len(piece)), 0
                reader = asyncio.create_task(_read_piece(pieces))
        except (OSError, RuntimeError, ClientError, ConnectionLost) as error:
            if isinstance(error, RunFailed):
                raise
            self.broken += 1
            raise ConnectionLost(str(error)) from None
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reader


async def _read_piece(pieces: AsyncIterator[str]) -> str | None:
    """Reads the next piece of a log; None at its end."""
    return await anext(pieces, None)
