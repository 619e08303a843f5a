"""What Ray's processes say: remarks for its developers go to a file, all else to the terminal."""

from __future__ import annotations

import io
import logging
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray._private.ray_logging import stdout_deduplicator
from ray._private.worker import print_to_stdstream, print_worker_logs

from pipeline.ray_cluster import output

HARMLESS = [
    "[2026-11-28 09:15:37,822 E 20507 21411] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: '9a7c98' "
    "has constructor arguments in the object store and max_restarts > 0. If the arguments in the object store go out of scope "
    "or are lost, the actor restart will fail. See https://github.com/ray-project/ray/issues/53727 for more details.",
    "Progress bars disabled. To enable, set `ray.data.DataContext.get_current().enable_progress_bars = True`.",
    "Failed to query Ray Train Controller actor state. State API may be temporarily unavailable. Continuing to monitor.",
    "Failed to send resource request for train-947cd169bf624fecb0eb4709802d051f. If this only happens transiently during "
    "network partition or CPU being overloaded, it's safe to ignore this error. If this error persists, file a GitHub issue.",
    "[W1130 12:37:44.041136657 socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3",
    "Tip: use `ray status` to view detailed cluster status. To disable these messages, set RAY_SCHEDULER_EVENTS=0.",
]
"""As Ray 2.60 and torch said them in the demo, or would on a cluster that grows."""
CONCERNS = [
    "step 10/24  loss 4.743  2 videos/s  data wait 86%  0:42 left",
    "Traceback (most recent call last):",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "*** SIGSEGV received at time=1764321234 on cpu 1 ***",
    "[2026-11-28 09:15:37,822 E 20507 21411] core_worker.cc:2465: Actor with class name: 'MyActor' and ID: '9a7c98' has "
    "constructor arguments in the object store and max_restarts > 0.",
    "(raylet) A worker died or was killed while executing a task by an unexpected system error.",
    "(raylet) 1 Workers (tasks / actors) killed due to memory pressure (OOM)",
    "Spilled 2048 MiB, 5 objects, write throughput 512 MiB/s.",
    "Token authentication is disabled for this Ray cluster. Anyone with network access to the cluster can run arbitrary code",
    "Error: No available node types can fulfill resource request {'GPU': 8.0}.",
]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> output.HarmlessLines:
    fresh = output.HarmlessLines()
    monkeypatch.setattr(output, "_lines", fresh)
    return fresh


def shown(*texts: str) -> list[str]:
    batches: list[dict[str, Any]] = []
    data = {"lines": list(texts), "pid": 7, "ip": "10.0.0.1", "actor_name": "RayTrainWorker", "task_name": None, "is_err": True}
    output.show_without_harmless_lines(batches.append, data)
    assert all({**batch, "lines": []} == {**data, "lines": []} for batch in batches)
    return [line for batch in batches for line in batch["lines"]]


def test_remarks_go_to_a_file_and_all_else_is_shown(
    lines: output.HarmlessLines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.write_to(tmp_path / "ray.log")
    assert shown(HARMLESS[0], *CONCERNS[:5], *HARMLESS[1:], *CONCERNS[5:]) == CONCERNS
    assert shown(*HARMLESS) == []
    kept = (tmp_path / "ray.log").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 2 * len(HARMLESS)
    assert all(line.endswith(text) for line, text in zip(kept, 2 * HARMLESS, strict=True))
    assert "RayTrainWorker pid=7, ip=10.0.0.1" in kept[0]
    assert capsys.readouterr().err == ""


def test_what_train_workers_print_is_shown_as_if_the_command_did(capsys: pytest.CaptureFixture[str]) -> None:
    """What they say on standard error, and what other processes say, names the process; so does all of a study's runs."""
    data = {"lines": ["step 1/2"], "pid": 7, "ip": "10.0.0.1", "localhost": "10.0.0.1", "task_name": None}
    worker, other = {**data, "actor_name": "RayTrainWorker"}, {**data, "actor_name": "_run_trial"}
    show = partial(print_to_stdstream, ignore_prefix=False)
    with output.show_train_workers_plainly():
        for one in ({**worker, "is_err": False}, {**worker, "is_err": True}, {**other, "is_err": False}):
            output.show_without_harmless_lines(show, one)
    output.show_without_harmless_lines(show, {**worker, "is_err": False})
    said = capsys.readouterr()
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in said.out.splitlines()]
    assert plain == ["step 1/2", "(_run_trial pid=7) step 1/2", "(RayTrainWorker pid=7) step 1/2"]
    assert "(RayTrainWorker pid=7)" in said.err


def test_trials_that_say_alike_are_all_heard(
    lines: output.HarmlessLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray would show the second trial's line later or never, with a remark on how to turn that off."""
    monkeypatch.setattr(output, "_beside_rays_logs", lambda: tmp_path / "ray.log")
    monkeypatch.setattr(stdout_deduplicator, "allow_re", None)
    monkeypatch.setattr(stdout_deduplicator, "recent", {})
    with output.divert_harmless_lines():
        pass
    for pid, name in ((7, "supervised_seed-0"), (8, "supervised_seed-1")):
        data = {"lines": ["step 10/60  loss 6.6"], "pid": pid, "ip": "10.0.0.1", "localhost": "10.0.0.1", "actor_name": name}
        print_to_stdstream({**data, "task_name": None, "is_err": False}, ignore_prefix=False)
    said = [re.sub(r"\x1b\[\d*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert said == ["(supervised_seed-0 pid=7) step 10/60  loss 6.6", "(supervised_seed-1 pid=8) step 10/60  loss 6.6"]


def test_without_remarks_there_is_no_file(
    lines: output.HarmlessLines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.write_to(tmp_path / "ray.log")
    assert shown(*CONCERNS) == CONCERNS
    assert not (tmp_path / "ray.log").exists() and capsys.readouterr().err == ""


def test_a_remark_that_cannot_be_written_down_is_shown(
    lines: output.HarmlessLines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lines.keep("ray", HARMLESS[1])  # before the path is known
    lines.write_to(tmp_path / "absent" / "ray.log")
    assert HARMLESS[1] in capsys.readouterr().err
    assert shown(*HARMLESS) == HARMLESS


def test_rays_own_log_in_this_process_is_treated_alike(
    lines: output.HarmlessLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a cluster is protected concerns nobody; that it is not does."""
    monkeypatch.setattr(output, "_beside_rays_logs", lambda: tmp_path / "ray.log")
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("ray"), "handlers", [handler])
    with output.divert_harmless_lines():
        log = logging.getLogger("ray._private.authentication")
        log.warning("Token authentication is enabled for this Ray cluster. Set RAY_AUTH_MODE=disabled to opt out.")
        log.warning(CONCERNS[-2])
        assert not (tmp_path / "ray.log").exists()  # Ray has not said yet where its logs are
    assert seen == [CONCERNS[-2]]
    assert "is enabled" in (tmp_path / "ray.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("is_terminal", "colored"), [(True, True), (False, False)])
def test_lines_of_rays_processes_are_colored_on_a_terminal_only(
    is_terminal: bool, colored: bool, lines: output.HarmlessLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_COLOR_PREFIX", raising=False)
    monkeypatch.setattr(output, "_beside_rays_logs", lambda: tmp_path / "ray.log")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: is_terminal)
    with output.divert_harmless_lines():
        pass
    printed = io.StringIO()
    data = {"lines": ["step 1/2"], "pid": 7, "ip": "10.0.0.2", "localhost": "10.0.0.1", "actor_name": "RayTrainWorker"}
    print_worker_logs(data, printed)
    assert ("\x1b[" in printed.getvalue()) is colored and "step 1/2" in printed.getvalue()
    os.environ.pop("RAY_COLOR_PREFIX", None)
