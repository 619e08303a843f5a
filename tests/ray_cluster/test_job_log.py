"""A log is shown once and whole, whatever happens to the connection."""

from __future__ import annotations

import pytest

from pipeline.errors import RunFailed
from pipeline.ray_cluster import job_log
from pipeline.ray_cluster.dashboard import ConnectionLost
from pipeline.ray_cluster.job_log import follow_log
from tests.ray_cluster.answering_cluster import LOST, AnsweringCluster, in_turn, job

JOB = "/api/jobs/raysubmit_a"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_log, "RETRY_SECONDS", 0.01)


def follow(cluster: AnsweringCluster, patience_seconds: float = 5.0) -> tuple[str, list[str], str]:
    """What was shown, what was warned of, and how the job ended."""
    shown: list[str] = []
    warnings: list[str] = []
    details = follow_log(cluster, "raysubmit_a", shown.append, warnings.append, patience_seconds)
    return "".join(shown), warnings, str(details.status)


def test_a_log_is_shown_until_the_job_ends() -> None:
    cluster = AnsweringCluster({JOB: in_turn(job("RUNNING"), job("SUCCEEDED"))}, [["one\n", "two\n"]])
    assert follow(cluster) == ("one\ntwo\n", [], "SUCCEEDED")


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_after_a_dropped_connection_nothing_is_shown_twice_or_left_out(cut: int) -> None:
    """Ray sends the log from its beginning each time, in other pieces."""
    pieces = ["one\ntwo\n", "thr", "ee\n"]
    broken = [*pieces[:cut], RuntimeError("WebSocket connection closed unexpectedly with close code 1006")]
    answers = in_turn(job(), LOST, LOST, job(), job(), job("SUCCEEDED"))
    cluster = AnsweringCluster({JOB: answers}, [broken, ["one\n", "two\nthree\n", "four\n"]])
    shown, warnings, status = follow(cluster)
    assert (shown, status) == ("one\ntwo\nthree\nfour\n", "SUCCEEDED")
    assert [warning.split(" (")[0].split(" after")[0] for warning in warnings] == [
        "lost the connection to http://head:8265",
        "the connection is back",
    ]


def test_a_head_that_does_not_come_back_is_given_up() -> None:
    cluster = AnsweringCluster({JOB: in_turn(job(), LOST)}, [["one\n", OSError("reset")]])
    with pytest.raises(ConnectionLost, match=r"no answer for \d+ s: connection refused"):
        follow(cluster, patience_seconds=0.1)


def test_a_cluster_that_was_started_anew_does_not_know_the_job() -> None:
    cluster = AnsweringCluster({JOB: in_turn(job(), LOST, KeyError("gone"))}, [["one\n", OSError("reset")]])
    with pytest.raises(RunFailed, match=r"does not know job raysubmit_a anymore.*send the same command again"):
        follow(cluster)


def test_a_log_whose_node_is_gone_does_not_keep_the_command_waiting() -> None:
    cluster = AnsweringCluster({JOB: in_turn(job(), job("FAILED"))}, [["one\n", OSError("reset")]])
    shown, warnings, status = follow(cluster)
    assert (shown, status) == ("one\n", "FAILED")
    assert warnings[-1] == "the rest of the log cannot be read"


def test_a_connection_that_says_nothing_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that forgets a connection closes it for neither side."""
    import asyncio
    from collections.abc import AsyncIterator

    monkeypatch.setattr(job_log, "SILENT_SECONDS", 0.05)

    class Silent(AnsweringCluster):
        async def tail_log(self, job: str) -> AsyncIterator[str]:
            yield "one\n"
            if len(self.logs) == 2:
                self.logs.pop()
                await asyncio.sleep(60)
            yield "two\n"

    cluster = Silent({JOB: in_turn(job(), job(), LOST, job(), job("SUCCEEDED"))}, [[], []])
    shown, warnings, status = follow(cluster)
    assert (shown, status) == ("one\ntwo\n", "SUCCEEDED")
    assert len(warnings) == 2
