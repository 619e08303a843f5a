"""``prepare`` is killed, interrupted, or started twice: the old or the new manifest is there, and no probe is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import label, prepare
from jobs.command import DONE, INTERRUPTED, USER_ERROR, run
from pipeline.errors import UserError
from pipeline.files.folder_lock import LOCK, LockFile, lock_folder
from pipeline.manifest.label_subset import read_labels
from pipeline.manifest.schema import read_manifest
from pipeline.prepare.probe_cache import PROBE_LOG, open_probe_cache
from pipeline.video.probe import ProbeOptions, probe_file
from tests.videos import write_numbers

COUNT = 40


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    first = write_numbers(tmp_path / "videos" / "a" / "0.mp4", frames=6, size=(64, 64))
    for number in range(1, COUNT):
        target = tmp_path / "videos" / "ab"[number % 2] / f"{number}.mp4"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(first, target)
    return tmp_path / "videos"


def start(videos: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "jobs.prepare", "folder", str(videos), str(out), "--labeled", "1/class"]
    words += ["--processes", "1", *more]  # to start two takes longer than all that they do
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def count_logged_probes(out: Path) -> int:
    """The number of complete lines in the probe log."""
    lines = (out / PROBE_LOG).read_text(encoding="utf-8").splitlines() if (out / PROBE_LOG).exists() else []
    return sum(line.endswith("]]") for line in lines)


def wait_for_probes(out: Path, process: subprocess.Popen[str]) -> None:
    while not count_logged_probes(out):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_killed_at_random_moments(videos: Path, tmp_path: Path) -> None:
    """The seed of the split makes another manifest each time; kills happen at the start, while probing, and while writing."""
    out, random_ = tmp_path / "out", random.Random(0)
    began = time.monotonic()
    with start(videos, out, "--seed", "1", "--probe", "full") as process:
        assert process.wait() == DONE
    whole = time.monotonic() - began
    for seed in range(2, 8):
        with start(videos, out, "--seed", str(seed), "--probe", ["full", "quick"][seed % 2]) as process:
            time.sleep(whole * random_.uniform(0.3, 1.0))
            process.send_signal(signal.SIGKILL)
        manifest = read_manifest(out / "manifest.parquet")  # whole, whichever it is
        assert len(manifest.table) == COUNT and set(manifest.table["status"].to_pylist()) == {"ok"}
        with contextlib.suppress(UserError):  # killed between the two files
            assert read_labels(out / "labels.parquet", manifest).manifest_fingerprint == manifest.fingerprint
    with start(videos, out, "--seed", "1") as process:
        assert process.wait() == DONE  # the lock ended with the process
    assert sorted(path.name for path in out.iterdir()) == ["labels.parquet", "manifest.parquet"]


def test_what_a_killed_run_probed_is_not_probed_again(videos: Path, tmp_path: Path) -> None:
    """The files are damaged without a change of time or size, which a second probe would detect."""
    out = tmp_path / "out"
    with start(videos, out) as process:
        wait_for_probes(out, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "manifest.parquet").exists()
    with open(out / PROBE_LOG, "a", encoding="utf-8") as file:
        file.write('["torn')
    noted = [json.loads(line)[0] for line in (out / PROBE_LOG).read_text(encoding="utf-8").splitlines() if line.endswith("]]")]
    path = Path(noted[0])
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(prepare.main, ["folder", str(videos), str(out), "--labeled", "1/class"]) == DONE
    assert set(read_manifest(out / "manifest.parquet").table["status"].to_pylist()) == {"ok"}
    assert not (out / PROBE_LOG).exists()  # the manifest says it now
    os.utime(path)
    assert run(prepare.main, ["folder", str(videos), str(out), "--labeled", "1/class"]) == DONE
    assert "not_a_video" in read_manifest(out / "manifest.parquet").table["status"].to_pylist()  # so the test can fail


def test_interrupted_by_hand(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(prepare.main, ["folder", str(videos), str(out), "--labeled", "1/class"]) == DONE
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with start(videos, out, "--probe", "full") as process:
        wait_for_probes(out, process)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1]
    assert process.returncode == INTERRUPTED and error.endswith("interrupted\n") and "Traceback" not in error
    assert {name: (out / name).read_bytes() for name in before} == before and count_logged_probes(out)


def test_a_second_prepare_of_a_folder_is_refused(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with start(videos, out) as process:
        wait_for_probes(out, process)
        process.send_signal(signal.SIGSTOP)
        assert run(prepare.main, ["folder", str(videos), str(out)]) == USER_ERROR
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == DONE
    error = capsys.readouterr().err
    assert f"{out} is being written by another process: process {process.pid} on " in error
    assert f"`python -m jobs.prepare folder {videos} {out}" in error
    assert len(read_manifest(out / "manifest.parquet").table) == COUNT


def test_labels_wait_for_each_other(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run(prepare.main, ["folder", str(videos), str(out), "--labeled", "1/class"]) == DONE
    words = [sys.executable, "-m", "jobs.label", str(out / "manifest.parquet"), "--per-class", "2", "--out"]
    other = LockFile(out / LOCK)
    assert other.acquire()
    several = [subprocess.Popen([*words, str(out / f"{n % 2}.parquet"), "--seed", str(n)]) for n in range(4)]
    time.sleep(0.5)
    monkeypatch.setattr(label, "WAIT_SECONDS", 0.2)
    assert run(label.main, [str(out / "manifest.parquet"), "--per-class", "2"]) == USER_ERROR
    other.release()
    assert [process.wait(timeout=60) for process in several] == [DONE] * 4
    manifest = read_manifest(out / "manifest.parquet")
    assert [len(read_labels(out / f"{n}.parquet", manifest).ids) for n in range(2)] == [4, 4]


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(UserError), lock_folder(tmp_path / "new" / "folder"):
        raise UserError("mine")
    assert list(tmp_path.iterdir()) == []


def test_only_new_probes_are_logged(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "v.mp4", frames=5, size=(64, 64))
    probe = probe_file(str(path), ProbeOptions(hash=True))
    for _ in range(2):
        with open_probe_cache(tmp_path) as (find_earlier, record):
            before = find_earlier(str(path))
            record(str(path), probe)
    assert before == probe and count_logged_probes(tmp_path) == 1 and find_earlier("other") is None
