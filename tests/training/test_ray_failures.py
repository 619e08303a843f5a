"""What Ray Train says of its workers, through Ray's own classes and without a cluster; and once through a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.util import construct_user_exception_with_traceback

from jobs import train
from jobs.command import run
from pipeline.errors import RunFailed, UserError
from pipeline.training.ray_fit import _Recovery
from pipeline.training.recovery import Final, StepFailed
from tests.methods.traces import small_config


def told(*raised: Exception) -> dict[int, Exception]:
    """By rank: what the controller makes of exceptions of the train function, which travel to it."""
    statuses = {}
    for rank, one in enumerate(raised):
        try:
            raise one
        except Exception as error:
            wrapped = construct_user_exception_with_traceback(error)
        statuses[rank] = WorkerStatus(running=False, error=cloudpickle.loads(cloudpickle.dumps(wrapped)))
    return WorkerGroupPollStatus(statuses).errors


def recovery(folder: Path, **train: Any) -> _Recovery:
    config = small_config(run={"storage_path": str(folder), "name": "run"}, train=train)
    config.run_folder.mkdir()
    return _Recovery(config)


@pytest.mark.parametrize("error", [UserError("2 mistakes:", ["one {x}", "two"]), RunFailed("the loss is nan")])
def test_what_would_happen_again_ends_the_run_at_once_with_its_cause(tmp_path: Path, error: UserError | RunFailed) -> None:
    with pytest.raises(type(error)) as caught:
        recovery(tmp_path).after_exception(None, told(Final(error)))
    assert str(caught.value) == str(error)
    (line,) = map(json.loads, (tmp_path / "run" / "failures.jsonl").read_text().splitlines())
    assert line["cause"] == line["stopped"] == str(error)


def test_a_step_that_fails_three_times_is_known_by_its_number(tmp_path: Path) -> None:
    callback = recovery(tmp_path, max_failures=100)
    raised = StepFailed.at(7, 1, "host", ValueError("bad: shape\nmore"))
    for _ in range(2):
        callback.after_exception(None, told(raised))
    with pytest.raises(RunFailed, match=r"^step 7 failed 3 times, .*: ValueError: bad: shape$"):
        callback.after_exception(None, told(raised))
    assert {json.loads(line)["step"] for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()} == {7}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_not_finite_starts_workers_once(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "scale.workers=1", "train.warmup_steps=0"]
    assert run(train.main, [*words, "train.log_every=1", "primary.optimizer.lr=1e30"]) == 1
    assert "the loss is nan at step" in capsys.readouterr().err
    (line,) = map(json.loads, (tmp_path / "tiny" / "failures.jsonl").read_text().splitlines())
    assert line["stopped"] == line["cause"] and "lower primary.optimizer.lr" in line["cause"]
