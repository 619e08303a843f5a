"""The check itself, with the CPU for a device: its correctness parts as ordinary tests, and all else at small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.methods import METHODS
from tests.gpu import __main__ as check
from tests.gpu import correctness, environment, speed
from tests.gpu.table import Row, at_least, at_most, lines

CPU = torch.device("cpu")


def _failed(rows: list[Row]) -> list[Row]:
    assert rows
    return [row for row in rows if row.met is False]


def test_views_are_those_of_the_cpu() -> None:
    assert _failed(correctness.check_views(CPU, small=True)) == []


def test_a_step_is_that_of_float64() -> None:
    rows = correctness.check_step(CPU, small=True)
    assert _failed(rows) == []
    assert rows[0].value is not None and float(rows[0].value) > 1e-3  # the lead of labels: none of them may flip
    assert sum("gradient" in row.name for row in rows) == 2


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


def test_parts_of_a_step_and_the_plain_restatement_run() -> None:
    config = speed.make_config(True, 4, {"precision": "bf16"}, {})
    rows = speed._parts(CPU, config, {"steps": 1, "warm_up": 0}) + speed._against_plain(CPU, config, small=True)
    assert {row.name for row in rows} >= {"views, share of a step", "times as fast as the plain restatement"}
    assert all(row.value is not None and float(row.value) > 0 for row in rows)


def test_the_environment_is_described() -> None:
    rows = {row.name: row for row in environment.describe(CPU, small=True)}
    assert rows["torch"].value == torch.__version__
    assert rows["product of matrices, fp32"].value is not None


def test_the_command_writes_what_its_parts_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert check.main(["--parts", "environment", "--device", "cpu", "--small", "--out", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["device"] == "cpu" and written["parts"]["environment"]["problem"] == ""
    assert written["parts"]["environment"]["rows"][0]["name"] == "Python"
    assert "environment (at most 30 s)" in capfd.readouterr().out


def test_a_part_that_takes_too_long_is_ended_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check.PARTS, "environment", ("environment", "describe", 0))
    out = tmp_path / "gpu.json"
    assert check.main(["--parts", "environment", "--device", "cpu", "--small", "--out", str(out)]) == 1
    assert json.loads(out.read_text(encoding="utf-8"))["parts"]["environment"]["problem"] == "not done within 0 s"


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err


def test_rows_say_whether_their_goal_is_met() -> None:
    rows = [at_most("idle", 0.2, 0.05), at_least("speed", 3.0, 2.0, "times"), at_most("nan", float("nan"), 1, correctness=True)]
    assert [row.met for row in rows] == [False, True, False]
    shown = lines(rows)
    assert "missed (at most 0.05)" in shown[0] and "met (at least 2)" in shown[1] and "FAILED" in shown[2]


def test_all_parts_together_take_eight_minutes_at_most() -> None:
    assert sum(limit for _, _, limit in check.PARTS.values()) <= 8 * 60
