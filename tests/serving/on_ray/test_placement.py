"""What replicas reserve on a cluster, and how long is waited for machines that are still to come. Without Ray."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from jobs import serve as serve_job
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.saved_models.saved_run import SavedRun
from pipeline.serving.on_ray import start
from pipeline.serving.on_ray.placement import plan_replica
from tests.serving.web.test_access import TOKEN


def change(config: Config, **scale: Any) -> Config:
    return config.model_copy(update={"scale": config.scale.model_copy(update={"gpu": None, **scale})})


def plan(config: Config, replicas: int, cpus: float, gpus: float = 0.0, may_grow: bool = False, **scale: Any) -> Any:
    return plan_replica(change(config, **scale), replicas, {"CPU": cpus, "GPU": gpus}, may_grow)


def test_what_a_replica_reserves(saved: SavedRun) -> None:
    assert plan(saved.config, 2, 16.0) == {"num_cpus": 1.0}
    assert plan(saved.config, 2, 2.0) == {"num_cpus": 0.8}
    assert plan(saved.config, 2, 16.0, 4.0) == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert plan(saved.config, 8, 16.0, 4.0) == {"num_cpus": 1.0}
    assert plan(saved.config, 8, 16.0, 4.0, gpus_per_worker=0.5) == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert plan(saved.config, 2, 16.0, 4.0, gpu=False) == {"num_cpus": 1.0}


@pytest.mark.parametrize(
    ("replicas", "scale", "shown"), [(8, {"gpu": True}, "needs 8 GPUs, the cluster has 4"), (1000, {}, "needs more CPUs than")]
)
def test_what_does_not_fit_is_a_mistake_unless_the_cluster_may_grow(
    saved: SavedRun, replicas: int, scale: Any, shown: str
) -> None:
    with pytest.raises(UserError, match=shown):
        plan(saved.config, replicas, 16.0, 4.0, **scale)
    planned = {"num_cpus": 1.0, **({"num_gpus": 1.0} if scale else {})}
    assert plan(saved.config, replicas, 16.0, 4.0, may_grow=True, **scale) == planned


def test_a_rayservice_leaves_placement_to_ray_serve(saved: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its application is built before any worker pod is there, and the head has no CPUs."""
    monkeypatch.setenv("ACTNETFORMER_TOKEN", TOKEN)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    seen: list[Any] = []
    deployment = serve.deployment
    monkeypatch.setattr(serve, "deployment", lambda **words: seen.append(words) or deployment(**words))
    words = {"command": "/shared/model --host 0.0.0.0 --replicas 4"}
    for gpu, wanted in ((True, {"num_cpus": 1.0, "num_gpus": 1.0}), (False, {"num_cpus": 1.0})):
        monkeypatch.setattr(serve_job, "open_model", lambda *_, gpu=gpu: replace(saved, config=change(saved.config, gpu=gpu)))
        serve_job.build_application(words)
        model = [one for one in seen if one["name"] == "model"][-1]
        assert (model["ray_actor_options"], model["num_replicas"]) == (wanted, 4)
    monkeypatch.setattr(serve_job, "open_model", lambda *_: replace(saved, config=change(saved.config)))
    with pytest.raises(UserError, match=r"say scale\.gpu=true or scale\.gpu=false"):
        serve_job.build_application(words)


class Cluster:
    """A cluster whose machines come after some looks at it, and an application that runs a look later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: float, failure: str = "") -> None:
        self.looks, self.failure, self.seen = looks, failure, 0
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0} if self.seen > self.looks else {})
        monkeypatch.setattr(serve, "status", self.tell)
        monkeypatch.setattr(start, "POLL_SECONDS", 0.01)

    def tell(self) -> Any:
        self.seen += 1
        status = "DEPLOY_FAILED" if self.failure else "RUNNING" if self.seen > self.looks + 1 else "DEPLOYING"
        deployments = {"model": SimpleNamespace(message=self.failure)}
        return SimpleNamespace(applications={"app": SimpleNamespace(status=status, deployments=deployments, message="")})


def test_machines_that_are_still_to_come_are_waited_for(
    saved: SavedRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(monkeypatch, looks=5)
    with caplog.at_level(logging.WARNING):
        start._wait_for_replicas(saved, 2, "app")
    assert cluster.seen >= 6
    (record,) = caplog.records
    assert "needs more CPUs than the cluster's 0" in record.message
    assert "waiting for machines for up to 60 s (scale.start_timeout_seconds)" in record.message


@pytest.mark.parametrize(("looks", "shown"), [(1e9, "after 0.2 s: --replicas 2 needs more CPUs"), (-1e9, "app")])
def test_what_never_runs_is_a_mistake(saved: SavedRun, monkeypatch: pytest.MonkeyPatch, looks: float, shown: str) -> None:
    cluster = Cluster(monkeypatch, looks)
    hasty = replace(saved, config=change(saved.config, gpu=False, start_timeout_seconds=0.2))
    if looks < 0:  # the machines are there, but the replicas do not run
        cluster.looks = 1e9
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
        shown = "do not run after 0.6 s: its machines are busy"
    with pytest.raises(UserError, match=shown):
        start._wait_for_replicas(hasty, 2, "app")


def test_a_replica_that_fails_is_told_by_its_last_line(saved: SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch, 0, failure="Traceback\n  ...\nUserError: the weights were changed\n")
    with pytest.raises(UserError, match=r"the replicas do not start: UserError: the weights were changed; they read .*drift"):
        start._wait_for_replicas(saved, 2, "app")
