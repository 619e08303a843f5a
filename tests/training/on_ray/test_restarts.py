"""When to start again, and when that would be useless."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from pipeline.errors import RunFailed, UserError
from pipeline.training.on_ray.restarts import Failure, FinalFailure, Restarts, StepFailed, find_root_cause, record_failures

LOST = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4711"
DIED = RuntimeError(
    "The actor died unexpectedly before finishing this task.\n\tpid: 17\nWorker exit type: SYSTEM_ERROR Worker exit detail: "
    "Worker exits with a connection error code 2. Some common causes include: (1) memory"
)

OUT_OF_MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.2, ID: 6833d228f269) was "
    "5.80GB used / 23.54GB limit (0.246588)\nOOM kill reason: Memory usage 5926060032B exceeded threshold of 252765104B (1.0% "
    "of 25276510208B limit)\nObject store memory usage: [- objects spillable: 0\n...]\nRay killed 1 worker(s) based on the "
    "killing policy\nConsidered workers: [\nSelected to kill: (Actor(0f18fa9cca01569a51ccc1cc01000000): job ID=01000000)\n]"
)
"""What Ray 2.60 said of an actor when RAY_memory_usage_threshold was 0.01."""


def raised(worker: int, step: int, error: Exception) -> Failure:
    return Failure.from_error(worker, StepFailed.from_error(step, worker, "host", error))


def test_what_ray_says_is_understood() -> None:
    assert raised(1, 12, ValueError("bad: value\nmore")) == Failure(1, "ValueError: bad: value", 12)
    died = Failure.from_error(0, DIED)
    assert (died.step, died.cause) == (None, "the process died: Worker exits with a connection error code 2.")
    still = "hanging\nSet the RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S ... (current value: 30.0 seconds)."
    hanging = Failure.from_error(0, RuntimeError(still))
    assert hanging.cause == "stands still: no answer to Ray for 30 s (train.step_timeout_seconds)"
    silent = ray.exceptions.ActorUnavailableError("RpcError: recvmsg:Connection reset by peer rpc_code: 14", None)
    gone = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(\n)", failure=silent)
    assert Failure.from_error(0, gone).cause.startswith("the process or its node does not answer: RpcError: recvmsg")
    assert Failure.from_error(0, ValueError("one\n\ntwo")).cause == "ValueError: one | two"


def test_the_memory_monitor_is_named_in_one_line() -> None:
    error = ray.exceptions.OutOfMemoryError(OUT_OF_MEMORY)
    for said in (error, WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: Worker(...)", failure=error)):
        cause = Failure.from_error(1, said).cause
        assert "the node 10.0.0.2 ran low on memory (5.80GB of 23.54GB used)" in cause and "\n" not in cause


def test_the_root_cause_is_who_died_and_not_who_noticed() -> None:
    lost = raised(0, 12, RuntimeError(LOST))
    assert lost.is_collateral
    assert find_root_cause([lost, Failure.from_error(1, DIED)]).worker == 1
    assert find_root_cause([lost, raised(1, 12, ValueError("x"))]).worker == 1


@pytest.mark.parametrize(("error", "is_shown"), [(RuntimeError(LOST), False), (ValueError("bad"), True)])
def test_the_traceback_of_a_lost_connection_is_not_shown_and_that_of_a_mistake_is(error: Exception, is_shown: bool) -> None:
    def train() -> None:
        try:
            raise error
        except Exception as caught:
            failed = StepFailed.from_error(3, 0, "host", caught)
            raise failed from failed.__cause__

    with pytest.raises(StepFailed, match="step 3 in worker 0 on host") as raised_error:
        train()
    told = "".join(traceback.format_exception(raised_error.value))
    assert ("direct cause" in told) == is_shown and told.count("Traceback") == 1 + is_shown


def test_a_step_that_fails_three_times_ends_the_run_with_its_cause() -> None:
    restarts = Restarts(limit=100)
    failures = [raised(1, 7, ValueError("shape")), raised(0, 7, RuntimeError(LOST))]
    assert restarts.decide(4, failures) is None
    assert restarts.decide(4, [Failure.from_error(0, DIED)]) is None
    assert restarts.decide(4, failures) is None
    assert str(restarts.decide(4, failures)) == "step 7 failed 3 times, the last time in worker 1: ValueError: shape"


@pytest.mark.parametrize("error", [UserError("2 mistakes:", ["one {x}", "two"]), RunFailed("the loss is nan")])
def test_what_the_user_must_mend_is_raised_at_once_whoever_else_failed(error: UserError | RunFailed) -> None:
    """Also when the others only saw that a worker was gone."""
    verdict = Restarts(limit=100).decide(4, [raised(0, 7, RuntimeError(LOST)), Failure.from_error(1, FinalFailure(error))])
    assert type(verdict) is type(error) and str(verdict) == str(error)


def test_lost_connections_of_one_step_are_no_failing_step() -> None:
    restarts = Restarts(limit=100)
    assert [restarts.decide(4, [raised(0, 7, RuntimeError(LOST))]) for _ in range(5)] == [None] * 5


def test_failures_without_progress_are_limited_and_with_progress_are_not() -> None:
    restarts = Restarts(limit=2)
    died = [Failure.from_error(0, DIED)]
    assert [restarts.decide(step, died) for step in range(10, 60, 10)] == [None] * 5
    assert restarts.decide(50, died) is None
    text = "3 failures without a new checkpoint after step 50 (train.max_failures=2), the last in worker 0: the process died"
    assert str(restarts.decide(50, died)).startswith(text)
    assert Restarts(limit=0).decide(0, died) is not None


def test_failures_are_recorded(tmp_path: Path) -> None:
    record_failures(tmp_path / "failures.jsonl", 4, [raised(1, 7, ValueError("shape")), raised(0, 7, RuntimeError(LOST))], None)
    record_failures(tmp_path / "failures.jsonl", 4, [Failure.from_error(0, DIED)], RunFailed("why"))
    one, two = map(json.loads, (tmp_path / "failures.jsonl").read_text().splitlines())
    assert (one["checkpoint"], one["step"], one["worker"], one["cause"]) == (4, 7, 1, "ValueError: shape")
    assert (sorted(one["workers"]), one["stopped"], two["step"], two["stopped"]) == ([0, 1], None, None, "why")
