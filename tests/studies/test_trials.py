"""Trials in parallel processes by Tune, their resources, and what becomes of a study whose driver is killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.exceptions
import ray.tune

from jobs import ablate
from jobs.command import FAILED, run
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.files.folder_lock import LOCK, LockFile
from pipeline.files.lock_holder import get_command_line
from pipeline.run_folder.contents import read_metrics
from pipeline.run_folder.study_folder import read_trials
from pipeline.studies import on_tune, run_trials
from pipeline.studies.ablation import _ListedTrials
from pipeline.studies.on_tune import _name_in_output
from pipeline.training.checkpoints.checkpoint_facts import FILES

pytestmark = pytest.mark.usefixtures("undrawn")

GRID = "question: Does contrast matter?\ngrid: {method.contrast.weight: [0, 1, 2]}\n"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def words(tiny: Path, tmp_path: Path, study: Path, *more: str) -> list[str]:
    return [str(study), "--config", str(tiny / "tiny.yaml"), f"run.storage_path={tmp_path}", *more]


def weights(folder: Path, step: int) -> list[bytes]:
    return [(folder / f"checkpoint_{step:06d}" / name).read_bytes() for name in FILES]


def test_a_claim_is_held_by_one_and_freed_by_a_kill(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from pipeline.files.folder_lock import LockFile\n"
    code += "claim = LockFile(Path(sys.argv[1])); print(claim.acquire(), flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        claim = LockFile(tmp_path / "lock")
        assert not claim.acquire()
        holder.kill()
        holder.wait()
        assert claim.acquire()
    other = LockFile(tmp_path / "lock")
    assert not other.acquire(seconds=0.3)
    claim.release()
    assert other.acquire()
    other.release()


def test_a_study_whose_driver_was_killed_runs_what_is_missing(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 in the middle of the second of two trials; the same command continues to the same bits."""
    two = tmp_path / "two.yaml"
    two.write_text(GRID.replace("[0, 1, 2]", "[0, 1]"), encoding="utf-8")
    command = words(tiny, tmp_path, two, "--concurrent", "1", "train.steps=20", "train.log_every=1")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    second = tmp_path / "two" / "contrast_weight-1_seed-0"
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([sys.executable, "-m", "jobs.ablate", *command], env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not any(line["step"] >= 6 for line in read_metrics(second)):
            assert driver.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
        driver.wait(10)
    assert not (second / "evaluation.json").exists()
    first = tmp_path / "two" / "contrast_weight-0_seed-0" / "metrics.jsonl"
    stamp = first.stat().st_mtime_ns
    assert run(ablate.main, command) == 0
    text = capsys.readouterr().out
    assert "1 of 2 trials are done, 1 to run" in text
    assert "continuing at step" in text
    assert first.stat().st_mtime_ns == stamp

    again = tmp_path / "again.yaml"
    again.write_text("question: q\ngrid: {method.contrast.weight: [1]}\n", encoding="utf-8")
    assert run(ablate.main, words(tiny, tmp_path, again, "--concurrent", "1", "train.steps=20")) == 0
    assert weights(second, 20) == weights(tmp_path / "again" / "contrast_weight-1_seed-0", 20)


def test_the_budget_ends_a_study_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tiny, tmp_path, three, "--concurrent", "1", "train.steps=2")
    scored, hours = _ListedTrials.report_scores, [0.0]

    def late(self: _ListedTrials, *rest: Any) -> bool:  # the first trial ends when the time is over
        hours.append(2.0)
        return scored(self, *rest)

    monkeypatch.setattr(_ListedTrials, "report_scores", late)
    monkeypatch.setattr(run_trials, "time", SimpleNamespace(monotonic=lambda: 3600 * hours[-1]))
    assert run(ablate.main, [*command, "--hours", "1"]) == 0
    monkeypatch.undo()
    assert "2 trials are left: the same command continues them" in capsys.readouterr().out
    assert run(ablate.main, [*command, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "done         contrast_weight-0_seed-0" in text
    assert "4 steps are left" in text
    assert "the median of 1 run of this study" in text
    assert run(ablate.main, command) == 0
    assert "3 of 3 trials" in capsys.readouterr().out
    listed = read_trials(tmp_path / "three")
    assert [trial["params"]["method.contrast.weight"] for trial in listed] == [0, 1, 2]
    assert {trial["state"] for trial in listed} == {"complete"}
    about = json.loads((tmp_path / "three" / "study.json").read_text(encoding="utf-8"))
    assert about["baseline"] == {"method.contrast.weight": 2}  # the configuration as it is
    assert run(ablate.main, [*command, "--hours", "-1"]) == 2
    assert run(ablate.main, ["threshold", *command[1:], "--dry-run"]) == 0
    assert f"the median of 3 runs in {tmp_path}, whatever their setting" in capsys.readouterr().out


def test_a_run_that_the_end_of_the_budget_meets_stops_with_a_checkpoint(
    tiny: Path, tmp_path: Path, three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tiny, tmp_path, three, "--concurrent", "1", "train.steps=4000", "train.checkpoint_every=4000")
    assert run(ablate.main, [*command, "--hours", str(4 / 3600)]) == 0
    assert "3 trials are left: the same command continues them" in capsys.readouterr().out
    (kept,) = (tmp_path / "three" / "contrast_weight-0_seed-0").glob("checkpoint_*")
    assert 0 < int(kept.name[-6:]) < 4000
    listed = read_trials(tmp_path / "three")
    assert [trial["state"] for trial in listed] == ["running", "waiting", "waiting"]
    assert run(ablate.main, [*command, "--dry-run"]) == 0
    assert f"at {int(kept.name[-6:])}/4000" in capsys.readouterr().out


def test_two_commands_on_one_study_do_not_write_into_one_run(
    tiny: Path, tmp_path: Path, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_trials, "ORPHAN_SECONDS", 0.2)
    other = LockFile(tmp_path / "three" / "contrast_weight-1_seed-0" / LOCK)
    assert other.acquire()
    assert run(ablate.main, words(tiny, tmp_path, three, "--concurrent", "1", "train.steps=2")) == 1
    text = capsys.readouterr().out
    assert "failed: contrast_weight-1_seed-0: " in text
    assert "is being written by another process" in text
    assert "2 of 3 trials" in text
    assert [(trial["state"], trial["message"]) for trial in read_trials(tmp_path / "three")] == [
        ("complete", ""), ("running", ""), ("complete", "")]  # fmt: skip
    other.release()


def test_the_file_of_a_study_follows_its_trials(
    tiny: Path, tmp_path: Path, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there when the driver is killed in its second trial."""
    advance, states = run_trials.advance, []

    def watched(*rest: Any) -> Any:
        states.append([trial["state"] for trial in read_trials(tmp_path / "three")])
        return advance(*rest)

    monkeypatch.setattr(run_trials, "advance", watched)
    assert run(ablate.main, words(tiny, tmp_path, three, "--concurrent", "1", "train.steps=2")) == 0
    assert states == [["waiting"] * 3, ["complete", "waiting", "waiting"], ["complete", "complete", "waiting"]]


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_small_trials_run_side_by_side(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two whole runs in processes of Tune's, at once on two CPUs, one of which fails."""
    two = tmp_path / "two.yaml"
    two.write_text("question: q\ngrid: {method.contrast.weight: [0, 1]}\n", encoding="utf-8")
    victim = tmp_path / "two" / "contrast_weight-1_seed-0"
    victim.mkdir(parents=True)
    blocked = LockFile(victim / LOCK)
    assert blocked.acquire()
    command = words(tiny, tmp_path, two, "train.steps=4", "train.log_every=2")
    assert run(ablate.main, command) == 1
    text = capfd.readouterr().out
    assert "0 of 2 trials are done, 2 to run, 2 at once" in text
    assert "failed: contrast_weight-1_seed-0: " in text
    assert "is being written by another process" in text
    assert "1 of 2 trials" in text
    blocked.release()
    assert run(ablate.main, command) == 0
    assert "2 of 2 trials" in capfd.readouterr().out
    commands = [json.loads(facts.read_text(encoding="utf-8"))["command"] for facts in (tmp_path / "two").glob("*/facts.json")]
    assert commands == 2 * [get_command_line()]  # this process's, and none of Ray's


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_trials_may_reserve() -> None:
    def config(*more: str) -> object:
        return load_config(overrides=["scale.workers=0", "data.labeled_per_step=8", *more])

    assert on_tune.choose_concurrency(config(), None) == 2
    assert on_tune.choose_concurrency(config("scale.cpus_per_worker=0.5"), None) == 4
    assert on_tune.choose_concurrency(config("scale.workers=1"), None) == 1
    assert on_tune._plan_trial_resources(config(), 2) == {"CPU": 1.0}
    assert on_tune._plan_trial_resources(config(), 4) == {"CPU": 0.5}
    assert on_tune._plan_trial_resources(config("scale.workers=1"), 2) == {"CPU": 0.01}
    with pytest.raises(UserError, match=r"--concurrent 3 with scale\.cpus_per_worker=1 needs 3 CPUs, the cluster has 2"):
        on_tune.choose_concurrency(config("scale.cpus_per_worker=1"), 3)
    with pytest.raises(UserError, match=r"needs a GPU, the cluster has none"):
        on_tune._plan_trial_resources(config("scale.gpu=true"), 2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_study_without_enough_memory_says_so_and_the_same_command_continues(
    tiny: Path, tmp_path: Path, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words(tiny, tmp_path, three, "--concurrent", "2", "train.steps=2")

    def fail(tuner: Any) -> None:
        """As Tune ends when Ray killed the process of a trial, which is none of the errors that it knows."""
        try:
            raise ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nA table")
        except ray.exceptions.OutOfMemoryError as error:
            raise RuntimeError(f"Caught unexpected exception: {error}") from error

    monkeypatch.setattr(ray.tune.Tuner, "fit", fail)
    assert run(ablate.main, command) == FAILED
    text = capsys.readouterr().err
    assert "failed: 2 trials at once" in text and "low on memory.. The same command continues" in text and "A table" not in text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_study_on_tune_and_not_only_the_trials_of_one_round(
    tiny: Path, tmp_path: Path, three: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    """Tune itself would end at Ctrl-C as if all were done, and ``jobs.rounds`` began its next round."""

    def fit(tuner: Any) -> None:
        stopper = tuner._local_tuner._run_config.stop
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1" and not stopper.stop_all()
        signal.raise_signal(number)
        assert stopper.stop_all() and not pickle.loads(pickle.dumps(stopper)).stop_all()

    monkeypatch.setattr(ray.tune.Tuner, "fit", fit)
    assert run(ablate.main, words(tiny, tmp_path, three, "--concurrent", "2", "train.steps=2")) == code
    said = capsys.readouterr().err
    assert f"{number.name}: stopping; trials that run keep their newest checkpoints; once more stops at once" in said
    assert said.endswith(f"{number.name}: stopped; the same command continues each trial at its newest checkpoint\n")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(600)
def test_ctrl_c_ends_trials_of_tune_and_the_same_command_continues(tiny: Path, tmp_path: Path, three: Path) -> None:
    command = [sys.executable, "-m", "jobs.ablate", *words(tiny, tmp_path, three, "--concurrent", "2", "train.steps=400")]
    log = tmp_path / "log"
    with log.open("wb") as out:
        driver = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 300
        while not list((tmp_path / "three").glob("*/checkpoint_*")):
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(120) == 130, log.read_text(encoding="utf-8")
    assert "the same command continues each trial at its newest checkpoint" in log.read_text(encoding="utf-8")
    begun = {path.name for path in (tmp_path / "three").glob("*_seed-0") if any(path.glob("checkpoint_*"))}
    assert begun and not any((tmp_path / "three" / name / "evaluation.json").exists() for name in begun)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "3 of 3 trials" in done.stdout and "continuing at step" in done.stdout, done.stderr


def test_a_trial_on_tune_names_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """By the line from which Ray's log monitor takes the name that it puts before all later ones; two print at once."""
    _name_in_output("supervised_seed-0")
    assert tuple(capsys.readouterr()) == (":actor_name:supervised_seed-0\n",) * 2
