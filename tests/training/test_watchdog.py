"""Hangs end in a message, signals in a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.command import DONE, run
from pipeline.errors import Stopped
from pipeline.training import loop
from pipeline.training.checkpoints.checkpoint import find_newest
from pipeline.training.stop_signal import StopOnSignal
from pipeline.training.watchdog import FIRST_STEP_FACTOR, Watchdog, WorkerProgress
from tests.training.test_loop import comparable, weights


def hang(phase: str, first: bool, seconds: float) -> list[str]:
    """What a watchdog of 0.2 s says while nothing moves for ``seconds``."""
    said: list[str] = []
    progress = WorkerProgress()
    with Watchdog(progress, 0.2, said.append):
        for step in range(1 if first else 3):
            for name in ("data", "step", "checkpoint"):
                progress.enter(step, name)
                time.sleep(0.05)
        progress.enter(7, phase)
        time.sleep(seconds)
    return said


@pytest.mark.parametrize(("phase", "words"), [("data", "its batch"), ("step", "another worker"), ("checkpoint", "its storage")])
def test_a_hang_is_said_with_step_and_what_it_waits_for(phase: str, words: str) -> None:
    (text,) = hang(phase, first=False, seconds=1.0)
    assert "at step 7" in text and words in text and "train.step_timeout_seconds" in text


def test_the_first_step_may_take_longer() -> None:
    said: list[str] = []
    with Watchdog(WorkerProgress(), 0.1, said.append):
        time.sleep(0.5)
        assert said == []
        time.sleep(0.1 * FIRST_STEP_FACTOR + 0.5)
    assert len(said) == 1


def test_without_a_limit_nothing_watches() -> None:
    threads = threading.active_count()
    with Watchdog(WorkerProgress(), None):
        assert threading.active_count() == threads


def test_a_hung_process_ends_with_its_stacks() -> None:
    code = (
        "import time\nfrom pipeline.training.watchdog import Watchdog, WorkerProgress\n"
        "def stuck(): time.sleep(60)\n"
        "with Watchdog(WorkerProgress(), 0.1): stuck()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("failed: no progress for 1 s") and "in stuck" in ended.stderr


def test_the_first_signal_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal() as sign:
        os.kill(os.getpid(), signal.SIGTERM)
        assert sign.number == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped at once") as caught:
            os.kill(os.getpid(), signal.SIGINT)
        assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def elsewhere() -> None:
        with StopOnSignal():
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()


WORDS = ["train.log_every=5", "train.checkpoint_every=10"]


def command(tiny: Path, folder: Path, name: str) -> list[str]:
    return ["--config", str(tiny / "tiny.yaml"), f"run.storage_path={folder}", f"run.name={name}", *WORDS]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that no signal met."""
    storage = tmp_path_factory.mktemp("whole")
    assert run(train.main, command(tiny, storage, "whole")) == DONE
    return storage / "whole"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues_to_the_same_bits(
    tiny: Path,
    tmp_path: Path,
    whole: Path,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Between two lines of metrics and two checkpoints; the line that was cut is the same line in the end."""
    words, step = command(tiny, tmp_path, "cut"), loop.take_step

    def interrupted(wrapped: Any, state: Any, *rest: Any) -> Any:
        if state.step == 6:
            os.kill(os.getpid(), number)
        return step(wrapped, state, *rest)

    monkeypatch.setattr(loop, "take_step", interrupted)
    assert run(train.main, words) == code
    monkeypatch.undo()
    found, _ = find_newest(tmp_path / "cut")
    assert found is not None and found.name == "checkpoint_000007"
    assert f"{number.name}: stopped with a checkpoint at step 7; the same command continues" in capsys.readouterr().err
    assert run(train.main, words) == DONE
    assert comparable(tmp_path / "cut") == comparable(whole)
    one, other = (weights(folder / "checkpoint_000012") for folder in (tmp_path / "cut", whole))
    assert one == other
