"""The same run on a real Ray cluster: two workers, one of them killed, against one process that was not."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from jobs import train
from jobs.command import run
from pipeline.config import load_config
from pipeline.errors import Stopped, UserError
from pipeline.ray_cluster.resources import Resources
from pipeline.run_folder.contents import list_score_files, read_metrics
from pipeline.stream.on_ray import NoBatch
from pipeline.training.on_ray import trainer as ray_fit
from pipeline.training.on_ray import worker as ray_worker
from pipeline.training.on_ray.controller import CheckpointBeforeResize
from pipeline.training.prepared_run import prepare_run
from pipeline.training.stop_signal import StopOnSignal
from pipeline.training.watchdog import WorkerProgress
from tests.stream.test_stream_failures import Silent
from tests.two_processes import SHARED, run_two


def worker_pids() -> list[int]:
    """Processes of Ray's train workers on this machine that are children of this test's cluster."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if "RayTrainWorker" in (folder / "cmdline").read_bytes().decode(errors="replace") and _is_ours(int(folder.name)):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        pid = int(fields[1])
    return False


def kill_a_worker_after(folder: Path, step: int, killed: list[int]) -> None:
    """kill -9 one train worker as soon as there is the checkpoint of ``step``: Ray would not have committed it yet."""
    deadline = time.monotonic() + 400  # the test has 480
    while time.monotonic() < deadline and not killed:
        if (folder / f"checkpoint_{step:06d}").is_dir():
            for pid in worker_pids()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.timeout(480)
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_one_killed_equal_one_process(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every planned row is trained in its step (the loop asserts it), metrics have no gap, and the loss is the same."""
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "train.steps=24"]
    # at 0.003 rounding stays at 1e-7 for 24 steps; at 0.01 it grows to 0.3 % by step 16
    words += ["primary.optimizer.lr=0.003", "auxiliary.optimizer.lr=0.003"]
    assert run(train.main, [*words, "run.name=here"]) == 0
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "ray", 8, killed), daemon=True)
    killer.start()
    # beside other tests the workers may need more than the usual minute to start, which would be a second failure
    assert run(train.main, [*words, "run.name=ray", "scale.workers=2", "scale.start_timeout_seconds=200"]) == 0
    killer.join(timeout=5)
    assert killed, "the run was over before a worker could be killed"

    here, there = read_metrics(tmp_path / "here"), read_metrics(tmp_path / "ray")
    assert [line["step"] for line in there] == [line["step"] for line in here]
    for one, other in zip(here, there, strict=True):
        for name in ("loss", "contrast_loss", "supervised_loss/primary", "supervised_loss/auxiliary"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), (name, one["step"])
    assert (tmp_path / "ray" / "predictions.parquet").is_file()
    saved = [[pq.read_table(part) for part in list_score_files(tmp_path / name)] for name in ("here", "ray")]
    one, other = (pa.concat_tables(parts).sort_by([("step", "ascending"), ("video", "ascending")]) for parts in saved)
    assert one.num_rows == 8 and one.select(["step", "video", "label"]) == other.select(["step", "video", "label"])
    assert min(map(int, re.findall(r"continuing at step (\d+) of 24", capfd.readouterr().out))) >= 8
    failures = [json.loads(line) for line in (tmp_path / "ray" / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 1, failures
    # a process that died, not an exception of the loop
    assert failures[0]["step"] is None and failures[0]["stopped"] is None, failures


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")  # the Ray of another command, which is none of this one's business
def test_a_command_with_two_workers_prints_its_own_lines_only(tiny: Path, tmp_path: Path, repository: Path) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "run.name=two", "scale.workers=2"]
    command = [sys.executable, "-m", "jobs.train", *words, "train.steps=8", "method.supervised_steps=0"]
    variables = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=repository, env=variables, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("two: actnetformer, 8 steps of 2 labeled + 4 unlabeled videos")
    assert said.index("starting 2 train workers: seconds, on a busy machine minutes") < said.index(
        next(line for line in said if line.startswith("step"))
    )
    assert [line.partition("  ")[0] for line in said if line.startswith("step")] == [f"step {n}/8" for n in (2, 4, 6, 8)]
    assert not re.search(r"pid=|\x1b|[Rr]ay|Traceback", done.stdout.replace(str(tmp_path), ""))
    progress = re.compile(r"\w+ \d+/\d+ .* left")
    assert [line for line in done.stderr.splitlines() if not progress.fullmatch(line)] == []


def _sees(rank: int, meeting: str, folder: str) -> None:
    """Worker 1's node has another disk: it does not see what the driver wrote."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ray_worker.SHARED_FILE_SECONDS = 1.0
    text = ""
    try:
        ray_worker.check_shared_folder(Path(folder) / ("token" if rank == 0 else "elsewhere"), 2, "/data/runs")
    except UserError as error:
        text = str(error)
    (Path(folder) / f"{rank}.txt").write_text(text)
    dist.destroy_process_group()


@SHARED
def test_a_folder_that_nodes_do_not_share_is_said_by_all_workers(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    run_two(_sees, tmp_path)
    for rank in (0, 1):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert text.startswith(f"run.storage_path=/data/runs is not the same folder on all nodes: {platform.node()} cannot see")


@pytest.mark.parametrize(("limit", "seconds"), [("0.5", 1), ("7.2", 8), ("600", 600), ("null", 10**6)])
def test_collectives_have_a_limit_of_a_second_at_least(
    limit: str, seconds: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 would be no time at all."""
    made: list[Any] = []
    monkeypatch.setattr(ray_fit, "ElasticTrainer", lambda *_, torch_config, **__: made.append(torch_config))
    prepared = prepare_run(load_config(tiny / "tiny.yaml", [f"train.step_timeout_seconds={limit}", "scale.workers=1"]))
    ray_fit._build_trainer(prepared.run, Resources(1, 1.0, 1.0, gpu=False), {"control": None})
    assert made[0].timeout_s == seconds


def test_workers_have_the_seconds_of_the_knob_to_save_and_stop(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a resize they are the callback's; at a signal the driver waits as long, and then says what it did not get."""
    prepared = prepare_run(load_config(tiny / "tiny.yaml", ["scale.stop_seconds=0.3", "scale.workers=1"]))
    made: list[Any] = []
    monkeypatch.setattr(ray_fit, "ElasticTrainer", lambda *_, run_config, **__: made.append(run_config))
    ray_fit._build_trainer(prepared.run, Resources(1, 1.0, 1.0, gpu=False), {"control": None})
    assert [callback.seconds for callback in made[0].callbacks if isinstance(callback, CheckpointBeforeResize)] == [0.3]

    asked: list[int] = []
    control = SimpleNamespace(request_stop=SimpleNamespace(remote=asked.append))
    signals = StopOnSignal()
    signals.number = signal.SIGTERM
    released = threading.Event()
    with pytest.raises(Stopped, match=r"stopped after scale\.stop_seconds=0\.3 without a checkpoint of the last steps"):
        ray_fit._fit_while_listening(
            lambda: {"late": released.wait(30)}, signals, control, prepared.run.config.scale.stop_seconds
        )
    assert asked == [signal.SIGTERM]
    released.set()


def test_a_worker_waits_for_its_first_batch_ten_times_as_long_as_the_knob_says(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a worker's start but Ray's process, with a stream that hangs for longer."""
    words = [f"run.storage_path={tmp_path}", "data.decode_timeout_seconds=0.1"]
    prepared = prepare_run(load_config(tiny / "tiny.yaml", words))
    monkeypatch.setattr(ray_worker, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(ray_worker, "_count_nodes", lambda: 1)
    monkeypatch.setattr(ray_worker, "Gauges", lambda name: lambda line: None)
    monkeypatch.setattr(ray_worker.ray.train, "get_dataset_shard", lambda name: Silent())
    monkeypatch.setattr(ray_worker, "train", lambda run, batches, own: next(batches(0)))
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1)
    facts = {"fingerprints": prepared.run.fingerprints, "stop_step": None, "is_profiled": False}
    threads = torch.get_num_threads()
    try:
        with pytest.raises(NoBatch, match=r"no batch arrived within 1 s \(data\.decode_timeout_seconds\)"):
            ray_worker._train_here(
                prepared.run.config, {**facts, "lock": None, "token": None, "control": None}, context, WorkerProgress()
            )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_does_not_fit_is_said_before_anything_starts(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", "scale.workers=2"]
    assert run(train.main, [*words, "scale.cpus_per_worker=1"]) == 2
    assert "the cluster has 2 CPUs" in capsys.readouterr().err
    assert run(train.main, [*words, "data.labeled_per_step=1"]) == 2
    assert "scale.workers=2 is more than data.labeled_per_step=1" in capsys.readouterr().err
