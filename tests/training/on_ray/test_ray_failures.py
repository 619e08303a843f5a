"""What Ray Train says of its workers, through Ray's own classes and without a cluster; and once through a real one."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.train import ControllerError, ScalingConfig
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.util import construct_user_exception_with_traceback

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.errors import RunFailed, Stopped, UserError
from pipeline.manifest.label_subset import draw_labels, write_labels
from pipeline.manifest.schema import read_manifest
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import read_metrics
from pipeline.training.on_ray import controller, run_control, worker
from pipeline.training.on_ray.controller import (
    CheckpointBeforeResize,
    ShortMessages,
    StartTimeout,
    SurvivingBackend,
    SurvivingTorchConfig,
)
from pipeline.training.on_ray.elastic_workers import OWN_CLUSTER, name_own_cluster
from pipeline.training.on_ray.restarts import FinalFailure, StepFailed
from pipeline.training.on_ray.run_control import RESIZE
from pipeline.training.on_ray.trainer import _set_limits, _take_end_reasons, fit_with_restarts
from pipeline.training.on_ray.worker import Preempted, StopPoll
from pipeline.training.prepared_run import prepare_run
from pipeline.training.watchdog import WorkerProgress
from tests.methods.traces import small_config
from tests.training.on_ray.test_trainer import worker_pids


def of_workers(*raised: Exception) -> Exception:
    """What ``fit()`` raises when train functions did, each worker's in turn; both travel to the driver."""
    statuses = {}
    for rank, one in enumerate(raised):
        try:
            raise one
        except Exception as error:
            wrapped = construct_user_exception_with_traceback(error)
        statuses[rank] = WorkerStatus(running=False, error=traveled(wrapped))
    return traveled(WorkerGroupPollStatus(statuses).get_worker_group_error())


def traveled(error: Any) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(error))


@dataclass
class Fits:
    """Instead of Ray: ends as told, each time."""

    folder: Path
    ends: list[Any]
    words: dict[int | None, str] = field(default_factory=dict)
    starts: int = 0

    def fit(self) -> Any:
        self.starts += 1
        end = self.ends[min(self.starts, len(self.ends)) - 1]
        if isinstance(end, BaseException):
            raise end
        return SimpleNamespace(return_value=end)

    def outcome(self, **train: Any) -> dict[str, Any]:
        config = small_config(run={"storage_path": str(self.folder), "name": "run"}, train=train)
        config.run_folder.mkdir(exist_ok=True)
        run: Any = SimpleNamespace(config=config, folder=config.run_folder, store=None)
        return fit_with_restarts(self.fit, lambda: self.words, run)

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "run" / "failures.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize("error", [UserError("2 mistakes:", ["one {x}", "two"]), RunFailed("the loss is nan")])
@pytest.mark.parametrize("where", ["worker", "controller"])
def test_what_would_happen_again_ends_the_run_at_once_with_its_cause(
    tmp_path: Path, error: UserError | RunFailed, where: str
) -> None:
    fits = Fits(tmp_path, [of_workers(FinalFailure(error)) if where == "worker" else traveled(ControllerError(error))])
    with pytest.raises(type(error), match=re.escape(str(error))):
        fits.outcome()
    (line,) = fits.lines()
    assert fits.starts == 1 and line["cause"] == line["stopped"] == str(error)


def test_a_step_that_fails_three_times_is_known_by_its_number(tmp_path: Path) -> None:
    fits = Fits(tmp_path, [of_workers(StepFailed.from_error(7, 1, "host", ValueError("bad: shape\nmore")))])
    with pytest.raises(RunFailed, match=r"step 7 failed 3 times, .*: ValueError: bad: shape$"):
        fits.outcome(max_failures=100)
    assert fits.starts == 3 and [line["step"] for line in fits.lines()] == [7, 7, 7]


def test_a_node_that_is_taken_away_is_no_failure(tmp_path: Path) -> None:
    lost = RuntimeError("Connection closed by peer")
    fits = Fits(tmp_path, [of_workers(Preempted("step 4 is saved"), lost), {"loss": 1.0}])
    assert fits.outcome(max_failures=0) == {"loss": 1.0}
    assert fits.starts == 2 and not fits.lines()


@pytest.mark.parametrize("kind", [WorkerGroupStartupTimeoutError, WorkerGroupStartupFailedError, ray.exceptions.RayActorError])
def test_workers_that_do_not_start_are_failures_like_others(tmp_path: Path, kind: type[Exception]) -> None:
    """Of the start, or of the controller itself: recorded, and limited by train.max_failures."""
    error = kind(2) if kind is WorkerGroupStartupTimeoutError else kind("it died")
    end = traveled(error if isinstance(error, ray.exceptions.RayActorError) else ControllerError(error))
    fits = Fits(tmp_path, [end, end, {"loss": 1.0}])
    assert fits.outcome(max_failures=2) == {"loss": 1.0}
    assert [(line["worker"], line["stopped"]) for line in fits.lines()] == [(None, None)] * 2
    fits = Fits(tmp_path, [end])
    with pytest.raises(RunFailed, match=r"3 failures without a new checkpoint .*, the last while the workers started: "):
        fits.outcome(max_failures=2)


def test_its_reason_is_the_cause_of_a_process_that_ended_itself(tmp_path: Path) -> None:
    died = ray.exceptions.RayActorError(error_msg="The actor died. Worker exit detail: exit code 1. Some common causes: ...")
    hung = WorkerHealthCheckFailedError("A worker health check failed.", failure=died)
    lost = StepFailed.from_error(7, 0, "host", RuntimeError("Connection closed by peer"))
    fits = Fits(tmp_path, [of_workers(lost, hung), {}])
    fits.words = {1: "no progress for 30 s"}
    fits.outcome()
    assert [(line["worker"], line["cause"]) for line in fits.lines()] == [(1, "no progress for 30 s")]


def test_a_start_that_takes_too_long_ends_the_controller_with_the_reason() -> None:
    said: list[Any] = []
    watch = traveled(StartTimeout("control", 0.2))  # as Ray sends it
    watch.end = lambda *words: said.append(words)
    with watch.on_worker_group_start():
        pass
    watch.after_worker_group_training_start(None)
    with pytest.raises(ValueError, match="no room"), watch.on_worker_group_start():
        raise ValueError("no room")
    time.sleep(0.5)
    assert not said
    with watch.on_worker_group_start():
        time.sleep(0.5)
    ((whom, words),) = said
    assert whom == "control" and words.startswith("the workers did not run after 0.2 s")


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_controller_gives_back_what_it_reserved_and_nothing_of_others() -> None:
    @ray.remote(num_cpus=0)
    class Controller:
        def __init__(self) -> None:  # one that waits for room, as while the workers start
            ray.util.placement_group([{"CPU": 99}], name=ray.get_runtime_context().get_actor_id())

        async def give_back(self) -> None:
            thread = threading.Thread(target=controller.remove_own_placement_groups)  # the timer's is another thread too
            thread.start()
            thread.join()

        def get_id(self) -> str:
            return str(ray.get_runtime_context().get_actor_id())

    own, other = Controller.remote(), Controller.remote()  # type: ignore[attr-defined]
    names = ray.get([own.get_id.remote(), other.get_id.remote()])
    assert find_placement_groups(names) == names
    ray.get(own.give_back.remote())
    assert find_placement_groups(names) == names[1:]
    for actor in (own, other):
        ray.kill(actor)


def find_placement_groups(names: list[str]) -> list[str]:
    groups = ray.util.placement_group_table().values()
    there = {group["name"] for group in groups if group["state"] != "REMOVED"}
    return [name for name in names if name in there]


def test_labels_that_were_drawn_again_end_the_run_at_its_next_start(tiny: Path, tmp_path: Path) -> None:
    """Before the first checkpoint nothing else would tell that other videos are labeled now."""
    manifest, labels = read_manifest(tiny / "manifest.parquet"), tmp_path / "labels.parquet"
    words = [f"data.labels={labels}", f"run.storage_path={tmp_path}"]
    write_labels(draw_labels(manifest, "2/class", 0), manifest, labels)
    prepared = prepare_run(load_config(tiny / "tiny.yaml", words))
    prepared.create_folder()
    write_labels(draw_labels(manifest, "2/class", 1), manifest, labels)
    tree, prints = prepared.run.config.model_dump(mode="json"), prepared.run.fingerprints
    with pytest.raises(UserError, match="labels of run tiny were written again since it started"):
        controller.PlannedData(tree, prints, 2, Resources(1, 1.0, 0.5, gpu=False)).configure({}, 1, None, None)
    with pytest.raises(UserError, match="labels of run tiny were written again since it started"):
        worker._train_here(prepared.run.config, {"fingerprints": prints, "lock": None}, None, WorkerProgress())


def test_what_a_worker_opens_is_watched_and_its_mistakes_are_final(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_inputs(config: Any, fingerprints: Any) -> Any:
        watched = any(thread.name == "watchdog" for thread in threading.enumerate())
        raise UserError("no manifest") if watched else AssertionError("nobody watches")

    monkeypatch.setattr(worker, "reopen_inputs", open_inputs)
    monkeypatch.setattr(worker.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    config = small_config().model_dump(mode="json")
    with pytest.raises(FinalFailure, match="no manifest"):
        worker.train_worker({"config": config, "control": None, "fingerprints": None, "lock": None})


def test_ray_finds_who_stands_still_before_the_others_tire_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKER_HEALTH_CHECK", "WORKER_GROUP_START", "COLLECTIVE"):
        monkeypatch.setenv(f"RAY_TRAIN_{name}_TIMEOUT_S", "1")  # so that it is as before afterwards
    _set_limits(small_config(train={"step_timeout_seconds": 100}, scale={"start_timeout_seconds": 7}))
    assert float(os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"]) == pytest.approx(80)
    assert float(os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"]) == 100  # and gloo's, see TorchConfig
    assert float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) == 7


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_reasons_of_ends_come_to_the_driver_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(run_control, "end_this_process", lambda reason, with_stacks: ended.append(reason))
    actor = run_control.RunControl.remote()  # type: ignore[attr-defined]
    run_control.end_with_reason(actor, 1, "no progress")
    assert [ray.get(actor.take_end_reasons.remote()) for _ in range(2)] == [{1: "no progress"}, {}]
    ray.kill(actor)
    run_control.end_with_reason(actor, 1, "nobody hears it")
    assert ended == ["no progress", "nobody hears it"]


def test_workers_that_fail_while_they_stop_are_not_started_again() -> None:
    """Nor is the cluster asked, which the command may have left: Ray would join it anew."""
    calls: list[str] = []

    def fit() -> None:
        calls.append("fit")
        raise ray.exceptions.RayActorError

    control = SimpleNamespace(take_end_reasons=SimpleNamespace(remote=lambda: calls.append("asked")))
    signals: Any = SimpleNamespace(number=signal.SIGTERM)
    run: Any = SimpleNamespace(config=SimpleNamespace(train=SimpleNamespace(max_failures=3)))
    with pytest.raises(Stopped, match="the same command continues"):
        fit_with_restarts(fit, partial(_take_end_reasons, control, signals), run)
    assert calls == ["fit"]


def test_what_ray_starts_is_told_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train takes what it hands on to its controller from the environment, by a list of names."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    for before in (None, "http://10.0.0.2:8265"):
        monkeypatch.delenv(OWN_CLUSTER, raising=False)
        if before is not None:
            monkeypatch.setenv(OWN_CLUSTER, before)
        with name_own_cluster():
            assert get_env_vars_to_propagate()[OWN_CLUSTER] == "10.0.0.1:6379"
        assert os.environ.get(OWN_CLUSTER) == before


def test_the_controller_prints_messages_without_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    said, kept = io.StringIO(), io.StringIO()
    file, terminal = logging.Handler(), logging.StreamHandler(said)
    monkeypatch.setattr(file, "emit", lambda record: kept.write(logging.Formatter().format(record)))
    log = logging.getLogger("ray.train")
    monkeypatch.setattr(log, "handlers", [file, terminal])  # in Ray's order
    monkeypatch.setattr(log, "propagate", False)
    ShortMessages().after_controller_start(None)
    try:
        raise TimeoutError("no answer")
    except TimeoutError:
        log.warning("Failed to send it.", exc_info=True)
    assert said.getvalue() == "Failed to send it.\n"
    assert "Traceback" in kept.getvalue() and "TimeoutError: no answer" in kept.getvalue()


def test_the_first_message_of_the_scaling_policy_has_no_traceback_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray calls the scaling policy before all callbacks; on a busy machine the first thing that it does is to time out."""
    said, kept = io.StringIO(), io.StringIO()
    monkeypatch.setattr(autoscaling_coordinator_client.logger, "filters", [])
    received = cloudpickle.loads(cloudpickle.dumps(ShortMessages()))  # as the controller gets it, before its logs are set up
    assert isinstance(received, ShortMessages)
    file, terminal = logging.Handler(), logging.StreamHandler(said)
    monkeypatch.setattr(file, "emit", lambda record: kept.write(logging.Formatter().format(record)))
    log = logging.getLogger("ray.train")
    monkeypatch.setattr(log, "handlers", [file, terminal])
    monkeypatch.setattr(log, "propagate", False)

    class Silent:
        def __getattr__(self, name: str) -> object:
            raise ray.exceptions.GetTimeoutError("no answer")

    client = autoscaling_coordinator_client.TrainAutoscalingCoordinatorClient("train-1")
    vars(client)["_autoscaling_coordinator"] = Silent()  # a cached property; asking for the real one would start Ray
    client.send_resource_request(ScalingConfig(num_workers=1), 1)
    assert said.getvalue().startswith("Failed to send resource request for train-1.") and said.getvalue().count("\n") == 1
    assert "Traceback" in kept.getvalue() and "GetTimeoutError: no answer" in kept.getvalue()


def test_workers_that_ray_ended_for_memory_are_ended_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise what was reserved for them stays so."""
    config = SurvivingTorchConfig(timeout_s=9)
    assert config.backend_cls is SurvivingBackend and config.timeout_s == 9

    def get(*_: object, **__: object) -> None:
        raise ray.exceptions.OutOfMemoryError("1 worker was killed")

    monkeypatch.setattr(ray, "get", get)
    workers = SimpleNamespace(execute_async=lambda *_, **__: [])
    SurvivingBackend().on_shutdown(type("Group", (), {"__len__": lambda self: 2, **vars(workers)})(), SurvivingTorchConfig())


def look(stop: StopPoll, steps: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps after which all look together."""
    clock = [0.0]
    looks: list[int] = []
    monkeypatch.setattr(worker.time, "monotonic", lambda: clock[0])
    broadcast = stop._broadcast_from_first
    noted = lambda request, following: looks.append(following) or broadcast(request, following)  # noqa: E731
    monkeypatch.setattr(stop, "_broadcast_from_first", noted)
    for step in range(steps):
        clock[0] += seconds
        before = len(looks)
        stop(step)
        looks[before:] = [step] * (len(looks) - before)
    return looks


@pytest.mark.parametrize(("seconds", "between"), [(0.01, 10), (0.5, 4), (3.0, 1)])
def test_slow_steps_are_asked_more_often_whether_to_stop(seconds: float, between: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise ten steps of 3 s would be longer than scale.stop_seconds."""
    stop = StopPoll(None, 1, 1, torch.device("cpu"), several_nodes=False)
    assert look(stop, 40, seconds, monkeypatch)[:4] == [0, 1, 1 + between, 1 + 2 * between]


def test_one_worker_alone_stops_after_the_step_under_way() -> None:
    stop = StopPoll(None, 0, 1, torch.device("cpu"), several_nodes=False)
    stop(0)
    stop._next = 10
    assert stop(1) is None
    stop.request = 15
    assert isinstance(stop(2), Stopped)
    stop.request = RESIZE
    assert isinstance(stop(3), Preempted)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_loss_that_is_not_finite_starts_workers_once(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "scale.workers=1", "train.warmup_steps=0"]
    assert run(train.main, [*words, "train.log_every=1", "primary.optimizer.lr=1e30"]) == 1
    assert "the loss is nan at step" in capsys.readouterr().err
    (line,) = map(json.loads, (tmp_path / "tiny" / "failures.jsonl").read_text().splitlines())
    assert line["stopped"] == line["cause"] and "lower primary.optimizer.lr" in line["cause"]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(500)
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_stands_still_while_it_starts_is_given_up(tiny: Path, tmp_path: Path) -> None:
    frozen: list[int] = []

    def freeze() -> None:
        while not frozen:
            for pid in worker_pids()[:1]:
                os.kill(pid, signal.SIGSTOP)
                frozen.append(pid)
            time.sleep(0.005)

    threading.Thread(target=freeze, daemon=True).start()
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}"]
    assert run(train.main, [*words, "scale.workers=1", "scale.start_timeout_seconds=30", "run.name=ray"]) == 0
    assert run(train.main, [*words, "run.name=here"]) == 0
    (line,) = map(json.loads, (tmp_path / "ray" / "failures.jsonl").read_text().splitlines())
    assert line["cause"].startswith("the workers did not run after 60 s") and line["worker"] is None
    one, other = ([(line["step"], line["loss"]) for line in read_metrics(tmp_path / name)] for name in ("ray", "here"))
    assert one == other


def test_workers_leave_a_checkpoint_before_their_number_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray asks before the first start too, when there is nobody to wait for."""
    monkeypatch.setattr(controller.ray, "get", lambda answer, timeout: answer)
    asked: list[str] = []

    class Called:
        def __init__(self, name: str, answer: object) -> None:
            self.name, self.answer = name, answer

        def remote(self) -> object:
            asked.append(self.name)
            return self.answer

    names = ["request_resize", "has_saved", "finish_resize"]
    control = SimpleNamespace(**{name: Called(name, name == "has_saved") for name in names})
    callback = CheckpointBeforeResize(control, seconds=5.0)
    callback.before_controller_execute_resize_decision(None)
    assert asked == []
    callback.after_worker_group_training_start(None)
    callback.before_controller_execute_resize_decision(None)
    assert asked == names
