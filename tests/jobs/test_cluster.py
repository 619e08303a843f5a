"""``jobs.cluster`` against a cluster that answers what a test writes; tests/jobs/test_cluster_life.py has a real one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs import cluster as command
from jobs.command import DONE, FAILED, USER_ERROR, run
from pipeline.errors import UserError
from pipeline.ray_cluster import cluster_jobs
from pipeline.ray_cluster.cluster_jobs import FOLDER, READER, STOP_WAIT, find_job, list_jobs, stop_job
from pipeline.ray_cluster.dashboard import ConnectionLost
from pipeline.ray_cluster.read_on_cluster import find_json_list
from tests.ray_cluster.answering_cluster import LOST, AnsweringCluster, in_turn, job

HEAD = {
    "node_id": "h", "node_ip": "10.0.0.1", "node_name": "10.0.0.1", "is_head_node": True, "state": "ALIVE",
    "resources_total": {"memory": 8.0 * 2**30, "object_store_memory": 2.0 * 2**30},
    "labels": {"ray.io/node-id": "h"},
}  # fmt: skip
TRAIN = {
    **HEAD, "node_id": "t", "node_name": "train-1", "is_head_node": False, "labels": {"ray.io/node-id": "t", "role": "train"},
    "resources_total": {"CPU": 4.0, "GPU": 1.0, "memory": 8.0 * 2**30, "object_store_memory": 2.0 * 2**30},
}  # fmt: skip
DECODE = {**TRAIN, "node_id": "d", "node_name": "decode-1", "labels": {"role": "decode"}, "resources_total": {"CPU": 8.0}}
DEAD = {**TRAIN, "node_id": "x", "node_name": "train-2", "state": "DEAD"}


def answer(*nodes: dict[str, Any], jobs: Any = ()) -> AnsweringCluster:
    return AnsweringCluster(
        {
            "/api/v0/cluster_metadata": {"data": {"rayVersion": "2.60.0", "pythonVersion": "3.11.7"}},
            "/api/v0/nodes": {"data": {"result": {"result": list(nodes)}}},
            "/nodes": {"data": {"nodeLogicalResources": {"t": "1.5/4.0 CPU\n0.0/1.0 GPU\n0B/8.0GiB memory"}}},
            "/api/jobs/": jobs if isinstance(jobs, Exception) else list(jobs),
        }
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command against a cluster; returns its exit code, and what it printed on stdout and stderr."""
    monkeypatch.setattr(cluster_jobs, "POLL_SECONDS", 0.01)

    def call(cluster: AnsweringCluster, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(command, "Dashboard", lambda address: cluster)
        code = run(command.main, ["--address", "http://head:8265", *words])
        return code, *capsys.readouterr()

    return call


def test_nodes_are_shown_with_what_they_have(call: Any) -> None:
    code, out, _ = call(answer(DECODE, TRAIN, HEAD, DEAD), "status")
    assert code == DONE
    assert out.splitlines() == [
        "http://head:8265: Ray 2.60.0, Python 3.11.7 on all nodes",
        "",
        "node                 CPUs    GPUs   memory  object store  labels",
        "10.0.0.1 (head)         0       0  8.0 GiB       2.0 GiB",
        "decode-1                8       0    0 KiB         0 KiB  role=decode",
        "train-1          1.5 of 4  0 of 1  8.0 GiB       2.0 GiB  role=train",
        "",
        "CPUs and GPUs: in use of what Ray may give away",
    ]
    state = json.loads(call(answer(TRAIN), "status", "--json")[1])
    assert (state["ray"], state["fit"], len(state["nodes"])) == ("2.60.0", None, 1)
    node = state["nodes"][0]
    assert (node["gpus"], node["cpus_in_use"], node["labels"]) == (1.0, 1.5, {"role": "train"})


def test_a_cluster_without_a_machine_says_so(call: Any) -> None:
    code, out, _ = call(answer(DEAD), "status")
    assert code == DONE and "no machine: the cluster still starts, or its machines are gone" in out
    assert "no machine" not in call(answer(HEAD), "status")[1]


def test_a_configuration_fits_or_does_not(call: Any, repository: Path) -> None:
    """By the arithmetic of tests/ray_cluster/test_resources.py."""
    demo = str(repository / "jobs/configs/demo.yaml")
    labels = ["scale.train_labels={role: train}", "scale.decode_labels={role: decode}"]
    code, out, _ = call(answer(HEAD, TRAIN, DECODE), "status", "--fits", demo, "scale.workers=1", *labels)
    assert code == DONE
    assert "fits: reserves 1 x 1 CPU and 1 GPU to train, 0.5 CPU per decode task" in out.replace("2 CPU", "1 CPU")
    assert [line.split()[-1] for line in out.splitlines()[3:6]] == ["GiB", "decode", "train"]
    code, out, _ = call(answer(HEAD, TRAIN), "status", "--fits", demo, "scale.workers=2", "scale.gpu=true", "--json")
    fit = json.loads(out)["fit"]
    assert code == FAILED
    assert not fit["fits"]
    assert "needs 2 GPUs for scale.workers=2, the cluster has 1" in fit["description"]
    code, out, _ = call(answer(HEAD, TRAIN), "status", "--fits", demo, *labels)
    assert code == FAILED
    assert "does not fit: scale.decode_labels" in out
    assert "reserves nothing" in call(answer(HEAD), "status", "--fits", demo, "scale.workers=0")[1]
    code, _, err = call(answer(HEAD), "status", "scale.workers=2")
    assert (code, "--fits FILE" in err) == (USER_ERROR, True)


def submitted(name: str, status: str = "RUNNING", folder: str | None = None, begun: int = 1, **more: Any) -> dict[str, Any]:
    return job(status, submission_id=name, start_time=begun * 1000, metadata={FOLDER: folder} if folder else {}, **more)


def test_jobs_are_shown_with_what_their_runs_say(call: Any, make_run: Any) -> None:
    """The run's folder is on this machine, as on a cluster's node; others are read by a job on the cluster."""
    folder = make_run(seed=0)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(text[:10]) + "\n")
    (folder / "evaluation.json").unlink()
    last = json.loads(text[9])
    failure = '{"time": "2026-11-29T01:02:03+00:00", "step": 7, "cause": "a node was lost"}'
    (folder / "failures.jsonl").write_text(f'{failure}\n{{"ti')  # a kill has cut the last line off
    jobs = [
        submitted("raysubmit_a", folder=str(folder), begun=30, entrypoint="python -m jobs.train --config x.yaml"),
        submitted("raysubmit_r", begun=40, entrypoint="python -m jobs.runs") | {"metadata": {READER: "1"}},
        submitted("raysubmit_b", "FAILED", begun=20, message="Job failed with exit code 2, last available logs: secret"),
        job(type="DRIVER", submission_id=None, job_id="01000000", start_time=10_000,
            driver_info={"id": "01000000", "node_ip_address": "10.0.0.9", "pid": "4711"}),
    ]  # fmt: skip
    code, out, err = call(answer(jobs=jobs), "jobs")
    lines = out.splitlines()
    assert (code, err) == (DONE, "")
    assert lines[0].split() == ["job", "state", "what", "done", "s/step", "left", "data", "wait", "begun"]
    assert lines[1].split()[:5] == ["raysubmit_a", "running", "train", folder.name, f"{last['step']:,}/1,000"]
    assert f"{last['seconds/step']:.2g}" in lines[1]
    assert f"{last['seconds/data'] / last['seconds/step']:.0%}" in lines[1]
    assert lines[2] == "    a worker failed last: 2026-11-29T01:02:03+00:00, step 7: a node was lost"
    assert "raysubmit_r" not in out  # commands' own
    assert "process 4711 on 10.0.0.9" in out
    assert "failed: Job failed with exit code 2" in out
    assert "secret" not in out
    found = json.loads(call(answer(jobs=jobs), "jobs", "--json")[1])
    assert [one["name"] for one in found] == ["raysubmit_a", "01000000", "raysubmit_b"]  # what is under way comes first
    assert found[0]["progress"]["done"] == last["step"]
    assert found[0]["progress"]["last_failure"].endswith("a node was lost")


def test_a_planted_secret_is_in_nothing_that_is_shown(call: Any) -> None:
    """Ray gives the environment of a job, and its command, to whoever may list jobs."""
    entrypoint = "python -m jobs.search --storage postgresql://ada:pl4nted@db/x"
    variables = {"env_vars": {"WANDB_API_KEY": "pl4nted"}}
    one = submitted("raysubmit_a", "SUCCEEDED", entrypoint=entrypoint, runtime_env=variables)
    cluster = answer(jobs=[one])
    cluster.answers["/api/jobs/raysubmit_a"] = one
    cluster.answers["/api/jobs/raysubmit_a/logs"] = {"logs": f"Running entrypoint: {entrypoint}\n"}
    cluster.logs = [[f"Running entrypoint: {entrypoint}\n"]]
    for words in ("jobs", "jobs --json", "logs raysubmit_a", "logs raysubmit_a --json", "logs raysubmit_a --no-follow",
                  "stop raysubmit_a", "stop raysubmit_a --json"):  # fmt: skip
        code, out, err = call(cluster, *words.split())
        assert code == DONE
        assert "pl4nted" not in out + err
        assert "raysubmit_a" in out + err or "ada:***@db" in out


def test_a_job_is_found_by_its_id_or_its_run() -> None:
    sent = [("raysubmit_a", "old", 1), ("raysubmit_b", "one", 3), ("raysubmit_c", "one", 2)]
    found = list_jobs(answer(jobs=[submitted(name, folder=f"/shared/runs/{run}", begun=begun) for name, run, begun in sent]))
    assert [find_job(found, word).name for word in ("raysubmit_c", "one", "old")] == [
        "raysubmit_c",
        "raysubmit_b",
        "raysubmit_a",
    ]
    with pytest.raises(UserError, match="no job onne; did you mean one"):
        find_job(found, "onne")
    with pytest.raises(UserError, match="no job x, nor any other"):
        find_job([], "x")


def test_a_job_is_asked_to_stop_and_waited_for(call: Any) -> None:
    environment = {"env_vars": {STOP_WAIT: "60"}}
    running, stopped = (submitted("raysubmit_a", status, runtime_env=environment) for status in ("RUNNING", "STOPPED"))
    cluster = answer(jobs=[running])
    cluster.answers["/api/jobs/raysubmit_a"] = in_turn(running, LOST, running, stopped)
    cluster.answers["/api/jobs/raysubmit_a/logs"] = {"logs": "a\n\nstopped with a checkpoint at step 12\n"}
    code, out, err = call(cluster, "stop", "raysubmit_a")
    assert (code, cluster.stopped) == (DONE, ["raysubmit_a"])
    assert err == "SIGTERM to raysubmit_a; SIGKILL in 60 s unless it has ended\n"
    assert out.splitlines() == ["    a", "    stopped with a checkpoint at step 12", "job raysubmit_a stopped"]


def test_a_job_that_ray_kills_early_is_told_before(call: Any) -> None:
    cluster = answer(jobs=[submitted("raysubmit_a")])
    cluster.answers["/api/jobs/raysubmit_a"] = submitted("raysubmit_a", "STOPPED")
    cluster.answers["/api/jobs/raysubmit_a/logs"] = {"logs": ""}
    _, _, err = call(cluster, "stop", "raysubmit_a")
    assert "was not sent by jobs.submit: unless its nodes say otherwise, Ray kills it 3 s after SIGTERM" in err


def test_what_cannot_be_stopped_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "POLL_SECONDS", 0.01)
    driver = {"id": "01000000", "node_ip_address": "10.0.0.9", "pid": "4711"}
    joined = list_jobs(answer(jobs=[job(type="DRIVER", submission_id=None, job_id="01000000", driver_info=driver)]))[0]
    with pytest.raises(UserError, match=r"end process 4711 on 10.0.0.9 there with `kill -TERM`"):
        stop_job(answer(), joined)
    stubborn = list_jobs(answer(jobs=[submitted("raysubmit_a", runtime_env={"env_vars": {STOP_WAIT: "0"}})]))[0]
    cluster = answer()
    cluster.answers["/api/jobs/raysubmit_a"] = submitted("raysubmit_a")
    assert not stop_job(cluster, stubborn, more_seconds=0.05).is_over
    cluster.answers["/api/jobs/raysubmit_a"] = LOST
    with pytest.raises(ConnectionLost):
        stop_job(cluster, stubborn, more_seconds=0.05)


def test_a_lost_cluster_is_one_message(call: Any) -> None:
    cluster = answer(jobs=LOST)
    code, out, err = call(cluster, "jobs")
    assert (code, out) == (USER_ERROR, "")
    assert err == "error: the cluster at http://head:8265 no longer answers: connection refused; run the same command again\n"


@pytest.mark.parametrize(("words", "remedy"), [(["logs", "x"], "nor any other"), (["runs", "runs"], "give an absolute path"),
                                               (["statsu"], "invalid choice")])  # fmt: skip
def test_mistakes(call: Any, words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code, _, err = call(answer(), *words)
    except SystemExit as end:
        code, err = int(end.code or 0), capsys.readouterr().err
    assert code == USER_ERROR
    assert remedy in err


def test_a_list_is_found_in_a_log() -> None:
    text = "Running entrypoint\n[notice] x\nINFO [a]\n" + json.dumps([{"a": 1}], indent=1) + "\nWARNING late\n"
    assert find_json_list(text) == [{"a": 1}]
    assert find_json_list("[]\n") == []
    assert find_json_list("error: no\n[") is None


def test_times_are_in_utc() -> None:
    one = list_jobs(answer(jobs=[submitted("raysubmit_a", begun=1_700_000_000)]))[0]
    assert one.begun == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert one.to_dict()["begun"] == "2023-11-14T22:13:20+00:00"
