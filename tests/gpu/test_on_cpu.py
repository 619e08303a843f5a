"""The check itself, with the CPU for a device: its correctness parts as ordinary tests, and all else at small size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.clips.batch import Batch
from pipeline.methods import METHODS, build_method
from pipeline.stream.upload_ahead import UploadAhead
from tests.gpu import correctness, learning, parts, plain, speed
from tests.gpu.setting import CLASSES, full_config, small_config
from tests.gpu.table import Row, guarded, if_time, must

CPU = torch.device("cpu")
NEVER = float("inf")


def _failed(rows: Iterable[Row]) -> list[Row]:
    rows = list(rows)
    assert rows
    return [row for row in rows if row.met is False]


# ------------------------------------------------------------------------------------------------------ correctness


def test_views_are_those_of_the_cpu() -> None:
    assert _failed(correctness.check_views(CPU, small=True)) == []


def test_a_step_is_that_of_float64() -> None:
    rows = list(correctness.check_step(CPU, small=True))
    assert _failed(rows) == []
    assert rows[0].value is not None and float(rows[0].value) > 1e-3  # the lead of labels: none of them may flip
    assert sum("gradient" in row.name for row in rows) == 3  # of both students, and of the primary's residual branches


def test_maxima_are_those_of_the_cpu() -> None:
    assert _failed(correctness.check_maxima(CPU)) == []


def test_a_step_is_compared_where_gradients_have_no_jumps() -> None:
    """A value within rounding of 0 has one gradient or the other: only without such places can limits be close."""
    kinked = torch.tensor([-1e-9, 1e-9], requires_grad=True)
    with correctness.WithoutKinks():
        torch.nn.ReLU(inplace=True)(kinked.clone()).sum().backward()
        pooled = torch.nn.functional.max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 3, stride=2, padding=1)
    assert kinked.grad is not None and kinked.grad.diff().abs() < 1e-6
    assert pooled.shape == (1, 1, 2, 2) and pooled[0, 0, 1, 1] == 10  # the mean of 5 to 15


def test_a_gradient_that_is_one_percent_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of_float64, of_device = ({"loss": torch.ones(()), "gradient/primary": scale * torch.arange(9.0)} for scale in (1, 1.01))
    found = iter([(of_float64, 0.5), (of_device, 0.5)])
    monkeypatch.setattr(correctness, "_losses_and_gradients", lambda *_: next(found))
    (row,) = _failed(correctness.check_step(CPU, small=True))
    assert row.name == "fp32: gradient/primary, relative distance from float64"
    assert row.value == pytest.approx(0.01, rel=1e-3)


def test_a_resumed_run_has_the_same_bits() -> None:
    assert _failed(correctness.check_resume(CPU)) == []


@pytest.mark.parametrize("option", list(correctness.OPTIONS))
def test_a_step_with_every_option_is_a_number(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "OPTIONS", {option: correctness.OPTIONS[option]})
    (row,) = correctness.check_options(CPU, ["actnetformer"])
    assert row.met, row.note


def test_what_fails_in_a_step_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "OPTIONS", {"bf16": {"train": {"precision": "bf16"}}})
    (row,) = correctness.check_options(CPU, ["no_method", "supervised"])
    assert row.met is False
    assert row.note.startswith("no_method: UserError")
    assert "supervised" in METHODS and "supervised:" not in row.note


def test_clips_that_are_sent_ahead_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _failed(correctness.check_uploads(CPU, steps=3)) == []

    class Late(UploadAhead):  # what a copy that is not waited for could leave
        def take(self) -> Batch:
            batch = super().take()
            return replace(batch, primary=batch.primary.clone().index_fill_(5, torch.tensor([0]), 0))

    monkeypatch.setattr(correctness, "UploadAhead", Late)
    (row,) = _failed(correctness.check_uploads(CPU, steps=3))
    assert row.note == "wrong: [0, 1, 2]"


def test_a_check_that_raises_is_a_failed_row_and_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Iterator[Row]:
        yield Row("before", 1.0)
        raise RuntimeError  # without a message, as some of CUDA's are

    for name in ("check_views", "check_step", "check_uploads", "check_waiting", "check_resume"):
        monkeypatch.setattr(correctness, name, broken)
    monkeypatch.setattr(correctness, "check_options", lambda *_: [must("options", True)])
    rows = list(correctness.check_correctness(CPU, small=True, end=NEVER))
    assert [row.name for row in rows if row.name == "before"] == ["before"] * 5 and rows[-1].name == "options"
    failed = _failed(rows)
    assert [row.name for row in failed][:2] == ["views of the device", "a step against float64"] and len(failed) == 5
    assert all(row.correctness and row.note.startswith("RuntimeError:  (test_on_cpu.py:") for row in failed)


def test_a_device_that_is_too_small_is_a_missed_goal_of_speed_only() -> None:
    def too_large() -> Iterator[Row]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    for may_need_more in (True, False):
        (row,) = guarded("8 + 40", too_large, may_need_more)
        assert row.met is False and row.correctness is not may_need_more and "out of memory" in row.note


# ------------------------------------------------------------------------------------------------------------ speed


def test_parts_of_a_step_and_the_plain_restatement_run() -> None:
    config = speed.make_config(True, 4, {}, {})  # products in bf16 take a CPU long
    rows = [*parts.check_parts(CPU, config, 1, 0), *speed.check_against_plain(CPU, config, True, NEVER)]
    assert {row.name for row in rows} >= {"views, share of a step", "times as fast as the plain restatement"}
    assert all(row.value is not None and float(row.value) > 0 for row in rows)


def test_speed_measures_first_what_matters_most_and_tells_what_it_has_no_time_for() -> None:
    rows = list(speed.check_speed(CPU, True, time.monotonic() - 1))
    assert [row.name for row in rows][:3] == ["bf16, 8 + 40", "parts of a step", "plain restatement"]
    assert all(row.met is False and row.goal == "measured" and "0 s were left" in row.note for row in rows)
    assert not any("32" in row.name and "8 + 40" in row.name for row in rows)  # which no GPU of 80 GB holds


def test_a_check_is_begun_only_if_there_is_time_for_it() -> None:
    row = Row("done", 1.0)
    assert list(if_time("done", lambda: [row], 10, time.monotonic() + 60)) == [row]
    assert [one.met for one in if_time("done", lambda: [row], 10, time.monotonic() + 5)] == [False]


def _event(name: str, start: float, end: float, device: str = "CUDA", range_: bool = False) -> Any:
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=span, device_type=SimpleNamespace(name=device), is_user_annotation=range_)


def test_an_idle_gpu_and_copies_that_wait_are_seen_in_the_profile() -> None:
    events = [_event("gemm", 0, 40), _event("relu", 30, 50), _event("Memcpy HtoD (Pinned -> Device)", 80, 100)]
    rows = {row.name: row for row in parts.rows_of_profile(events, 1)}
    idle = rows["GPU idle, share of the time of steps"]
    assert idle.value == pytest.approx(0.3) and idle.met is False
    assert rows["no copy to the device comes from pageable memory"].met
    (waits,) = [row for row in parts.rows_of_profile([*events, _event("Memcpy HtoD (Pageable -> Device)", 100, 101)], 1)
                if row.correctness]  # fmt: skip
    assert waits.met is False and "Pageable" in waits.note
    assert _failed(parts.rows_of_profile([], 1))[0].note == "the profile is empty"


def test_the_plain_loaders_batches_fit_into_shared_memory() -> None:
    config = full_config(8)
    size = plain.batch_bytes(config)
    assert size == 2 * 88 * 8 * 3 * 224**2 * 4
    assert [plain.processes_that_fit(config, free) for free in (64 * 2**30, 6 * size, 64 * 2**20)] == [16, 4, 0]


def test_the_memory_estimate_is_that_of_the_setting() -> None:
    config = small_config()
    method = build_method(config, CLASSES)
    weights = sum(parameter.nbytes for parameter in method.students.parameters())
    assert speed.estimated_bytes(config) > 3 * weights  # with gradients and momentum
    more = config.model_copy(update={"data": config.data.model_copy(update={"labeled_per_step": 8})})
    assert speed.estimated_bytes(more) > 1.5 * speed.estimated_bytes(config) - 3 * weights


def test_compiled_students_are_timed_and_their_first_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less the compiling itself, which takes a minute: that is the long test's."""
    usual = speed.make_config
    monkeypatch.setattr(speed, "make_config", lambda small, labeled, _, method: usual(small, labeled, {}, method))
    rows = list(speed.check_compiled(CPU, True, NEVER))
    assert [row.name for row in rows][::3] == [f"compiled, {what}: first step by off" for what in speed.COMPILED]
    assert [row.met is None for row in rows] == [True, True, False] * 2 and not [row for row in rows if row.correctness]


@pytest.mark.long
def test_students_are_compiled() -> None:
    rows = list(speed.check_compiled(CPU, True, NEVER))
    assert len(rows) == 6 and rows[0].name.endswith("first step by aot_eager") and not [row for row in rows if row.correctness]


# --------------------------------------------------------------------------------------------------------- learning


def _jobs(folder: Path, **sources: str) -> None:
    (folder / "jobs").mkdir()
    for name, source in {"__init__": "", **sources}.items():
        (folder / "jobs" / f"{name}.py").write_text(source, encoding="utf-8")


def test_runs_learn_at_the_same_time_and_end_with_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _jobs(tmp_path, fails="import sys, time; time.sleep(1); sys.exit('no such file')",
          lasts=f"import os, time, pathlib; pathlib.Path('{tmp_path}/pid').write_text(str(os.getpid())); time.sleep(60)",
          works="")  # fmt: skip
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert set(learning.run_together({"one": ["works"], "two": ["works"]}, tmp_path)) == {"one", "two"}
    with pytest.raises(RuntimeError, match="two ended with 1: no such file"):
        learning.run_together({"one": ["lasts"], "two": ["fails"]}, tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
