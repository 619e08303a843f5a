"""Runs and studies in a folder: which there are, how far they are, and who writes into them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import runs
from jobs.command import DONE, USER_ERROR, run
from pipeline.analysis.run_list import describe_folder, list_runs
from pipeline.files.folder_lock import DEAD_SECONDS, find_writer, lock_folder
from tests.study_folders import line, write_study


def cut_to(folder: Path, step: int) -> None:
    """What a run that was killed after this step left."""
    lines = [one for one in (folder / "metrics.jsonl").read_text().splitlines() if json.loads(one)["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(f"{one}\n" for one in lines))
    (folder / "evaluation.json").unlink()
    (folder / "predictions.parquet").unlink()


def test_the_state_of_a_run_is_what_its_files_say(make_run: Any) -> None:
    complete, trained, stopped, empty = (make_run(seed=seed) for seed in range(4))
    cut_to(trained, 1000)
    cut_to(stopped, 400)
    cut_to(empty, 0)
    found = [describe_folder(folder) for folder in (complete, trained, stopped, empty)]
    assert [one.state for one in found] == ["complete", "trained", "stopped", "empty"]
    assert [(one.done, one.planned) for one in found] == [(1000, 1000), (1000, 1000), (400, 1000), (0, 1000)]
    assert found[0].top1["mean"] == pytest.approx(100 * json.loads((complete / "evaluation.json").read_text())["mean"]["top1"])
    assert found[0].protocol.startswith("10 clips x 3 crops") and found[1].top1 == {}


def test_a_run_that_another_process_writes_is_running(make_run: Any) -> None:
    folder = make_run()
    code = f"from pathlib import Path; from pipeline.files.folder_lock import lock_folder\n" \
           f"with lock_folder(Path({str(folder)!r})): print('held', flush=True); input()"  # fmt: skip
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert describe_folder(folder).state == "running"
        writer = find_writer(folder)
        assert writer is not None and writer.pid == process.pid
        process.kill()
    assert (folder / ".lock").exists(), "it was killed, and left its lock"
    assert describe_folder(folder).state == "complete"


def test_a_lock_of_another_machine_counts_while_it_is_fresh(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        text = (tmp_path / ".lock").read_text()
        other = tmp_path / "other"
        other.mkdir()
        (start,) = re.findall(r"start=(\d+)", text)
        since = int(start) + 2**64  # with another boot id
        (other / ".lock").write_text(re.sub(r"start=\d+", f"start={since}", text).replace(os.uname().nodename, "elsewhere"))
    assert find_writer(other) is not None
    old = time.time() - DEAD_SECONDS - 1
    os.utime(other / ".lock", (old, old))
    assert find_writer(other) is None
    assert find_writer(tmp_path) is None


def test_a_study_is_one_line_unless_its_runs_are_wanted(make_run: Any, tmp_path: Path) -> None:
    inside, cut = make_run(seed=0), make_run(seed=1)
    cut_to(cut, 100)
    study = write_study(inside.parent, [line(0, inside.name), line(1, cut.name, "running"), line(2, "absent", "waiting")])
    found = list_runs(tmp_path)
    assert [(one.folder, one.kind, one.state, one.done, one.planned) for one in found] == [(study, "ablation", "stopped", 1, 3)]
    assert {one.folder for one in list_runs(tmp_path, inside_studies=True)} == {study, inside, cut}


def test_the_newest_is_first_and_sizes_are_those_on_disk(make_run: Any) -> None:
    older, newer = make_run(seed=0), make_run(seed=1)
    for path in older.rglob("*"):
        os.utime(path, (1e9, 1e9))
    os.utime(older, (1e9, 1e9))
    (newer / "weights").write_bytes(os.urandom(2**20))
    found = list_runs(older.parent)
    assert [one.folder for one in found] == [newer, older]
    assert found[0].bytes - found[1].bytes == pytest.approx(2**20, abs=2**16)
    assert found[1].changed == datetime.fromtimestamp(1e9, UTC)


def test_the_table_has_a_line_for_each_and_the_protocol(make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run()
    assert run(runs.main, [str(folder.parent)]) == DONE
    head, row, _, protocol = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "what", "state"]
    assert row.split()[:5] == ["actnetformer-0", "actnetformer", "complete", "1,000/1,000", "steps"] and "just now" in row
    assert "10 clips x 3 crops" in protocol
    assert run(runs.main, [str(folder.parent), "--json"]) == DONE
    (one,) = json.loads(capsys.readouterr().out)
    assert one["state"] == "complete" and set(one["top1"]) == {"primary", "auxiliary", "mean"}


def test_no_run_and_no_folder_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(runs.main, [str(tmp_path)]) == DONE
    assert "no run in" in capsys.readouterr().out
    assert run(runs.main, [str(tmp_path / "absent")]) == USER_ERROR
    assert "run.storage_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("format_it", "value", "text"),
    [
        (runs.format_age, 59, "just now"), (runs.format_age, 61, "1 minute ago"), (runs.format_age, 7300, "2 hours ago"),
        (runs.format_age, timedelta(days=3).total_seconds(), "3 days ago"), (runs.format_bytes, 0, "0 KiB"),
        (runs.format_bytes, 4096, "4.0 KiB"), (runs.format_bytes, 3 * 2**30, "3.0 GiB"), (runs.format_bytes, 2**50, "1024 TiB"),
    ],
)  # fmt: skip
def test_ages_and_sizes_have_their_unit(format_it: Callable[[float], str], value: float, text: str) -> None:
    assert format_it(value) == text


def test_a_folder_with_somebody_elses_config_yaml_is_no_run(make_run: Any) -> None:
    folder = make_run()
    other = folder.parent / "other"
    other.mkdir()
    (other / "config.yaml").write_text("a: 1\n")
    assert [one.folder for one in list_runs(folder.parent)] == [folder]
