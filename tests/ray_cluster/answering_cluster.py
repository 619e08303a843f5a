"""A cluster that answers what a test writes, as the dashboard of a real one does, and breaks where the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from ray.job_submission import JobDetails

from pipeline.ray_cluster.dashboard import ConnectionLost

Piece = str | Exception


class AnsweringCluster:
    """``answers`` has what is read by path; an exception is raised. ``logs`` has what each reading of a log gives, in turn; the
    last one is given again."""

    def __init__(self, answers: dict[str, Any] | None = None, logs: Sequence[Sequence[Piece]] = ()) -> None:
        self.address = "http://head:8265"
        self.answers, self.logs = answers or {}, list(logs)
        self.stopped: list[str] = []
        self.when_stopped: Callable[[], None] = lambda: None

    def read(self, path: str) -> Any:
        answer = self.answers[urlsplit(path).path]
        answer = answer.pop(0) if isinstance(answer, _InTurn) and len(answer) > 1 else answer
        answer = answer[0] if isinstance(answer, _InTurn) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def tail_log(self, job: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0) if len(self.logs) > 1 else self.logs[0]:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def stop_job(self, job: str) -> None:
        self.stopped.append(job)
        self.when_stopped()


class _InTurn(list[Any]):
    pass


def in_turn(*answers: Any) -> Any:
    """Answers of a path one after the other; the last one for good."""
    return _InTurn(answers)


def job(status: str = "RUNNING", **more: Any) -> dict[str, Any]:
    """A submitted job as the dashboard tells it."""
    facts = {
        "type": "SUBMISSION",
        "submission_id": "raysubmit_a",
        "status": status,
        "entrypoint": "python -m jobs.train",
        **more,
    }
    JobDetails(**facts)  # what is no answer of Ray's is a mistake of the test
    return facts


LOST = ConnectionLost("connection refused")
