"""The check's command: what it writes, what it tells, and how it ends; and the script that downloads wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import __main__ as check
from tests.gpu import environment
from tests.gpu.table import Row, at_least, at_most, lines, must
from tests.gpu.test_on_cpu import CPU, NEVER

COMMAND = ["--device", "cpu", "--small"]


def test_the_environment_is_described(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "decord.py").write_text("raise SystemError('another pydantic-core')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "decord", raising=False)
    rows = {row.name: row for row in environment.describe(CPU, True, NEVER)}
    assert rows["torch"].value == torch.__version__
    assert rows["product of matrices, fp32"].value is not None
    assert (rows["decord"].value, rows["decord"].note) == ("broken", "SystemError: another pydantic-core")


def test_the_command_writes_what_its_parts_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert check.main(["--parts", "environment", "--device", "cpu", "--small", "--out", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["device"] == "cpu" and written["parts"]["environment"]["problem"] == ""
    assert written["parts"]["environment"]["rows"][0]["name"] == "Python"
    assert "environment (at most 45 s)" in capfd.readouterr().out


def test_rows_of_a_part_are_on_disk_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def describe(*_: Any) -> Iterator[Row]:
        for name in ("one", "two"):
            yield Row(name, 1.0)
            seen.append([row["name"] for row in json.loads((tmp_path / "rows").read_text(encoding="utf-8"))])

    monkeypatch.setattr(environment, "describe", describe)
    check._run_part("environment", CPU, True, NEVER, tmp_path / "rows")
    assert seen == [["one"], ["one", "two"]]


class Played:
    """Parts that write these rows, and then end with a code, or None: are ended because their time is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[Row], end: int | BaseException | None) -> None:
        self.rows, self.end = rows, end
        self.environments: dict[str, Any] = {}
        monkeypatch.setattr(check, "run_alone", self.run)

    def run(self, command: list[str], seconds: float, environment_: Any, log: Path) -> int | None:
        self.environments[command[command.index("--child") + 1]] = environment_
        Path(command[command.index("--out") + 1]).write_text(json.dumps([row.as_dict() for row in self.rows]), encoding="utf-8")
        log.write_text("Segmentation fault", encoding="utf-8")
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


def _written(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))["parts"]
    return found


@pytest.mark.parametrize(("end", "problem"), [(None, "not done within 180 s"), (-11, "exit code -11: Segmentation fault")])
def test_a_part_that_is_ended_leaves_its_rows(
    end: int | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Played(monkeypatch, [Row("views", 1.0)], end)
    assert check.main(["--parts", "correctness", *COMMAND, "--out", str(tmp_path / "gpu.json")]) == 1
    found = _written(tmp_path / "gpu.json")["correctness"]
    assert (found["problem"], [row["name"] for row in found["rows"]]) == (problem, ["views"])


def test_a_command_that_is_told_to_stop_leaves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Played(monkeypatch, [Row("views", 1.0)], SystemExit(143))
    with pytest.raises(SystemExit):
        check.main(["--parts", "correctness", *COMMAND, "--out", str(tmp_path / "gpu.json")])
    found = _written(tmp_path / "gpu.json")["correctness"]
    assert (found["problem"], [row["name"] for row in found["rows"]]) == ("stopped from outside", ["views"])


def test_a_row_that_failed_is_named_and_the_exit_code_is_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rows, code in [([must("weak views", False)], 1), ([at_most("idle", 0.2, 0.05)], 0), ([must("weak views", True)], 0)]:
        Played(monkeypatch, rows, 0)
        assert check.main(["--parts", "compile", *COMMAND, "--out", str(tmp_path / "gpu.json")]) == code
        assert ("wrong: weak views" in capsys.readouterr().out) == bool(code)


def test_compilation_may_need_a_call_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "gpu.json")]
    played = Played(monkeypatch, [], None)
    assert check.main(["--parts", "compile", *COMMAND, *out]) == 1
    played.end = 0
    usual = played.run
    monkeypatch.setattr(check, "run_alone", lambda command, *of: None if "compile" in command else usual(command, *of))
    assert check.main([*COMMAND, *out]) == 0
    assert "--parts compile --out gpu-compile.json" in capsys.readouterr().out
    assert _written(tmp_path / "gpu.json")["compile"]["problem"].startswith("not done within")
    monkeypatch.setattr(check, "run_alone", lambda command, *of: 1 if "compile" in command else usual(command, *of))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "[]")
    assert check.main([*COMMAND, *out]) == 1  # it failed: that is no lack of time
    assert played.environments["correctness"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_all_parts_share_one_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.SECONDS == 8 * 60
    out = tmp_path / "gpu.json"
    assert check.main(["--parts", "environment,learning", *COMMAND, "--seconds", "3", "--out", str(out)]) == 1
    assert {part["problem"] for part in _written(out).values()} == {"not begun: 3 s were left"}
    assert "environment (at most 3 s)" in capsys.readouterr().out


def test_what_a_part_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import pathlib, subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"pathlib.Path('{tmp_path}/pid').write_text(str(child.pid)); time.sleep(float(sys.argv[1]))"
    )
    for lasts, seconds, exit_code in [("60", 1.5, None), ("0", 60.0, 0)]:
        assert check.run_alone([sys.executable, "-c", code, lasts], seconds, os.environ, tmp_path / "log") == exit_code
        pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
        while _runs(pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main([]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err


def test_rows_say_whether_their_goal_is_met() -> None:
    rows = [at_most("idle", 0.2, 0.05), at_least("speed", 3.0, 2.0, "times"), at_most("nan", float("nan"), 1, correctness=True)]
    assert [row.met for row in rows] == [False, True, False]
    shown = lines(rows)
    assert "missed (at most 0.05)" in shown[0] and "met (at least 2)" in shown[1] and "FAILED" in shown[2]


# ------------------------------------------------------------------------------------------------- the wheels' script


def _pins(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(root / "tests/gpu/wheels"), "--pins"], capture_output=True, text=True, check=False)


def test_the_wheels_are_of_the_versions_that_are_tested(tmp_path: Path) -> None:
    tested = (check.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = _pins(check.ROOT)
    assert found.returncode == 0, found.stderr
    pins = found.stdout.split()
    assert set(pins) < set(tested) and len(pins) == 12
    names = {pin.partition("==")[0].lower().replace("_", "-") for pin in pins}
    assert names >= {"pydantic", "pydantic-core", "typing-extensions", "pyyaml", "av", "timm", "tqdm"}
    (tmp_path / "tests/gpu").mkdir(parents=True)
    shutil.copy(check.ROOT / "tests/gpu/wheels", tmp_path / "tests/gpu/wheels")
    (tmp_path / "constraints.txt").write_text("\n".join(line for line in tested if "pydantic_core" not in line) + "\n")
    missing = _pins(tmp_path)
    assert missing.returncode == 1 and "no line pydantic-core==VERSION" in missing.stderr
